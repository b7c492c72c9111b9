//! Finds what uses a disk: what holds it or one of its partitions, and what is mounted from it.

use std::path::Path;

use super::Disk;
use super::sysfs::{list, read};

/// Everything built upon the disk or its partitions, as text.
pub(super) fn holders(dir: &Path, name: &str) -> Vec<String> {
    let mut nodes = vec![(dir.to_owned(), name.to_owned())];
    nodes.extend(partitions(dir).into_iter().map(|partition| (dir.join(&partition), partition)));
    let held = |(dir, name): (std::path::PathBuf, String)| {
        list(&dir.join("holders")).into_iter().map(move |holder| format!("{holder} holds {name}"))
    };
    nodes.into_iter().flat_map(held).collect()
}

/// Adds what is mounted from the disks, and their swap areas in use, from the text of `/proc/self/mountinfo` and
/// `/proc/swaps`.
pub fn mark_mounted(disks: &mut [Disk], sysfs: &Path, mountinfo: &str, swaps: &str) {
    for disk in disks {
        let dir = sysfs.join("block").join(&disk.name);
        let mut nodes = vec![(disk.name.clone(), read(&dir, "dev"))];
        nodes.extend(partitions(&dir).into_iter().map(|name| (name.clone(), read(&dir.join(name), "dev"))));
        for (name, number) in &nodes {
            let path = format!("/dev/{}", name.replace('!', "/"));
            // Proc(5): id, parent, major:minor, root, mount point, options, …, a dash, type, source.
            let mounts = mountinfo.lines().filter_map(|line| {
                let mut fields = line.split(' ').skip(2);
                let (device, point) = (fields.next()?, fields.nth(1)?);
                let source = line.split_once(" - ").and_then(|(_, rest)| rest.split(' ').nth(1));
                (device == number || source == Some(&path)).then(|| format!("{name} is mounted on {point}"))
            });
            let swaps = swaps.lines().filter(|line| line.split_whitespace().next() == Some(&path));
            disk.uses.extend(mounts.chain(swaps.map(|_| format!("{name} is swapped to"))));
        }
    }
}

fn partitions(dir: &Path) -> Vec<String> {
    list(dir).into_iter().filter(|name| dir.join(name).join("partition").exists()).collect()
}

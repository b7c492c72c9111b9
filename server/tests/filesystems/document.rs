//! docs/filesystems.md: what the test saw.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use crate::odd::ODD;
use crate::volumes::{Fsck, Life, VOLUMES, Volume};
use crate::{Seen, SeenOdd};

const HEAD: &str = "\
# File systems

What an image holds of each file system, and that it comes back whole. `server/tests/filesystems` compares this page with
what it sees, and `make docs` writes it. Each volume is made by its own mkfs, filled by its own driver in a virtual machine (small, large,
sparse and fragmented files, deleted ones, hard and symbolic links where it has them), unmounted, captured by `ezio capture`,
and restored by `ezio restore` from a peer onto a disk full of random bytes. Then the deepest check that there is for
it has to find nothing, and every file, name, size, mode and link has to be what it was.

Then come disks that are not what their table or their first signature says. Sizes are in MiB. What df calls used leaves out most of a file system's own structures (journals, tables of inodes, copies),
which an image needs too. Who found the used blocks: *partclone* is Debian's `partclone.<fs>`, *EZIO* our own readers
(`crates/usedmap`).

| file system | used blocks found by | volume | used (df) | captured | files compared | deepest check |
|---|---|---:|---:|---:|---:|---|
";

const ODD_HEAD: &str = "
## Odd disks

Each of these is made as the systems that use it make it, captured by `ezio capture` without any option, restored by
`ezio restore` onto a file full of random bytes, and compared: every sector of 512 bytes with data has to be what it was.
(mkfs.btrfs leaves data in blocks that it gave up, so there its own check and scrub have to do.)

| disk | copied | size | captured | sectors compared | deepest check |
|---|---|---:|---:|---:|---|
";

const NOTES: &str = "
HFS+ is made by xorriso with its files in it, because Debian 12 has neither mkfs nor fsck for it; UFS by makefs, because Linux
only reads it. Linux does not know Reiser4: its own fsck, and the bytes of the image compared with the volume, have to do. FAT12 and Minix 3 are copied
whole, because partclone misreads them. Of swap only the header is captured, byte for byte. Btrfs is scrubbed as well, which
reads every copy of everything. partclone finds only one of two copies, and of volumes with snapshots not every node, so EZIO
reads the extent tree itself.
";

const TAIL: &str = "
## Not tested

| file system | what happens | why it is not above |
|---|---|---|
| APFS | partclone.apfs finds the used blocks | nothing in Debian makes one |
| VMFS | copied whole, unless a partclone.vmfs is installed | nothing in Debian makes one, and Debian's partclone does not know it |
| ReFS, ZFS, bcachefs and others | copied whole | like UDF above: nothing here knows their used blocks |
";

/// Compares the page with what was seen, and leaves what it should be for `make docs`.
pub fn check(seen: &[Seen], odd: &[SeenOdd]) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let old = fs::read_to_string(root.join("docs/filesystems.md")).unwrap_or_default();
    let rows_before = rows_by_name(&old);
    let mut text = HEAD.to_owned();
    for (volume, seen) in VOLUMES.iter().zip(seen) {
        let before = rows_before.get(volume.name).map_or(&[][..], Vec::as_slice);
        let cell = |column: usize, bytes: u64| steady(before.get(column).copied(), bytes);
        let used = seen.used.map_or("-".to_owned(), |bytes| cell(3, bytes));
        let files = if seen.files == 0 { "-".to_owned() } else { seen.files.to_string() };
        writeln!(
            text,
            "| {} | {} | {} | {used} | {} | {files} | {} |",
            volume.name,
            seen.found_by,
            seen.len >> 20,
            cell(4, seen.captured),
            fsck(volume)
        )
        .expect("a string takes it");
    }
    text += NOTES;
    text += ODD_HEAD;
    for (row, seen) in ODD.iter().zip(odd) {
        let before = rows_before.get(row.name).map_or(&[][..], Vec::as_slice);
        let captured = steady(before.get(3).copied(), seen.captured);
        // Hashes of random keys, times and GUIDs make a sector more or less.
        let sectors_before = before.get(4).and_then(|cell| cell.parse::<usize>().ok());
        let sectors = seen.sectors.map_or("-".to_owned(), |sectors| {
            let is_news = |old: &usize| old.abs_diff(sectors) > 2 + sectors / 8;
            sectors_before.filter(|old| !is_news(old)).unwrap_or(sectors).to_string()
        });
        let len = seen.len >> 20;
        writeln!(text, "| {} | {} | {len} | {captured} | {sectors} | {} |", row.name, seen.how, row.check)
            .expect("a string takes it");
    }
    text += TAIL;
    fs::create_dir_all(root.join("build")).expect("build/");
    fs::write(root.join("build/filesystems.md"), &text).expect("build/filesystems.md");
    let missing = |a: &str, b: &str| {
        a.lines().filter(|line| !b.lines().any(|other| other == *line)).collect::<Vec<_>>().join("\n")
    };
    assert!(
        text == old,
        "docs/filesystems.md does not say what was seen; if this run is right, `make docs` writes it\n- {}\n+ {}",
        missing(&old, &text),
        missing(&text, &old)
    );
}

/// The cells of each row of the page, by the first of them.
fn rows_by_name(page: &str) -> BTreeMap<&str, Vec<&str>> {
    let cells = |line| str::split(line, '|').skip(1).map(str::trim).collect::<Vec<_>>();
    page.lines().filter(|line| line.starts_with("| ")).map(cells).map(|cells| (cells[0], cells)).collect()
}

/// MiB, rounded up. Where blocks end up depends on when the kernel wrote them: what differs only so much is not news.
fn steady(before: Option<&str>, bytes: u64) -> String {
    let mib = bytes.div_ceil(1 << 20);
    let before = before.and_then(|cell| cell.parse::<u64>().ok()).filter(|old| old.abs_diff(mib) <= 2 + mib / 8);
    before.unwrap_or(mib).to_string()
}

fn fsck(volume: &Volume) -> String {
    match (&volume.fsck, &volume.life) {
        (Fsck::AndScrub(words, _), _) => format!("`{}`, scrub", words.join(" ")),
        (Fsck::Tool(words, _), _) => format!("`{}`", words.join(" ")),
        (Fsck::InScript(what), _) => (*what).to_owned(),
        (Fsck::None, Life::Script(..)) => "-".to_owned(),
        (Fsck::None, _) => "none in Debian 12".to_owned(),
    }
}

//! A source that changes while it is read gives no image.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use crate::tools::{Place, need};

#[test]
fn a_source_that_a_program_writes_to_is_refused() {
    need(&["blkid"]);
    let place = Place::new();
    let disk = place.junk("disk", 8 << 20, 1);
    let writer = File::options().write(true).open(&disk).expect("open for writing");
    // This test is the program.
    let said = place.ezio_refuses(&["capture", &disk, "--name", "busy", "--whole"]);
    assert!(said.contains("open for writing") && said.contains("lvcreate --snapshot"), "{said}");
    assert!(said.contains(&format!("process {}", std::process::id())) && said.contains("--at-own-risk"), "{said}");
    assert_eq!((place.listed().len(), place.unfinished()), (0, 0));
    place.ezio_ok(&["capture", &disk, "--name", "busy", "--whole", "--at-own-risk"]);
    drop(writer);
    place.ezio_ok(&["capture", &disk, "--name", "idle", "--whole"]);
}

#[test]
fn a_source_that_changes_is_refused() {
    need(&["blkid"]);
    let place = Place::new();
    let disk = place.junk("disk", 64 << 20, 2);
    let (is_done, writes) = (AtomicBool::new(false), AtomicU64::new(0));
    let said = thread::scope(|scope| {
        scope.spawn(|| {
            // Open for a moment each time, as a program would be that nobody sees.
            while !is_done.load(Ordering::Relaxed) {
                let file = File::options().write(true).open(&disk).expect("the disk");
                let at = writes.fetch_add(1, Ordering::Relaxed) * 4099 % (64 << 20);
                file.write_all_at(b"changed", at.min((64 << 20) - 8)).expect("written");
            }
        });
        let said = place.ezio_refuses(&["capture", &disk, "--name", "moving", "--whole"]);
        is_done.store(true, Ordering::Relaxed);
        said
    });
    assert!(writes.load(Ordering::Relaxed) > 0);
    assert!(said.contains("changed while it was read") || said.contains("open for writing"), "{said}");
    assert_eq!((place.listed().len(), place.unfinished()), (0, 0));
}

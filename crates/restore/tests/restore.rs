//! Whole restores on loopback, from a seeder in memory to a file that stands for a disk.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use blockdev::Device;
use layout::Layout;
use metainfo::{FileEntry, Geometry, ImageFacts, Metainfo, NewTorrent, PieceIndex, SwapFacts, Zeros};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use report::Stage;
use restore::{
    DiskStore, Grow, Lost, Permission, RestoreError, RestoreOptions, Restored, Stamp, Update, Wish, is_stamped, restore,
};
use sha1::{Digest as _, Sha1};
use swarm::{Have, Options, Storage, Swarm};

const MIB: u64 = 1 << 20;
const DISK_LEN: u64 = 12 * MIB;
const PIECE_LEN: u32 = 256 * 1024;
const UNTOUCHED: u8 = 0xAA;

/// Content in memory.
struct Memory {
    geometry: Geometry,
    content: Vec<u8>,
}

impl Storage for Memory {
    fn write_piece(&self, _piece: PieceIndex, _data: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn read(&self, piece: PieceIndex, offset: u32, buf: &mut [u8]) -> io::Result<()> {
        let start = usize_of(self.geometry.piece_range(piece).start) + usize_of(offset.into());
        buf.copy_from_slice(&self.content[start..start + buf.len()]);
        Ok(())
    }
}

fn usize_of(value: u64) -> usize {
    usize::try_from(value).expect("a small test")
}

/// A GPT disk's worth: table and boot gap, some scattered extents, the backup table at the end; and a swap area.
const EXTENTS: [(u64, u64); 5] = [
    (0, 17 * 1024),
    (MIB - 512, 3 * 512),
    (2 * MIB + 1024, MIB),
    (5 * MIB, 3 * MIB + 512),
    (DISK_LEN - 33 * 512, 33 * 512),
];

/// What a restore took, in bytes.
#[derive(Debug, PartialEq)]
struct Cost {
    kept: u64,
    fetched: u64,
    written: u64,
}

struct Room {
    dir: tempfile::TempDir,
    meta: Arc<Metainfo>,
    content: Vec<u8>,
    seeder: Swarm,
}

impl Room {
    async fn new(facts: ImageFacts) -> Room {
        Room::changed(facts, |_| ()).await
    }

    /// A room with the same image after a change.
    async fn changed(facts: ImageFacts, change: impl FnOnce(&mut Vec<u8>)) -> Room {
        let len = EXTENTS.iter().map(|(_, len)| len).sum::<u64>();
        // Anything but zeros and repetition: a byte in the wrong place has to show.
        let mut content: Vec<u8> = (0..len).flat_map(|i| Sha1::digest(i.to_le_bytes())[..1].to_vec()).collect();
        change(&mut content);
        let files = EXTENTS.iter().map(|(at, len)| FileEntry { length: *len, path: vec![format!("{at:032x}")] });
        let torrent = NewTorrent {
            name: "root".to_owned(),
            announce: None,
            piece_len: PIECE_LEN,
            files: files.collect(),
            hashes: content.chunks(usize_of(PIECE_LEN.into())).map(|piece| Sha1::digest(piece).into()).collect(),
            facts: Some(facts),
            private: true,
        };
        let meta = Arc::new(Metainfo::parse(&torrent.to_bytes().expect("sane")).expect("sane"));
        let memory = Arc::new(Memory { geometry: meta.geometry, content: content.clone() });
        let options = Options { have: Have::All, ..loopback() };
        let seeder = Swarm::start(Arc::clone(&meta), memory, options).await.expect("a free port");
        Room { dir: tempfile::tempdir().expect("temporary directory"), meta, content, seeder }
    }

    /// A file of that length, full of bytes that no image has put there.
    fn disk(&self, len: u64) -> PathBuf {
        let path = self.dir.path().join("disk");
        std::fs::write(&path, vec![UNTOUCHED; usize_of(len)]).expect("a temporary file");
        path
    }

    async fn restore(&self, path: &Path, each: impl FnMut(Update)) -> Result<Cost, RestoreError> {
        self.restore_as(path, RestoreOptions::default(), each).await
    }

    async fn restore_as(
        &self,
        path: &Path,
        wishes: RestoreOptions,
        each: impl FnMut(Update),
    ) -> Result<Cost, RestoreError> {
        let restored = self.run(path, wishes, each).await?;
        let (kept, written) = (restored.kept, restored.written);
        let fetched = restored.swarm.stats().downloaded;
        restored.swarm.shutdown().await;
        Ok(Cost { kept, fetched, written })
    }

    async fn run(
        &self,
        path: &Path,
        wishes: RestoreOptions,
        each: impl FnMut(Update),
    ) -> Result<Restored, RestoreError> {
        let device = Arc::new(Device::open_exclusive(path).expect("a file"));
        let layout = Arc::new(Layout::new(&self.meta).expect("sane"));
        let options = Options { peers: vec![self.seeder.local_addr()], ..loopback() };
        restore(Arc::clone(&self.meta), layout, device, options, wishes, each).await
    }

    /// The stamp of a deployment of this room's image.
    fn stamp(&self, deployment: &str) -> Stamp {
        Stamp { deployment: deployment.to_owned(), infohash: self.meta.infohash.0 }
    }

    /// Fails unless the disk has every byte of the image at its place.
    fn expect_restored(&self, path: &Path) {
        let disk = std::fs::read(path).expect("the disk");
        let mut content = self.content.as_slice();
        for (at, len) in EXTENTS {
            let (wanted, rest) = content.split_at(usize_of(len));
            assert!(disk[usize_of(at)..usize_of(at + len)] == *wanted, "extent at {at}");
            content = rest;
        }
    }
}

fn loopback() -> Options {
    Options { listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), ..Options::default() }
}

fn gpt_facts() -> ImageFacts {
    ImageFacts {
        schema: 1,
        disk_size: DISK_LEN,
        sector_size: 512,
        table: metainfo::TableKind::Gpt,
        ..ImageFacts::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_gets_every_byte_and_boots_only_at_the_end() {
    let swap = SwapFacts {
        offset: 9 * MIB,
        length: MIB,
        page_size: 4096,
        label: "swap".to_owned(),
        uuid: "6ba7b810-9dad-11d1-80b4-00c04fd430c8".to_owned(),
    };
    let room = Room::new(ImageFacts { swap: vec![swap], ..gpt_facts() }).await;
    let path = room.disk(DISK_LEN + 3 * MIB);
    let watched = std::fs::File::open(&path).expect("the disk");
    let mut stages = Vec::new();
    room.restore(&path, |update| {
        stages.push(update.stage);
        if update.progress.written > 0 && update.stage <= Stage::Verify {
            let mut head = [1; 4096];
            watched.read_exact_at(&mut head, 0).expect("the disk");
            assert_eq!(head, [0; 4096], "nothing to boot before the proof, in stage {}", update.stage);
        }
    })
    .await
    .expect("a sound disk");
    stages.dedup();
    assert_eq!(stages, [Stage::Restore, Stage::Verify, Stage::Finish]);

    room.expect_restored(&path);
    let disk = std::fs::read(&path).expect("the disk");
    assert_eq!(disk[usize_of(3 * MIB + 1024)..usize_of(5 * MIB)], vec![UNTOUCHED; usize_of(2 * MIB - 1024)]);
    assert_eq!(&disk[usize_of(9 * MIB) + 4086..usize_of(9 * MIB) + 4096], b"SWAPSPACE2");
    let end = usize_of(DISK_LEN + 2 * MIB);
    assert!(disk[end..].iter().all(|&byte| byte == 0), "an old backup table at the end is gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_one_sector_short_is_not_touched() {
    let room = Room::new(gpt_facts()).await;
    let path = room.disk(DISK_LEN - 512);
    let error = room.restore(&path, |_| ()).await.expect_err("too small");
    assert!(matches!(error, RestoreError::DoesNotFit { .. }), "{error}");
    assert!(std::fs::read(&path).expect("the disk").iter().all(|&byte| byte == UNTOUCHED));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swap_recipe_on_top_of_content_is_refused_before_the_first_write() {
    let swap = SwapFacts { offset: 5 * MIB, length: MIB, page_size: 4096, label: String::new(), uuid: String::new() };
    let room = Room::new(ImageFacts { swap: vec![swap], ..gpt_facts() }).await;
    let path = room.disk(DISK_LEN);
    let error = room.restore(&path, |_| ()).await.expect_err("hostile");
    assert!(matches!(error, RestoreError::SwapRecipe { .. }), "{error}");
    assert!(std::fs::read(&path).expect("the disk").iter().all(|&byte| byte == UNTOUCHED));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_forgets_is_found_out_and_left_unbootable() {
    let room = Room::new(gpt_facts()).await;
    let path = room.disk(DISK_LEN);
    let disk = std::fs::OpenOptions::new().write(true).open(&path).expect("the disk");
    let at = 6 * MIB + 77;
    let sabotage = Arc::new(move || disk.write_all_at(&[1, 2, 3, 4], at).expect("the disk"));
    // The proof follows a second behind the writes: where those take longer, it may be past these bytes when the last write
    // is done. So they are wrong again as soon as they have been written.
    let is_over = Arc::new(AtomicBool::new(false));
    let saboteur = std::thread::spawn({
        let (sabotage, is_over) = (Arc::clone(&sabotage), Arc::clone(&is_over));
        move || {
            while !is_over.load(Ordering::Relaxed) {
                sabotage();
            }
        }
    });
    let result = room
        .restore(&path, |update| {
            if update.stage == Stage::Restore && update.progress.bytes_done == update.progress.bytes_total {
                sabotage();
            }
        })
        .await;
    is_over.store(true, Ordering::Relaxed);
    saboteur.join().expect("it writes until it is told to stop");
    match result.expect_err("four bytes are wrong") {
        RestoreError::ReadBack { disk_offset, .. } => assert!(disk_offset.0.abs_diff(at) < u64::from(PIECE_LEN)),
        other => panic!("{other}"),
    }
    let disk = std::fs::read(&path).expect("the disk");
    assert!(disk[..usize_of(MIB)].iter().all(|&byte| byte == 0), "nothing to boot");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_disk_can_seed() {
    let room = Room::new(gpt_facts()).await;
    let path = room.disk(DISK_LEN);
    room.restore(&path, |_| ()).await.expect("a sound disk");
    let layout = Arc::new(Layout::new(&room.meta).expect("sane"));
    let device = Arc::new(Device::open_read(&path).expect("a file"));
    let store = DiskStore::complete(room.meta.geometry, layout, device);
    for piece in room.meta.geometry.pieces() {
        let mut data = vec![0; usize_of(room.meta.geometry.len_of(piece).into())];
        store.read(piece, 0, &mut data).expect("on the disk");
        assert!(room.meta.piece_is_right(piece, &data), "piece {piece}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unchanged_disk_is_proven_and_left_alone() {
    let swap = SwapFacts { offset: 9 * MIB, length: MIB, page_size: 4096, label: String::new(), uuid: String::new() };
    let room = Room::new(ImageFacts { swap: vec![swap], ..gpt_facts() }).await;
    let path = room.disk(DISK_LEN);
    let len = room.meta.geometry.content_len();
    let first = room.restore(&path, |_| ()).await.expect("a sound disk");
    assert_eq!(first, Cost { kept: 0, fetched: len, written: len });
    // The time of its last change proves that nothing is written, not even the same bytes again.
    let before = std::fs::metadata(&path).expect("the disk").modified().expect("a time");
    let mut last = None;
    let again = room.restore(&path, |update| last = Some(update)).await.expect("a sound disk");
    assert_eq!(again, Cost { kept: len, fetched: 0, written: 0 });
    assert_eq!(last.map(|last| last.stage), Some(Stage::Finish));
    assert_eq!(std::fs::metadata(&path).expect("the disk").modified().expect("a time"), before, "written to");
    let wishes = RestoreOptions { keep: false, ..RestoreOptions::default() };
    let anew = room.restore_as(&path, wishes, |_| ()).await.expect("a sound disk");
    assert_eq!(anew, Cost { kept: 0, fetched: len, written: len }, "when told to");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_image_costs_what_has_changed() {
    let room = Room::new(gpt_facts()).await;
    let path = room.disk(DISK_LEN);
    room.restore(&path, |_| ()).await.expect("a sound disk");
    let pieces = [3, 9];
    let changed = Room::changed(gpt_facts(), |content| {
        pieces.iter().for_each(|piece| content[piece * usize_of(PIECE_LEN.into()) + 5] ^= 1);
    })
    .await;
    let cost = changed.restore(&path, |_| ()).await.expect("a sound disk");
    let two = 2 * u64::from(PIECE_LEN);
    let kept = room.meta.geometry.content_len() - two;
    assert_eq!(cost, Cost { kept, fetched: two, written: two });
    changed.expect_restored(&path);
    // Other pieces are another image altogether.
    let other = Room::changed(gpt_facts(), |content| content.iter_mut().for_each(|byte| *byte ^= 1)).await;
    assert_eq!(other.restore(&path, |_| ()).await.expect("a sound disk").kept, 0);
    other.expect_restored(&path);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_there_at_the_power_cut_is_kept() {
    let room = Room::new(gpt_facts()).await;
    let path = room.disk(DISK_LEN);
    room.restore(&path, |_| ()).await.expect("a sound disk");
    // As a power cut leaves it: no table, and some pieces that never arrived.
    let file = std::fs::OpenOptions::new().write(true).open(&path).expect("the disk");
    for (at, len) in [(0, MIB), (5 * MIB + 9, MIB), (DISK_LEN - MIB, MIB)] {
        file.write_all_at(&vec![0; usize_of(len)], at).expect("the disk");
    }
    let cost = room.restore(&path, |_| ()).await.expect("a sound disk");
    room.expect_restored(&path);
    let len = room.meta.geometry.content_len();
    assert_eq!((cost.kept + cost.fetched, cost.written), (len, cost.fetched));
    // The first piece, the last, and those that the middle one touched.
    assert!(cost.fetched <= 7 * u64::from(PIECE_LEN), "{cost:?}");
}

/// Between the extents, one of them longer than what is looked at in one go.
fn zeros() -> Vec<std::ops::Range<u64>> {
    vec![3 * MIB + (64 << 10)..5 * MIB, 8 * MIB + (64 << 10)..8 * MIB + (128 << 10)]
}

fn facts_with_zeros() -> ImageFacts {
    ImageFacts { zeros: Zeros::new(zeros()).expect("whole blocks"), ..gpt_facts() }
}

#[tokio::test(flavor = "multi_thread")]
async fn zeros_without_content_are_made_and_left_alone_where_they_are() {
    let room = Room::new(facts_with_zeros()).await;
    let path = room.disk(DISK_LEN);
    let watched = std::fs::File::open(&path).expect("the disk");
    let is_zero_at = |at: u64| {
        let mut bytes = [1; 4096];
        watched.read_exact_at(&mut bytes, at).expect("the disk");
        bytes == [0; 4096]
    };
    room.restore(&path, |update| {
        if is_zero_at(3 * MIB + (64 << 10)) && update.stage <= Stage::Verify {
            assert!(is_zero_at(0), "nothing to boot once anything is written, in stage {}", update.stage);
        }
    })
    .await
    .expect("a sound disk");
    room.expect_restored(&path);
    let disk = std::fs::read(&path).expect("the disk");
    for range in zeros() {
        let (start, end) = (usize_of(range.start), usize_of(range.end));
        assert!(disk[start..end].iter().all(|&byte| byte == 0), "{range:?}");
        assert_eq!(disk[start - 1], UNTOUCHED, "not more than that: {range:?}");
    }
    assert_eq!(disk[usize_of(9 * MIB)..usize_of(10 * MIB)], vec![UNTOUCHED; usize_of(MIB)]);

    let before = std::fs::metadata(&path).expect("the disk").modified().expect("a time");
    let len = room.meta.geometry.content_len();
    let again = room.restore(&path, |_| ()).await.expect("a sound disk");
    assert_eq!(again, Cost { kept: len, fetched: 0, written: 0 });
    assert_eq!(std::fs::metadata(&path).expect("the disk").modified().expect("a time"), before, "written to");

    // One byte of junk: the content is all there, and the disk is not as it should be.
    let file = std::fs::OpenOptions::new().write(true).open(&path).expect("the disk");
    file.write_all_at(&[1], 5 * MIB - 1).expect("the disk");
    let again = room.restore(&path, |_| ()).await.expect("a sound disk");
    assert_eq!(again, Cost { kept: len, fetched: 0, written: 0 });
    assert!(std::fs::read(&path).expect("the disk") == disk, "as before, the table too");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_keeps_junk_where_zeros_belong_is_found_out() {
    let room = Room::new(facts_with_zeros()).await;
    let path = room.disk(DISK_LEN);
    let saboteur = std::fs::OpenOptions::new().write(true).open(&path).expect("the disk");
    let sabotage = |update: Update| {
        if update.stage == Stage::Restore && update.progress.bytes_done == update.progress.bytes_total {
            saboteur.write_all_at(&[1], 4 * MIB + 77).expect("the disk");
        }
    };
    let trusting = RestoreOptions { verify: false, ..RestoreOptions::default() };
    room.restore_as(&path, trusting, sabotage).await.expect("nobody looks");
    // Junk all over again, or the zeros that are there would need no writing.
    let path = room.disk(DISK_LEN);
    let result = room.restore(&path, sabotage).await;
    let error = result.expect_err("one byte is wrong");
    let RestoreError::ReadBack { what: Lost::Zeros, disk_offset, .. } = error else { panic!("{error}") };
    assert_eq!(disk_offset.0, 3 * MIB + (64 << 10), "the part of a MiB that the byte is in");
    assert!(error.to_string().contains("a stretch of zeros, from disk offset 3211264, reads back wrong"), "{error}");
    let disk = std::fs::read(&path).expect("the disk");
    assert!(disk[..usize_of(MIB)].iter().all(|&byte| byte == 0), "nothing to boot");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_without_room_for_the_zeros_is_not_touched() {
    let range = 13 * MIB..14 * MIB;
    let zeros = Zeros::new(vec![range]).expect("whole blocks");
    let room = Room::new(ImageFacts { disk_size: 20 * MIB, zeros, ..gpt_facts() }).await;
    let path = room.disk(14 * MIB - 512);
    let error = room.restore(&path, |_| ()).await.expect_err("too small");
    assert!(matches!(error, RestoreError::DoesNotFit { .. }), "{error}");
    assert!(std::fs::read(&path).expect("the disk").iter().all(|&byte| byte == UNTOUCHED));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_verify_nothing_is_read_back_but_the_table() {
    let room = Room::new(gpt_facts()).await;
    let path = room.disk(DISK_LEN);
    let mut stages = Vec::new();
    let wishes = RestoreOptions { verify: false, ..RestoreOptions::default() };
    room.restore_as(&path, wishes, |update| stages.push(update.stage)).await.expect("a sound disk");
    stages.dedup();
    assert_eq!(stages, [Stage::Restore, Stage::Finish]);
    room.expect_restored(&path);
}

/// A room with the image of a disk that sgdisk has partitioned.
async fn room_with_a_table() -> Room {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("golden");
    std::fs::File::create(&path).and_then(|file| file.set_len(DISK_LEN)).expect("a temporary file");
    sgdisk(&["-a", "1", "-n", "1:4096:8191", "-n", "2:8192:20479", "-c", "2:root"], &path);
    let golden = std::fs::read(&path).expect("the golden disk");
    let (first, last) = (EXTENTS[0], EXTENTS[EXTENTS.len() - 1]);
    Room::changed(gpt_facts(), |content| {
        content[..usize_of(first.1)].copy_from_slice(&golden[..usize_of(first.1)]);
        let tail = content.len() - usize_of(last.1);
        content[tail..].copy_from_slice(&golden[usize_of(last.0)..]);
    })
    .await
}

fn sgdisk(arguments: &[&str], disk: &Path) -> String {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let output = std::process::Command::new("sgdisk").env("PATH", path).args(arguments).arg(disk).output();
    let output = output.expect("sgdisk, which `make setup` installs");
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "sgdisk {arguments:?}: {text}");
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn a_larger_disk_has_its_backup_table_at_its_own_end() {
    let room = room_with_a_table().await;
    let len = room.meta.geometry.content_len();
    let path = room.disk(DISK_LEN + 30 * MIB);
    let first = room.restore(&path, |_| ()).await.expect("a sound disk");
    assert_eq!((first.kept, first.written), (0, len));
    let text = sgdisk(&["-v"], &path);
    assert!(text.contains("No problems found"), "{text}");
    let disk = std::fs::read(&path).expect("the disk");
    assert_eq!(
        disk[usize_of(5 * MIB)..usize_of(8 * MIB)],
        room.content[usize_of(MIB) + 17 * 1024 + 3 * 512..][..3 << 20]
    );
    let stale = &disk[usize_of(DISK_LEN - 33 * 512)..usize_of(DISK_LEN)];
    assert!(stale.iter().all(|&byte| byte == 0), "the image's own backup table means nothing here");

    let again = room.restore(&path, |_| ()).await.expect("a sound disk");
    assert_eq!(again, Cost { kept: len, fetched: 0, written: 0 }, "the fitted table is recognised");
    assert!(std::fs::read(&path).expect("the disk") == disk, "nothing was written");

    let wishes =
        RestoreOptions { table: Wish { grow: Grow::Last, new_disk_id: Some([7; 16]) }, ..RestoreOptions::default() };
    room.restore_as(&path, wishes, |_| ()).await.expect("a sound disk");
    let text = sgdisk(&["-v", "-p"], &path);
    assert!(text.contains("No problems found") && text.contains("07070707-0707-0707-0707-070707070707"), "{text}");
    let row = text.lines().find(|line| line.trim_start().starts_with("2 ")).expect("partition 2");
    let columns: Vec<u64> = row.split_whitespace().take(3).map(|word| word.parse().expect("a number")).collect();
    assert_eq!(columns, [2, 8192, (41 << 11) - 1], "up to the last whole MiB in front of the backup table");

    // The table that has grown is not the image's any more; the rest is.
    let anew = room.restore(&path, |_| ()).await.expect("a sound disk");
    assert!(anew.written > 0 && anew.written <= 2 * u64::from(PIECE_LEN), "{anew:?}");
    let text = sgdisk(&["-v"], &path);
    assert!(text.contains("No problems found"), "{text}");
}

/// A disk that refuses every write from the partition table on: what is on it already cannot be taken off again, and the
/// error says both.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_can_be_neither_written_nor_wiped_is_said_to_be_there() {
    let room = Room::new(ImageFacts::default()).await;
    let memory = memfd_create("disk", MFdFlags::MFD_ALLOW_SEALING).expect("memory");
    let path = PathBuf::from(format!("/proc/self/fd/{}", memory.as_raw_fd()));
    std::fs::write(&path, vec![UNTOUCHED; usize_of(DISK_LEN)]).expect("memory");
    let seal = |update: Update| {
        if update.stage == Stage::Finish {
            fcntl(&memory, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE)).expect("nothing maps it");
        }
    };
    let error = room.restore(&path, seal).await.expect_err("the table cannot be written");
    let RestoreError::NotWiped { wipe, why, .. } = &error else { panic!("{error:?}") };
    assert!(wipe.to_string().contains("not permitted"), "{wipe}");
    assert!(matches!(**why, RestoreError::Disk { .. }), "{why:?}");
    assert!(error.to_string().contains("replace it"), "{error}");
    let cause = std::error::Error::source(&error).expect("why the table is not right");
    assert!(cause.to_string().contains("partition table"), "{cause}");
}

fn stamping(stamp: Stamp) -> RestoreOptions {
    RestoreOptions { stamp: Some(stamp), ..RestoreOptions::default() }
}

fn has(path: &Path, stamp: &Stamp) -> bool {
    is_stamped(&Device::open_read(path).expect("a file"), stamp, metainfo::TableKind::Gpt)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stamp_is_on_the_disk_exactly_when_it_is_done() {
    let room = room_with_a_table().await;
    let (first, second) = (room.stamp("first"), room.stamp("second"));
    let path = room.disk(DISK_LEN + 3 * MIB);
    let is_early = AtomicBool::new(false);
    let watch = |update: Update| {
        is_early.fetch_or(update.stage < Stage::Finish && has(&path, &first), Ordering::Relaxed);
    };
    room.restore_as(&path, stamping(first.clone()), watch).await.expect("a sound disk");
    assert!(has(&path, &first) && !is_early.load(Ordering::Relaxed));
    room.expect_restored_but_for_the_table(&path);
    assert!(sgdisk(&["-v"], &path).contains("No problems found"));
    assert!(!has(&path, &second) && !has(&path, &Stamp { infohash: [1; 20], ..first.clone() }));

    // The same again, and another deployment of the same image: the stamp is all that differs.
    let disk = std::fs::read(&path).expect("the disk");
    room.restore_as(&path, stamping(first.clone()), |_| ()).await.expect("a sound disk");
    assert!(std::fs::read(&path).expect("the disk") == disk, "nothing was written");
    let cost = room.restore_as(&path, stamping(second.clone()), |_| ()).await.expect("a sound disk");
    assert_eq!((cost.fetched, cost.written), (0, 0));
    assert!(has(&path, &second) && !has(&path, &first));
    let after = std::fs::read(&path).expect("the disk");
    let differing: Vec<usize> =
        (0..disk.len() / 512).filter(|n| after[n * 512..][..512] != disk[n * 512..][..512]).collect();
    assert_eq!(differing, [usize_of(MIB / 512) - 2], "one sector, in front of what the image has of the gap");

    // Another image over it: gone with the first write.
    let other = Room::changed(gpt_facts(), |content| content.reverse()).await;
    let has_both = AtomicBool::new(false);
    let watch = |update: Update| {
        has_both.fetch_or(update.progress.written > 0 && has(&path, &second), Ordering::Relaxed);
    };
    other.restore_as(&path, RestoreOptions::default(), watch).await.expect("a sound disk");
    assert!(!has(&path, &second) && !has_both.load(Ordering::Relaxed));
}

impl Room {
    fn expect_restored_but_for_the_table(&self, path: &Path) {
        let disk = std::fs::read(path).expect("the disk");
        let mut from = usize_of(EXTENTS[0].1);
        for (at, len) in &EXTENTS[1..EXTENTS.len() - 1] {
            let wanted = &self.content[from..from + usize_of(*len)];
            assert!(disk[usize_of(*at)..usize_of(at + len)] == *wanted, "extent at {at}");
            from += usize_of(*len);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_proven_or_has_no_place_gets_no_stamp() {
    let room = room_with_a_table().await;
    let path = room.disk(DISK_LEN);
    let unproven = RestoreOptions { verify: false, ..stamping(room.stamp("x")) };
    let restored = room.run(&path, unproven, |_| ()).await.expect("a sound disk");
    assert!(restored.warnings.iter().any(|said| said.contains("not read back")), "{:?}", restored.warnings);
    assert!(!has(&path, &room.stamp("x")));

    let bare = Room::new(ImageFacts { disk_size: DISK_LEN, ..ImageFacts::default() }).await;
    let restored = bare.run(&path, stamping(bare.stamp("x")), |_| ()).await.expect("a sound disk");
    assert!(restored.warnings.iter().any(|said| said.contains("no free sector")), "{:?}", restored.warnings);
    bare.expect_restored(&path);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_stamp_behind_an_image_without_a_table_goes_first() {
    let bare = Room::new(ImageFacts { disk_size: DISK_LEN, device: "disk".to_owned(), ..ImageFacts::default() }).await;
    let path = bare.disk(DISK_LEN + 2 * MIB);
    bare.restore_as(&path, stamping(bare.stamp("x")), |_| ()).await.expect("a sound disk");
    let is_there = |stamp| is_stamped(&Device::open_read(&path).expect("a file"), &stamp, metainfo::TableKind::None);
    assert!(is_there(bare.stamp("x")));
    let other =
        Room::changed(ImageFacts { disk_size: DISK_LEN, ..ImageFacts::default() }, |bytes| bytes.reverse()).await;
    other.restore(&path, |_| ()).await.expect("a sound disk");
    assert!(!is_there(bare.stamp("x")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stamp_waits_for_a_file_system_that_grows() {
    let room = room_with_a_table().await;
    let path = room.disk(DISK_LEN + 30 * MIB);
    let stamp = room.stamp("x");
    let wishes = RestoreOptions { table: Wish { grow: Grow::Last, new_disk_id: None }, ..stamping(stamp.clone()) };
    let restored = room.run(&path, wishes, |_| ()).await.expect("a sound disk");
    assert!(restored.grown.is_some() && !has(&path, &stamp));
    let due = restored.due_stamp.expect("there is a place");
    restored.swarm.shutdown().await;
    due.write(&Device::open_exclusive(&path).expect("a file")).expect("a sound disk");
    assert!(has(&path, &stamp));
    assert!(sgdisk(&["-v"], &path).contains("No problems found"));
    // Who empties a disk by hand means it.
    let file = std::fs::OpenOptions::new().write(true).open(&path).expect("the disk");
    file.write_all_at(&[0; 4096], 0).expect("the disk");
    assert!(!has(&path, &stamp));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_written_before_it_is_allowed() {
    let room = room_with_a_table().await;
    let path = room.disk(DISK_LEN);
    let (asked, answer) = std::sync::mpsc::channel::<()>();
    let answer = std::sync::Mutex::new(answer);
    let watched = path.clone();
    let permission = Permission::new(move |_| {
        let untouched = |bytes: Vec<u8>| bytes.iter().all(|&byte| byte == UNTOUCHED);
        assert!(untouched(std::fs::read(&watched).expect("the disk")), "nothing yet");
        answer.lock().expect("once").recv().expect("an answer");
        assert!(untouched(std::fs::read(&watched).expect("the disk")), "still nothing");
        Ok(())
    });
    let mut updates = 0;
    let each = |update: Update| {
        updates += 1;
        if updates == 3 {
            assert_eq!(update.progress.written, 0);
            asked.send(()).expect("who asks waits");
        }
    };
    let wishes = RestoreOptions { permission: Some(permission), ..stamping(room.stamp("x")) };
    room.restore_as(&path, wishes, each).await.expect("allowed");
    room.expect_restored(&path);

    // What needs no write needs no answer; a stamp is a write.
    let refusing = || Some(Permission::new(|_| Err("disarmed".to_owned())));
    let disk = std::fs::read(&path).expect("the disk");
    let same = RestoreOptions { permission: refusing(), ..stamping(room.stamp("x")) };
    room.restore_as(&path, same, |_| ()).await.expect("nothing to write");
    for wishes in [stamping(room.stamp("y")), RestoreOptions { keep: false, ..RestoreOptions::default() }] {
        let wishes = RestoreOptions { permission: refusing(), ..wishes };
        let error = room.restore_as(&path, wishes, |_| ()).await.expect_err("refused");
        assert!(matches!(&error, RestoreError::Refused { said, .. } if said == "disarmed"), "{error:?}");
        assert!(error.to_string().contains("nothing was written"), "{error}");
        assert!(std::fs::read(&path).expect("the disk") == disk, "not one byte");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_comes_too_late_allows_nothing() {
    let room = room_with_a_table().await;
    let path = room.disk(DISK_LEN);
    let (told, is_asked) = tokio::sync::oneshot::channel();
    let told = std::sync::Mutex::new(Some(told));
    let (ended, has_ended) = std::sync::mpsc::channel();
    let permission = Permission::new(move |is_over| {
        told.lock().expect("once").take().expect("asked once").send(()).expect("somebody waits");
        while !is_over() {
            std::thread::yield_now();
        }
        ended.send(()).expect("somebody waits");
        Ok(())
    });
    let wishes = RestoreOptions { permission: Some(permission), ..RestoreOptions::default() };
    tokio::select! {
        _ = room.restore_as(&path, wishes, |_| ()) => panic!("it cannot end before there is an answer"),
        asked = is_asked => asked.expect("asked"),
    }
    tokio::task::spawn_blocking(move || has_ended.recv()).await.expect("a thread").expect("it returns");
    assert!(std::fs::read(&path).expect("the disk").iter().all(|&byte| byte == UNTOUCHED));
}

//! Measures the cost of a fragmented disk: time and memory to load a torrent of 500,000 extents and 20,000 pieces and
//! to find every piece's place on the disk. `cargo run --release -p layout --example load`

use std::time::Instant;

use layout::Layout;
use metainfo::{FileEntry, Metainfo, NewTorrent};

const EXTENTS: u64 = 500_000;
const PIECES: u64 = 20_000;
const PIECE_LEN: u32 = 4 << 20;

fn main() {
    // A separate process loads it, so that its memory is that of the loading alone.
    if let Some(path) = std::env::args_os().nth(1) {
        return load(&std::fs::read(path).expect("what was just written"));
    }
    let path = std::env::temp_dir().join(format!("ezio-load-{}.torrent", std::process::id()));
    std::fs::write(&path, torrent()).expect("room for 31 MB");
    let exe = std::env::current_exe().expect("our own path");
    let status = std::process::Command::new(exe).arg(&path).status();
    std::fs::remove_file(&path).expect("it is there");
    assert!(status.expect("our own program").success());
}

fn torrent() -> Vec<u8> {
    let len = PIECES * u64::from(PIECE_LEN) / EXTENTS / 512 * 512;
    let entry = |index: u64| FileEntry { length: len, path: vec![format!("{:032x}", index * 2 * len)] };
    let pieces = (EXTENTS * len).div_ceil(u64::from(PIECE_LEN));
    let new = NewTorrent {
        name: "root".into(),
        announce: None,
        piece_len: PIECE_LEN,
        files: (0..EXTENTS).map(entry).collect(),
        hashes: (0..pieces).map(|piece| [u8::try_from(piece % 256).expect("a byte"); 20]).collect(),
        facts: None,
        private: true,
    };
    new.to_bytes().expect("lengths of a good torrent")
}

fn load(torrent: &[u8]) {
    println!("{EXTENTS} extents: a torrent of {} bytes", torrent.len());
    let started = Instant::now();
    let meta = Metainfo::parse(torrent).expect("our own torrent");
    println!("parsed in {:.3} s", started.elapsed().as_secs_f64());
    let started = Instant::now();
    let layout = Layout::new(&meta).expect("extents in order");
    println!("laid out on the disk in {:.3} s", started.elapsed().as_secs_f64());

    let started = Instant::now();
    let mut parts = 0;
    for piece in meta.geometry.pieces() {
        parts += layout.on_disk(meta.geometry.piece_range(piece)).expect("inside the content").count();
    }
    let a_piece = started.elapsed() / meta.geometry.piece_count();
    println!("all {} pieces cut into {parts} stretches of the disk, {a_piece:?} a piece", meta.geometry.piece_count());
    println!("peak memory {} MiB, the torrent included", peak_kib() >> 10);
}

/// Most memory that this process has held.
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}

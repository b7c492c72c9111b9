//! Shared parts of the swarm's tests: torrents of random bytes, a store that checks every write, a tracker over HTTP.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use metainfo::{FileEntry, Geometry, Metainfo, NewTorrent, PieceIndex};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sha1::{Digest, Sha1};
use swarm::tracker::failure;
use swarm::{AnnounceQuery, Have, Options, Storage, Swarm, Tracker};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// The machine is slow and shared, so no test fails before this time has passed.
pub const PATIENCE: Duration = Duration::from_secs(600);

/// An image: its bytes and its torrent.
pub struct Image {
    pub content: Arc<Vec<u8>>,
    pub meta: Arc<Metainfo>,
    pub torrent: Vec<u8>,
}

/// An image of `len` random bytes in a few extents, named by hex offsets like those of real images.
pub fn image(len: usize, piece_len: u32, announce: Option<String>) -> Image {
    image_with_names(len, piece_len, announce, 32)
}

/// The same, but names have this many digits: EZIO's oldest had 16.
pub fn image_with_names(len: usize, piece_len: u32, announce: Option<String>, digits: usize) -> Image {
    let mut content = vec![0; len];
    StdRng::seed_from_u64(len as u64).fill(&mut content[..]);
    let hashes = content.chunks(piece_len as usize).map(|piece| Sha1::digest(piece).into()).collect();
    let mut files = Vec::new();
    let mut left = len as u64;
    let mut offset = 0u64;
    for share in [len as u64 / 3, 4096, len as u64 / 5, u64::MAX] {
        let length = share.min(left);
        if length > 0 {
            files.push(FileEntry { length, path: vec![format!("{offset:0digits$x}")] });
        }
        left -= length;
        offset += length + (1 << 20);
    }
    let new = NewTorrent { name: "root".into(), announce, piece_len, files, hashes, facts: None, private: true };
    let torrent = new.to_bytes().expect("a good torrent");
    let meta = Arc::new(Metainfo::parse(&torrent).expect("our own torrent"));
    Image { content: Arc::new(content), meta, torrent }
}

impl Image {
    /// Writes the content as a stock client lays it out: `dir/root/<offset>`.
    pub fn lay_out(&self, dir: &Path) {
        let root = dir.join(&self.meta.name);
        std::fs::create_dir_all(&root).expect("creating the content directory");
        let mut at = 0;
        for file in &self.meta.files {
            let end = at + file.length as usize;
            std::fs::write(root.join(&file.path[0]), &self.content[at..end]).expect("writing content");
            at = end;
        }
    }

    /// Whether `dir` holds exactly the content.
    pub fn is_laid_out(&self, dir: &Path) -> bool {
        let mut at = 0;
        self.meta.files.iter().all(|file| {
            let end = at + file.length as usize;
            let same = std::fs::read(dir.join(&self.meta.name).join(&file.path[0]))
                .is_ok_and(|bytes| bytes == self.content[at..end]);
            at = end;
            same
        })
    }

    pub fn write_torrent(&self, dir: &Path) -> PathBuf {
        let path = dir.join("image.torrent");
        std::fs::File::create(&path).and_then(|mut file| file.write_all(&self.torrent)).expect("writing the torrent");
        path
    }
}

/// A store in memory that detects every write that is wrong or repeated.
pub struct Memory {
    image: Arc<Vec<u8>>,
    meta: Arc<Metainfo>,
    held: Mutex<Vec<u8>>,
    written: Mutex<Vec<u32>>,
    pub bad_writes: AtomicU32,
    /// Writes fail from this piece count on.
    pub fails_after: AtomicU32,
    pub reads_fail: AtomicBool,
    /// Pieces from this one on cannot be read, as in a file that was cut short.
    pub cut_at: AtomicU32,
}

impl Memory {
    pub fn empty(image: &Image) -> Arc<Memory> {
        Memory::new(image, vec![0; image.content.len()])
    }

    pub fn full(image: &Image) -> Arc<Memory> {
        Memory::new(image, image.content.to_vec())
    }

    fn new(image: &Image, held: Vec<u8>) -> Arc<Memory> {
        Arc::new(Memory {
            image: Arc::clone(&image.content),
            meta: Arc::clone(&image.meta),
            held: Mutex::new(held),
            written: Mutex::new(vec![0; image.meta.geometry.piece_count() as usize]),
            bad_writes: AtomicU32::new(0),
            fails_after: AtomicU32::new(u32::MAX),
            reads_fail: AtomicBool::new(false),
            cut_at: AtomicU32::new(u32::MAX),
        })
    }

    /// Flips a bit in the middle of a piece.
    pub fn damage(&self, piece: PieceIndex) {
        let middle = self.meta.geometry.piece_range(piece).start as usize + 777;
        self.held.lock().unwrap()[middle] ^= 1;
    }

    /// Whether the bytes are the image's, and every write was right and the only one of its piece.
    pub fn is_right(&self) -> bool {
        *self.held.lock().unwrap() == *self.image
            && self.bad_writes.load(Ordering::SeqCst) == 0
            && self.written.lock().unwrap().iter().all(|&times| times <= 1)
    }
}

impl Storage for Memory {
    fn write_piece(&self, piece: PieceIndex, data: &[u8]) -> io::Result<()> {
        let range = self.meta.geometry.piece_range(piece);
        let range = range.start as usize..range.end as usize;
        if self.image[range.clone()] != *data {
            self.bad_writes.fetch_add(1, Ordering::SeqCst);
        }
        if self.fails_after.fetch_sub(1, Ordering::SeqCst) == 0 {
            return Err(io::Error::other("the test's disk is broken"));
        }
        self.held.lock().unwrap()[range].copy_from_slice(data);
        self.written.lock().unwrap()[piece.as_usize()] += 1;
        Ok(())
    }

    fn read(&self, piece: PieceIndex, offset: u32, buf: &mut [u8]) -> io::Result<()> {
        if self.reads_fail.load(Ordering::SeqCst) || piece.get() >= self.cut_at.load(Ordering::SeqCst) {
            return Err(io::Error::other("the test's disk cannot be read"));
        }
        let start = self.meta.geometry.piece_range(piece).start as usize + offset as usize;
        buf.copy_from_slice(&self.held.lock().unwrap()[start..start + buf.len()]);
        Ok(())
    }
}

/// Options on loopback, any port.
pub fn options(have: Have) -> Options {
    Options { listen: "127.0.0.1:0".parse().unwrap(), have, ..Options::default() }
}

pub async fn seeder(image: &Image, options: Options) -> Swarm {
    let options = Options { have: Have::All, ..options };
    Swarm::start(Arc::clone(&image.meta), Memory::full(image), options).await.expect("starting the seeder")
}

pub async fn receiver(image: &Image, options: Options) -> (Swarm, Arc<Memory>) {
    let store = Memory::empty(image);
    let swarm = Swarm::start(Arc::clone(&image.meta), Arc::<Memory>::clone(&store), options).await;
    (swarm.expect("starting a receiver"), store)
}

/// Waits for completion; if it does not come, the panic shows the state.
pub async fn complete(swarm: &Swarm) {
    match tokio::time::timeout(PATIENCE, swarm.completed()).await {
        Ok(result) => result.expect("completing"),
        Err(_) => panic!("not complete in time: {:?}", swarm.stats()),
    }
}

/// Waits until `condition` holds.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The project's tracker behind a minimal HTTP server that clients accept. It is dropped with the runtime.
pub struct HttpTracker {
    pub url: String,
    pub tracker: Arc<Mutex<Tracker>>,
    pub announces: Arc<Mutex<Vec<AnnounceQuery>>>,
}

impl HttpTracker {
    pub async fn start(addr: SocketAddr, image: &Image) -> HttpTracker {
        let listener = TcpListener::bind(addr).await.expect("binding the tracker");
        HttpTracker::on(listener, image)
    }

    pub fn on(listener: TcpListener, image: &Image) -> HttpTracker {
        let url = format!("http://{}/announce", listener.local_addr().unwrap());
        let tracker = Arc::new(Mutex::new(Tracker::new()));
        tracker.lock().unwrap().allow(image.meta.infohash);
        let announces = Arc::new(Mutex::new(Vec::new()));
        let (serving, noted) = (Arc::clone(&tracker), Arc::clone(&announces));
        tokio::spawn(async move {
            while let Ok((mut stream, from)) = listener.accept().await {
                let (serving, noted) = (Arc::clone(&serving), Arc::clone(&noted));
                tokio::spawn(async move {
                    let mut request = Vec::new();
                    while !request.ends_with(b"\r\n\r\n") && request.len() < 8192 {
                        let Ok(byte) = stream.read_u8().await else { return };
                        request.push(byte);
                    }
                    let text = String::from_utf8_lossy(&request);
                    let target = text.split(' ').nth(1).unwrap_or_default();
                    let body = match AnnounceQuery::parse(target.split_once('?').map_or("", |(_, query)| query)) {
                        Ok(query) => {
                            noted.lock().unwrap().push(query.clone());
                            serving.lock().unwrap().announce(&query, from.ip(), Instant::now())
                        }
                        Err(error) => failure(&error.to_string()),
                    };
                    let head =
                        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
                    let _ = stream.write_all(head.as_bytes()).await;
                    let _ = stream.write_all(&body).await;
                });
            }
        });
        HttpTracker { url, tracker, announces }
    }
}

/// A torrent of this many pieces, for peers that mention pieces an image does not have.
pub fn pieces(count: u32) -> Geometry {
    Geometry::new(u64::from(count) * 16384, 16384).expect("sane")
}

//! A faulty disk behind NBD: when the power goes, it loses data that it was not asked to flush; or it drops writes and
//! reports them as done.
//!
//! The protocol is the fixed newstyle handshake and simple replies (`doc/proto.md` of the NBD project), as far as
//! QEMU's client needs it. It serves one client at a time; the power is cut when the client disconnects.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};

use anyhow::{Context, Result};

use crate::disk::Disk;
use crate::machine::DEADLINE;

/// The fault of the disk.
#[derive(Clone, Debug)]
pub enum Temper {
    /// Keeps writes in a cache until it is asked to flush. When the power goes, it loses some of these writes, chosen
    /// by this seed.
    Forgetful(u64),
    /// Accepts writes that touch this range of bytes, but does not store them.
    Lying(Range<u64>),
}

/// A disk on a socket. The socket is removed with it; a connected client may continue.
pub struct NbdDisk {
    socket: PathBuf,
    lost: Arc<AtomicU64>,
    cuts: Receiver<()>,
}

const NBD_MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
/// `NBD_FLAG_FIXED_NEWSTYLE` and `NBD_FLAG_NO_ZEROES`.
const HANDSHAKE_FLAGS: u16 = 3;
/// `NBD_FLAG_HAS_FLAGS` and `NBD_FLAG_SEND_FLUSH`.
const EXPORT_FLAGS: u16 = 1 | 1 << 2;
const OPT_EXPORT_NAME: u32 = 1;
const OPT_ABORT: u32 = 2;
const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const REP_ERR_UNSUP: u32 = 1 << 31 | 1;
const CMD_READ: u16 = 0;
const CMD_WRITE: u16 = 1;
const CMD_DISC: u16 = 2;
const CMD_FLUSH: u16 = 3;
/// QEMU requests at most 32 MiB at a time.
const MOST: u32 = 64 << 20;

impl NbdDisk {
    /// Puts `disk` on a socket of this name in the current directory.
    ///
    /// # Errors
    /// If the socket or the disk cannot be opened.
    pub fn start(socket: &str, disk: &Disk, temper: Temper) -> Result<NbdDisk> {
        let socket = PathBuf::from(socket);
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).with_context(|| format!("opening {}", socket.display()))?;
        let (file, len) = (disk.file()?, disk.len()?);
        let lost = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&lost);
        let (cut, cuts) = channel();
        std::thread::spawn(move || {
            let mut backend = Backend { file, len, temper, cached: BTreeMap::new(), lost: counter };
            while let Ok((stream, _)) = listener.accept() {
                // Usually the client was killed in the middle of a request.
                let _ = serve(stream, &mut backend);
                backend.cut_power();
                let _ = cut.send(());
            }
        });
        Ok(NbdDisk { socket, lost, cuts })
    }

    /// Waits until the power has gone once more, and the surviving part of the cache is in the file.
    ///
    /// # Errors
    /// If this does not happen within the usual deadline.
    pub fn wait_for_cut(&self) -> Result<()> {
        self.cuts.recv_timeout(DEADLINE).context("waiting for the machine to let go of its disk")
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Bytes of acknowledged writes that are not on the disk.
    pub fn bytes_lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

struct Backend {
    file: File,
    len: u64,
    temper: Temper,
    /// The data written since the last flush, by sector.
    cached: BTreeMap<u64, [u8; SECTOR]>,
    lost: Arc<AtomicU64>,
}

const SECTOR: usize = 512;

impl Backend {
    fn read(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buf, at)?;
        let end = at + buf.len() as u64;
        for (&sector_at, sector) in self.cached.range(at / 512 * 512..end) {
            for (offset, &byte) in (sector_at..).zip(sector) {
                if (at..end).contains(&offset) {
                    buf[usize::try_from(offset - at).expect("inside the buffer")] = byte;
                }
            }
        }
        Ok(())
    }

    fn write(&mut self, at: u64, data: &[u8]) -> io::Result<()> {
        match &self.temper {
            Temper::Lying(range) if at < range.end && range.start < at + data.len() as u64 => {
                self.lost.fetch_add(data.len() as u64, Ordering::Relaxed);
            }
            Temper::Lying(_) => self.file.write_all_at(data, at)?,
            Temper::Forgetful(_) => {
                for (index, sector) in (0..).zip(data.chunks_exact(SECTOR)) {
                    self.cached.insert(at + index * 512, sector.try_into().expect("a sector"));
                }
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        for (at, sector) in std::mem::take(&mut self.cached) {
            self.file.write_all_at(&sector, at)?;
        }
        Ok(())
    }

    /// Half of the cache reaches the medium, in random order.
    fn cut_power(&mut self) {
        let Temper::Forgetful(seed) = &mut self.temper else { return };
        for (at, sector) in std::mem::take(&mut self.cached) {
            *seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            if *seed >> 63 == 0 {
                self.lost.fetch_add(512, Ordering::Relaxed);
            } else {
                let _ = self.file.write_all_at(&sector, at);
            }
        }
    }
}

fn serve(mut stream: UnixStream, backend: &mut Backend) -> io::Result<()> {
    stream.write_all(
        &[&NBD_MAGIC.to_be_bytes()[..], &OPTION_MAGIC.to_be_bytes(), &HANDSHAKE_FLAGS.to_be_bytes()].concat(),
    )?;
    number::<4>(&mut stream)?;
    while !agree(&mut stream, backend.len)? {}
    loop {
        if number::<4>(&mut stream)? != u64::from(REQUEST_MAGIC) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let _flags = number::<2>(&mut stream)?;
        let command = number::<2>(&mut stream)?;
        let (cookie, at) = (number::<8>(&mut stream)?, number::<8>(&mut stream)?);
        let len = u32::try_from(number::<4>(&mut stream)?).map_err(io::Error::other)?;
        if len > MOST || at.checked_add(u64::from(len)).is_none_or(|end| end > backend.len) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut data = Vec::new();
        match u16::try_from(command).unwrap_or(u16::MAX) {
            CMD_READ => {
                data.resize(len as usize, 0);
                backend.read(at, &mut data)?;
            }
            CMD_WRITE => {
                let mut written = vec![0; len as usize];
                stream.read_exact(&mut written)?;
                backend.write(at, &written)?;
            }
            CMD_FLUSH => backend.flush()?,
            CMD_DISC => return Ok(()),
            _ => return Err(io::ErrorKind::Unsupported.into()),
        }
        let head = [&REPLY_MAGIC.to_be_bytes()[..], &0u32.to_be_bytes(), &cookie.to_be_bytes()].concat();
        stream.write_all(&head)?;
        stream.write_all(&data)?;
    }
}

/// Handles one option of the handshake; returns whether it was the last.
fn agree(stream: &mut UnixStream, len: u64) -> io::Result<bool> {
    if number::<8>(stream)? != OPTION_MAGIC {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let option = u32::try_from(number::<4>(stream)?).map_err(io::Error::other)?;
    let mut data = vec![0; usize::try_from(number::<4>(stream)?.min(u64::from(MOST))).map_err(io::Error::other)?];
    stream.read_exact(&mut data)?;
    let mut reply = |kind: u32, data: &[u8]| {
        let data_len = u32::try_from(data.len()).expect("a few bytes");
        let head = [&OPTION_REPLY_MAGIC.to_be_bytes()[..], &option.to_be_bytes(), &kind.to_be_bytes()].concat();
        stream.write_all(&[&head[..], &data_len.to_be_bytes(), data].concat())
    };
    let export = [&len.to_be_bytes()[..], &EXPORT_FLAGS.to_be_bytes()].concat();
    match option {
        OPT_GO => {
            // NBD_INFO_EXPORT is number 0.
            reply(REP_INFO, &[&[0, 0][..], &export].concat())?;
            reply(REP_ACK, &[])?;
            Ok(true)
        }
        OPT_EXPORT_NAME => {
            stream.write_all(&export)?;
            Ok(true)
        }
        OPT_ABORT => Err(io::ErrorKind::ConnectionAborted.into()),
        _ => reply(REP_ERR_UNSUP, &[]).map(|()| false),
    }
}

/// A big-endian number of `N` bytes.
fn number<const N: usize>(stream: &mut UnixStream) -> io::Result<u64> {
    let mut bytes = [0; 8];
    stream.read_exact(&mut bytes[8 - N..])?;
    Ok(u64::from_be_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backend(temper: Temper) -> (tempfile::TempDir, Backend) {
        let dir = tempfile::tempdir().expect("a folder");
        let disk = Disk::blank(&dir.path().join("disk"), 64 * 512).expect("a disk");
        let (file, lost) = (disk.file().expect("open"), Arc::default());
        (dir, Backend { file, len: 64 * 512, temper, cached: BTreeMap::new(), lost })
    }

    #[test]
    fn what_was_flushed_stays_and_some_of_the_rest_goes() {
        let (_dir, mut backend) = backend(Temper::Forgetful(7));
        let ones = [1; 64 * SECTOR];
        backend.write(0, &ones[..16 * SECTOR]).expect("taken");
        backend.flush().expect("kept");
        backend.write(16 * 512, &ones[16 * SECTOR..]).expect("taken");
        let mut read = vec![0; 64 * SECTOR];
        backend.read(0, &mut read).expect("readable");
        assert_eq!(read, ones, "the cache is read from");
        backend.cut_power();
        backend.read(0, &mut read).expect("readable");
        assert_eq!(read[..16 * SECTOR], ones[..16 * SECTOR]);
        let lost = read[16 * SECTOR..].iter().filter(|&&byte| byte == 0).count();
        assert!(lost > 0 && lost < 48 * SECTOR, "{lost}");
        assert_eq!(backend.lost.load(Ordering::Relaxed), lost as u64);
    }

    #[test]
    fn a_lie_is_not_on_the_disk() {
        let (_dir, mut backend) = backend(Temper::Lying(1024..1025));
        for at in (0..4096).step_by(512) {
            backend.write(at, &[1; 512]).expect("taken, it says");
        }
        let mut read = [0; 4096];
        backend.read(0, &mut read).expect("readable");
        assert_eq!((read[1023], read[1024], read[1535], read[1536]), (1, 0, 0, 1));
    }
}

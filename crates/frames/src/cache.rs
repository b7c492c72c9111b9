//! A few unpacked frames, so that the blocks of one frame, asked for one after the other, cost one unpacking.

use std::sync::{Mutex, PoisonError};

/// Frames that share a lock: so many can be unpacked at the same time.
const SHARDS: usize = 8;
/// Memory of a shard in bytes; it always has one frame.
const SHARD_LEN: usize = 512 << 10;

/// The frames used last: 4 MiB of them, or [`SHARDS`] if they are long.
#[derive(Debug)]
pub(crate) struct Cache {
    shards: Vec<Mutex<Vec<Frame>>>,
    frames_per_shard: usize,
}

#[derive(Debug)]
struct Frame {
    number: usize,
    bytes: Vec<u8>,
}

impl Cache {
    /// For frames of that raw length in bytes.
    pub(crate) fn new(frame_len: usize) -> Cache {
        Cache {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            frames_per_shard: (SHARD_LEN / frame_len.max(1)).max(1),
        }
    }

    /// Passes the content of a frame to `with`. If it is not there, `load` fills a buffer with it, while others who want the
    /// same frame wait.
    ///
    /// # Errors
    /// Those of `load`; nothing is kept then.
    pub(crate) fn with<E>(
        &self,
        number: usize,
        load: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
        with: impl FnOnce(&[u8]),
    ) -> Result<(), E> {
        let mut frames = self.shards[number % SHARDS].lock().unwrap_or_else(PoisonError::into_inner);
        let found = frames.iter().position(|frame| frame.number == number);
        let frame = match found {
            Some(at) => frames.remove(at),
            None => {
                // The one that nobody has wanted for longest gives its memory.
                let is_full = frames.len() >= self.frames_per_shard;
                let mut bytes = if is_full { frames.remove(0).bytes } else { Vec::new() };
                load(&mut bytes)?;
                Frame { number, bytes }
            }
        };
        with(&frame.bytes);
        frames.push(frame);
        Ok(())
    }
}

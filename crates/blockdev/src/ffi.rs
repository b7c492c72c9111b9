//! The block ioctls (`include/uapi/linux/fs.h`), each behind a safe function.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

mod raw {
    // Request numbers and types from include/uapi/linux/fs.h. BLKGETSIZE64 is declared there with size_t, whose size is
    // part of the request number, although it writes a u64.
    nix::ioctl_read!(blkgetsize64, 0x12, 114, usize);
    nix::ioctl_read_bad!(blksszget, 0x1268, libc::c_int);
    nix::ioctl_none_bad!(blkrrpart, 0x125f);
    nix::ioctl_none_bad!(blkflsbuf, 0x1261);
    nix::ioctl_write_ptr_bad!(blkdiscard, 0x1277, [u64; 2]);
    nix::ioctl_write_ptr_bad!(blkzeroout, 0x127f, [u64; 2]);
    // EXT4_IOC_RESIZE_FS of fs/ext4/ext4.h.
    nix::ioctl_write_ptr!(ext4_resize_fs, b'f', 16, u64);
}

/// Length of the block device in bytes.
pub(crate) fn device_len(file: &File) -> io::Result<u64> {
    let mut len: usize = 0;
    // SAFETY: the descriptor is owned by `file` and open; on every supported (64-bit) machine a usize holds the u64 that
    // the kernel writes, and `len` outlives the call.
    unsafe { raw::blkgetsize64(file.as_raw_fd(), &mut len)? };
    Ok(u64::try_from(len).expect("usize has at most 64 bits"))
}

/// Logical sector size of the block device in bytes.
pub(crate) fn sector_size(file: &File) -> io::Result<u32> {
    let mut size: libc::c_int = 0;
    // SAFETY: the descriptor is owned by `file` and open; the kernel writes one int into `size`, which outlives the call.
    unsafe { raw::blksszget(file.as_raw_fd(), &mut size)? };
    u32::try_from(size).map_err(|_| io::Error::other(format!("the kernel reports sectors of {size} bytes")))
}

/// Makes the kernel read the device's partition table again.
pub(crate) fn reread_partition_table(file: &File) -> io::Result<()> {
    // SAFETY: the descriptor is owned by `file` and open; the request takes no argument.
    unsafe { raw::blkrrpart(file.as_raw_fd())? };
    Ok(())
}

/// Writes out what the kernel has cached of the device, and drops it.
pub(crate) fn drop_cache(file: &File) -> io::Result<()> {
    // SAFETY: the descriptor is owned by `file` and open; the request takes no argument.
    unsafe { raw::blkflsbuf(file.as_raw_fd())? };
    Ok(())
}

/// Tells the device that it need not keep `len` bytes at `start`, both in bytes and whole sectors.
pub(crate) fn discard(file: &File, start: u64, len: u64) -> io::Result<()> {
    let range = [start, len];
    // SAFETY: the descriptor is owned by `file` and open; the kernel reads two u64 from `range`, which outlives the call.
    unsafe { raw::blkdiscard(file.as_raw_fd(), &range)? };
    Ok(())
}

/// Makes the device's `len` bytes at `start`, both in bytes and whole sectors, read as zeros. The device does it by
/// command if it has one; otherwise the kernel writes the zeros. The page cache drops its copy.
pub(crate) fn zero_out(file: &File, start: u64, len: u64) -> io::Result<()> {
    let range = [start, len];
    // SAFETY: the descriptor is owned by `file` and open; the kernel reads two u64 from `range`, which outlives the call.
    unsafe { raw::blkzeroout(file.as_raw_fd(), &range)? };
    Ok(())
}

/// Grows the mounted ext4 with this root directory to the given number of blocks.
pub(crate) fn ext4_resize(dir: &File, blocks: u64) -> io::Result<()> {
    // SAFETY: the descriptor is owned by `dir` and open; the kernel reads one u64 from `blocks`, which outlives the call.
    unsafe { raw::ext4_resize_fs(dir.as_raw_fd(), &blocks)? };
    Ok(())
}

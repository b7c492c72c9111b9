//! A reproducible writer of the cpio format that the kernel unpacks (newc): the same members give the same bytes.
//!
//! Members are sorted by name, inode numbers follow that order, and times and owners are zero. Format: Linux,
//! `Documentation/driver-api/early-userspace/buffer-format.rst`.

use std::collections::BTreeMap;
use std::io::{self, Write};

use anyhow::{Result, bail, ensure};

/// The object at one path of the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Member {
    Directory,
    File { executable: bool, data: Vec<u8> },
}

/// The members of an archive, by path without a leading slash.
#[derive(Debug, Default)]
pub struct Archive {
    members: BTreeMap<String, Member>,
}

/// `S_IFDIR` with rwxr-xr-x.
const MODE_DIRECTORY: u32 = 0o040_755;
/// `S_IFREG` with rw-r--r--.
const MODE_FILE: u32 = 0o100_644;
/// `S_IFREG` with rwxr-xr-x.
const MODE_EXECUTABLE: u32 = 0o100_755;
/// The name that ends an archive.
const TRAILER: &str = "TRAILER!!!";

impl Archive {
    /// Adds a directory and the directories above it; it may already exist.
    pub fn directory(&mut self, path: &str) -> Result<()> {
        check_path(path)?;
        self.parents(path)?;
        match self.members.insert(path.to_owned(), Member::Directory) {
            None | Some(Member::Directory) => Ok(()),
            Some(Member::File { .. }) => bail!("adding the directory {path} to the initramfs: a file has that name"),
        }
    }

    /// Adds a file and the directories above it.
    pub fn file(&mut self, path: &str, executable: bool, data: Vec<u8>) -> Result<()> {
        check_path(path)?;
        // Sizes have 32 bits in this format.
        ensure!(u32::try_from(data.len()).is_ok(), "adding {path} to the initramfs: it is larger than 4 GiB");
        self.parents(path)?;
        let old = self.members.insert(path.to_owned(), Member::File { executable, data });
        ensure!(old.is_none(), "adding {path} to the initramfs: it is there already");
        Ok(())
    }

    fn parents(&mut self, path: &str) -> Result<()> {
        match path.rsplit_once('/') {
            Some((parent, _)) => self.directory(parent),
            None => Ok(()),
        }
    }

    /// Number of members, including directories.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Writes the archive, padded to a multiple of four bytes so that another archive may be appended.
    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        for (inode, (path, member)) in (1_u32..).zip(&self.members) {
            let (mode, links, data): (_, _, &[u8]) = match member {
                Member::Directory => (MODE_DIRECTORY, 2, &[]),
                Member::File { executable: true, data } => (MODE_EXECUTABLE, 1, data),
                Member::File { executable: false, data } => (MODE_FILE, 1, data),
            };
            write_member(out, inode, mode, links, path, data)?;
        }
        write_member(out, 0, 0, 1, TRAILER, &[])
    }
}

fn check_path(path: &str) -> Result<()> {
    let parts_fine = path.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
    ensure!(
        parts_fine && path != TRAILER && !path.contains('\0'),
        "{path:?} cannot be the name of an initramfs member"
    );
    Ok(())
}

/// Writes one member: 110 bytes of header, the name with its NUL, the data; the latter two padded to four bytes.
fn write_member(out: &mut impl Write, inode: u32, mode: u32, links: u32, name: &str, data: &[u8]) -> io::Result<()> {
    let size = u32::try_from(data.len()).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
    let name_size = u32::try_from(name.len() + 1).map_err(|_| io::Error::from(io::ErrorKind::InvalidFilename))?;
    // inode, mode, uid, gid, links, mtime, size, device, device of the node (two each), name size, checksum (unused)
    let fields = [inode, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name_size, 0];
    write!(out, "070701")?;
    for field in fields {
        write!(out, "{field:08X}")?;
    }
    out.write_all(name.as_bytes())?;
    out.write_all(&[0])?;
    out.write_all(padding(6 + 8 * fields.len() + name.len() + 1))?;
    out.write_all(data)?;
    out.write_all(padding(data.len()))
}

/// The zero bytes that fill up to a multiple of four.
fn padding(len: usize) -> &'static [u8] {
    &[0; 3][..len.wrapping_neg() % 4]
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    fn bytes(archive: &Archive) -> Vec<u8> {
        let mut out = Vec::new();
        archive.write(&mut out).unwrap();
        out
    }

    #[test]
    fn golden_bytes() {
        let mut archive = Archive::default();
        archive.file("a/b", true, b"hello".to_vec()).unwrap();
        let zero = "00000000";
        let mut golden = Vec::new();
        golden.extend(format!("070701{:08X}{:08X}{zero}{zero}{:08X}{zero}{zero}", 1, 0o040_755, 2).bytes());
        golden.extend(format!("{zero}{zero}{zero}{zero}{:08X}{zero}", 2).bytes());
        golden.extend(b"a\0"); // 110 + 2 is a multiple of four.
        golden.extend(format!("070701{:08X}{:08X}{zero}{zero}{:08X}{zero}{:08X}", 2, 0o100_755, 1, 5).bytes());
        golden.extend(format!("{zero}{zero}{zero}{zero}{:08X}{zero}", 4).bytes());
        golden.extend(b"a/b\0\0\0hello\0\0\0");
        golden.extend(format!("070701{zero}{zero}{zero}{zero}{:08X}{zero}{zero}", 1).bytes());
        golden.extend(format!("{zero}{zero}{zero}{zero}{:08X}{zero}", 11).bytes());
        golden.extend(b"TRAILER!!!\0\0\0\0");
        assert_eq!(String::from_utf8_lossy(&bytes(&archive)), String::from_utf8_lossy(&golden));
    }

    #[test]
    fn order_of_adding_does_not_matter() {
        let members = [("init", true), ("lib/x", false), ("lib/a/y", false), ("etc/z", false)];
        let mut forward = Archive::default();
        let mut backward = Archive::default();
        for (path, executable) in members {
            forward.file(path, executable, path.into()).unwrap();
        }
        for (path, executable) in members.into_iter().rev() {
            backward.file(path, executable, path.into()).unwrap();
        }
        assert_eq!(bytes(&forward), bytes(&backward));
    }

    #[test]
    fn lengths_are_padded() {
        for len in 0..9 {
            let mut archive = Archive::default();
            archive.file("f", false, vec![b'x'; len]).unwrap();
            assert_eq!(bytes(&archive).len() % 4, 0, "a file of {len} bytes");
        }
    }

    #[test]
    fn bad_paths_are_refused() {
        for path in ["", "/init", "a//b", "a/../b", "./a", "a/", "TRAILER!!!", "a\0b"] {
            assert!(Archive::default().file(path, false, Vec::new()).is_err(), "{path:?}");
        }
        let mut archive = Archive::default();
        archive.file("a", false, Vec::new()).unwrap();
        assert!(archive.file("a", false, Vec::new()).is_err());
        assert!(archive.file("a/b", false, Vec::new()).is_err());
    }

    #[test]
    fn the_cpio_program_reads_it() {
        let mut archive = Archive::default();
        archive.directory("dev").unwrap();
        archive.file("init", true, vec![1; 1001]).unwrap();
        archive.file("lib/modules/1/modules.dep", false, b"x".to_vec()).unwrap();
        let listing = Command::new("cpio").args(["-t", "--quiet"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = listing.expect("the program cpio, which `make setup` installs");
        child.stdin.take().unwrap().write_all(&bytes(&archive)).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        let names = String::from_utf8(output.stdout).unwrap();
        assert_eq!(names, "dev\ninit\nlib\nlib/modules\nlib/modules/1\nlib/modules/1/modules.dep\n");
    }
}

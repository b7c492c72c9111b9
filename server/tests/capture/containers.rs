//! Files that hold a disk and are none are refused with what to do, by what is in them.

use std::fs;
use std::io::Write;
use std::process::Stdio;

use crate::tools::{Place, command, need, run};

/// Makes the archive `out` of disk.img with a shell command, in the directory of both.
fn packed(place: &Place, out: &str, how: &str) -> String {
    run("sh", &["-ec", &format!("cd '{}' && {how}", place.text("."))]);
    assert!(fs::metadata(place.path(out)).is_ok_and(|made| made.len() > 0), "{how}");
    place.text(out)
}

/// What is said of a file; nothing is left of the attempt, and nobody is told to copy every byte.
fn refused(place: &Place, file: &str) -> String {
    let said = place.ezio_refuses(&["image", "import", file, "--name", "x"]);
    assert!(!said.contains("--whole"), "{file}: {said}");
    assert_eq!((place.listed().len(), place.unfinished()), (0, 0), "{file}");
    said
}

/// A disk to pack: the least that would be captured, and bytes that do not compress away.
fn disk(place: &Place) {
    let disk = place.blank("disk.img", 4);
    run("mkfs.ext4", &["-q", "-F", "-b", "1024", &disk]);
}

#[test]
fn archives_are_refused_with_what_to_do() {
    need(&["mkfs.ext4", "tar", "cpio", "ar", "python3"]);
    let place = Place::new();
    disk(&place);
    fs::write(place.path("app.ovf"), "<Envelope/>").expect("write");
    fs::copy(place.path("disk.img"), place.path("d.vmdk")).expect("copied");
    for format in ["ustar", "gnu", "posix", "v7"] {
        let ova = packed(&place, "app.bin", &format!("tar cf app.bin --format={format} app.ovf d.vmdk"));
        let said = refused(&place, &ova);
        let words = format!(
            "{ova} is an OVA (a tar file), not a disk: unpack it (`tar xf {ova}`) and import the .vmdk in it (d.vmdk)"
        );
        assert!(said.contains(&words), "{format}: {said}");
        let tar = packed(&place, "tar.bin", &format!("tar cf tar.bin --format={format} disk.img"));
        let said = refused(&place, &tar);
        assert!(said.contains("is a tar file, not a disk") && said.contains("(disk.img)"), "{format}: {said}");
    }
    // The name says nothing, neither of an archive nor of a disk.
    let zip = "python3 -c \"import zipfile; zipfile.ZipFile('zip.img', 'w').write('disk.img')\"";
    assert!(refused(&place, &packed(&place, "zip.img", zip)).contains("is a zip archive, not a disk"));
    for format in ["bin", "odc", "newc", "crc"] {
        let cpio = packed(&place, "cpio.img", &format!("echo disk.img | cpio -o --quiet -H {format} >cpio.img"));
        assert!(refused(&place, &cpio).contains("is a cpio archive, not a disk"), "{format}");
    }
    let ar = packed(&place, "ar.img", "ar q ar.img disk.img 2>&1");
    assert!(refused(&place, &ar).contains("is an ar archive, not a disk"));
    fs::copy(place.path("disk.img"), place.path("disk.tar")).expect("copied");
    place.ezio_ok(&["image", "import", &place.text("disk.tar"), "--name", "disk"]);
}

#[test]
fn compressed_disks_are_refused_with_what_to_do() {
    need(&["mkfs.ext4", "gzip", "bzip2", "xz", "zstd", "lz4"]);
    let place = Place::new();
    disk(&place);
    for how in ["gzip -c", "bzip2 -c", "xz -c", "xz -c --format=lzma", "zstd -qc", "lz4 -qc", "lz4 -qcl"] {
        let file = packed(&place, "disk.bin", &format!("{how} disk.img >disk.bin"));
        let said = refused(&place, &file);
        let program = how.split(' ').next().expect("a word");
        assert!(said.contains("compressed") && said.contains(program), "{how}: {said}");
    }
    // compress(1) is rare: its head, and what is compressed is never looked at.
    fs::write(place.path("disk.Z"), [b"\x1f\x9d\x90".as_slice(), &[7; 5000]].concat()).expect("write");
    let said = refused(&place, &place.text("disk.Z"));
    assert!(said.contains("decompress it first (`gzip -dc"), "{said}");
}

#[test]
fn what_other_imagers_made_is_refused_with_what_to_do() {
    need(&["mkfs.ntfs", "ntfsclone"]);
    let place = Place::new();
    let ntfs = place.blank("ntfs.img", 8);
    run("mkfs.ntfs", &["-q", "-F", "-Q", &ntfs]);
    let saved = place.text("ntfs.saved");
    run("ntfsclone", &["-q", "--save-image", "--output", &saved, &ntfs]);
    let said = refused(&place, &saved);
    assert!(said.contains("an image that ntfsclone made") && said.contains("ntfsclone --restore-image"), "{said}");
    // And that is what it takes.
    let back = place.text("disk.img");
    run("ntfsclone", &["-q", "--restore-image", "--overwrite", &back, &saved]);
    place.ezio_ok(&["image", "import", &back, "--name", "back"]);
    place.ezio_ok(&["image", "remove", "back"]);

    let koly = [b"koly\0\0\0\x04\0\0\x02\0".as_slice(), &[0; 500]].concat();
    for (name, start, end, words) in [
        ("app.wim", b"MSWIM\0\0\0\xd0\0\0\0\0\x0d\x01\0".as_slice(), [].as_slice(), "a Windows image (WIM)"),
        ("app.ffu", b"\x20\0\0\0SignedImage ", &[], "a full flash update of Windows (FFU)"),
        ("app.gho", b"\xfe\xef\x01\x00", &[], "Norton Ghost"),
        ("app.dmg", &[], &koly, "a disk image of Apple's (DMG)"),
        ("app.html", b"<!DOCTYPE html>", &[], "a web page"),
    ] {
        fs::write(place.path(name), [start, &[0; 70_000], end].concat()).expect("write");
        let said = refused(&place, &place.text(name));
        assert!(said.contains(words) && said.contains(", not a disk: "), "{name}: {said}");
    }
}

#[test]
fn encrypted_files_are_refused_with_what_to_do() {
    need(&["mkfs.ext4", "openssl"]);
    let place = Place::new();
    disk(&place);
    let how = "openssl enc -aes-256-cbc -pbkdf2 -pass pass:x -in disk.img -out disk.enc";
    let said = refused(&place, &packed(&place, "disk.enc", how));
    assert!(said.contains("openssl encrypted") && said.contains("decrypt it first"), "{said}");
}

/// Somebody who wants every byte of the file says so, and gets it.
#[test]
fn an_archive_is_taken_whole_if_that_is_said() {
    need(&["tar"]);
    let place = Place::new();
    fs::write(place.path("file"), "hello").expect("write");
    let tar = packed(&place, "file.tar", "tar cf file.tar file");
    refused(&place, &tar);
    place.ezio_ok(&["image", "import", &tar, "--name", "tar", "--whole"]);
    assert_eq!(place.content("tar"), fs::read(&tar).expect("read"));
}

/// Hyper-V's checkpoints: the second flag of the file parameters, which no checksum covers.
#[test]
fn a_vhdx_of_differences_is_refused_in_words() {
    need(&["qemu-img"]);
    let place = Place::new();
    let vhdx = place.text("child.avhdx");
    run("qemu-img", &["create", "-q", "-f", "vhdx", &vhdx, "30M"]);
    let mut bytes = fs::read(&vhdx).expect("read");
    let parameters = b"\x37\x67\xa1\xca\x36\xfa\x43\x4d\xb3\xb6\x33\xf0\xaa\x44\xe7\x6b";
    let table = bytes.windows(8).position(|window| window == b"metadata").expect("its metadata");
    let entry = table + bytes[table..].windows(16).position(|window| window == parameters).expect("the parameters");
    let offset = u32::from_le_bytes(bytes[entry + 16..entry + 20].try_into().expect("four bytes"));
    bytes[table + offset as usize + 4] |= 2;
    fs::write(&vhdx, bytes).expect("write");
    let said = refused(&place, &vhdx);
    assert!(said.contains("is only a part") && said.contains("merge both"), "{said}");
}

/// Of version 2 alone, and with an `info` that is none; both were the words of a library before.
#[test]
fn torrents_that_are_not_read_are_named() {
    let place = Place::new();
    let tree = "9:file treed1:xd0:d6:lengthi5e11:pieces root32:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaeee";
    let v2 = format!("d4:infod{tree}12:meta versioni2e4:name1:x12:piece lengthi16384eee");
    for (torrent, words) in [
        (v2.as_str(), "this is a v2 torrent; EZIO reads v1 (and hybrid) torrents"),
        ("d4:info5:helloe", "info is not a dictionary"),
    ] {
        let path = place.text("x.torrent");
        fs::write(&path, torrent).expect("write");
        fs::create_dir_all(place.path("bt")).expect("a directory");
        let import = place.ezio_refuses(&["image", "import", &path, &place.text("bt"), "--name", "x"]);
        assert!(import.contains(words), "{import}");
        let restore = place.ezio_refuses(&["restore", &path, &place.text("target"), "--yes"]);
        assert!(restore.contains(words), "{restore}");
        assert!(!place.path("target").exists());
    }
    fs::rename(place.path("x.torrent"), place.path("x.img")).expect("renamed");
    fs::write(place.path("x.img"), "d4:infod6:lengthi5eee").expect("write");
    assert!(refused(&place, &place.text("x.img")).contains("is a torrent"));
}

/// A stream of gpg, whose heads have no mark of their own.
#[test]
fn what_gpg_encrypted_is_refused() {
    let place = Place::new();
    if command("gpg").arg("--version").stdout(Stdio::null()).status().is_err() {
        let _ = writeln!(std::io::stderr(), "skipped: gpg is not installed");
        return;
    }
    disk(&place);
    let home = place.text("gnupg");
    fs::create_dir(&home).expect("a directory");
    run("chmod", &["700", &home]);
    for armor in ["", "--armor"] {
        let how = format!(
            "gpg --homedir '{home}' --batch --yes --quiet --pinentry-mode loopback --passphrase x {armor} -o disk.gpg -c disk.img"
        );
        let said = refused(&place, &packed(&place, "disk.gpg", &how));
        assert!(said.contains("an OpenPGP message") && said.contains("gpg -d"), "{said}");
    }
    let _ = command("gpgconf").args(["--homedir", &home, "--kill", "all"]).status();
}

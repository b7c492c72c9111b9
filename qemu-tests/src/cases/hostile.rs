//! Torrents and orders that must be refused: the reason is on console and server, and no byte is written to the disk.

use std::fs;

use anyhow::{Context, Result, ensure};
use metainfo::{FileEntry, NewTorrent};

use crate::disk::{Bus, Disk};
use crate::foreign::Dnsmasq;
use crate::machine::MachineSpec;
use crate::network::SERVER_IP;
use crate::rack::Rack;
use crate::server::{HTTP_PORT, Server, ServerConfig};

const PIECE_LEN: u32 = 64 * 1024;
const DISK_MIB: u64 = 64;

pub fn hostile_torrents(rack: &mut Rack) -> Result<()> {
    let server = rack.serve(ServerConfig::reports_only())?;
    let root = rack.folder().join("tftp");
    for dir in ["torrents", "ezio.conf"] {
        fs::create_dir_all(root.join(dir)).context("creating the TFTP tree")?;
    }
    let _dnsmasq = Dnsmasq::dhcp_and_tftp(Some(&root))?;
    let past_the_end = torrent(&[(0, 65_536), (DISK_MIB << 20, 65_536)])?;
    let sound = torrent(&[(0, 65_536), (65_536, 65_536)])?;
    let overlapping = replaced(&sound, &offset(65_536), &offset(4_096))?;
    let not_hex = replaced(&sound, &offset(65_536), &offset(65_536).replace("10000", "../.."))?;
    let cases: [(&str, Vec<u8>, &str); 5] = [
        ("past-the-end", past_the_end, "needs a disk of at least"),
        ("overlapping", overlapping, "starts before the file in front of it ends"),
        ("not-hex", not_hex, "named by their offset"),
        ("truncated", sound[..sound.len() / 2].to_vec(), "refusing torrents/truncated.torrent"),
        ("not-bencode", b"<html>404 not found</html>".to_vec(), "refusing torrents/not-bencode.torrent"),
    ];
    for (number, (name, torrent, words)) in (1..).zip(cases) {
        fs::write(root.join("torrents").join(format!("{name}.torrent")), torrent).context("writing a torrent")?;
        fs::write(root.join("ezio.conf/default"), conf(name)).context("writing ezio.conf")?;
        expect_refusal(rack, &server, name, number, words).with_context(|| format!("the torrent {name}"))?;
    }
    fs::write(root.join("torrents/sound.torrent"), sound).context("writing a torrent")?;
    let newer = format!("{}FORMAT=2\n", conf("sound"));
    let no_text = [conf("sound").as_bytes(), b"TARGET=serial=\xff\n"].concat();
    let orders = [
        ("newer", newer.into_bytes(), "format 2, and this boot image knows formats up to 1"),
        ("no-text", no_text, "is not text"),
    ];
    for (number, (name, order, words)) in (10..).zip(orders) {
        fs::write(root.join("ezio.conf/default"), order).context("writing ezio.conf")?;
        expect_refusal(rack, &server, name, number, words).with_context(|| format!("the order {name}"))?;
    }
    Ok(())
}

fn conf(name: &str) -> String {
    format!(
        "TORRENT=torrents/{name}.torrent\nIMAGE={name}\nTRACKER=http://{SERVER_IP}:{HTTP_PORT}/announce\n\
         REPORT=http://{SERVER_IP}:{HTTP_PORT}/report\n"
    )
}

fn expect_refusal(rack: &mut Rack, server: &Server, name: &str, number: u8, words: &str) -> Result<()> {
    let disk = Disk::patterned(&rack.disk_path(name), DISK_MIB << 20)?;
    let spec = MachineSpec::new(name, number).direct(&rack.paths.boot, "").disk(&disk, Bus::Virtio);
    let mut machine = rack.power_on(&spec)?;
    let line = machine.wait_for_failure()?;
    ensure!(line.contains(words), "the console does not say {words:?}: {line}");
    let report = server.wait_for_report(&machine, "failed", |report| report.error.is_some())?;
    ensure!(report.error.is_some_and(|error| error.contains(words)), "the report does not say {words:?}");
    let table = server.status_table()?;
    // The table wraps long reasons.
    let unwrapped = table.split_whitespace().collect::<Vec<_>>().join(" ");
    ensure!(unwrapped.contains(words), "`ezio status` does not say {words:?}:\n{table}");
    machine.pull_plug();
    disk.expect_untouched()
}

fn offset(disk: u64) -> String {
    format!("{disk:032x}")
}

/// A well-formed torrent with these extents: offset on the disk and length.
fn torrent(extents: &[(u64, u64)]) -> Result<Vec<u8>> {
    let files = extents.iter().map(|&(disk, length)| FileEntry { length, path: vec![offset(disk)] }).collect();
    let content: u64 = extents.iter().map(|(_, len)| len).sum();
    let hashes = vec![[0; 20]; usize::try_from(content.div_ceil(PIECE_LEN.into()))?];
    let new = NewTorrent {
        name: "hostile".into(),
        announce: None,
        piece_len: PIECE_LEN,
        files,
        hashes,
        facts: None,
        private: true,
    };
    new.to_bytes().context("making a torrent")
}

/// Replaces a text with another of the same length, so that the bencode stays valid.
fn replaced(torrent: &[u8], from: &str, to: &str) -> Result<Vec<u8>> {
    ensure!(from.len() == to.len(), "{from:?} and {to:?} differ in length");
    let at = torrent.windows(from.len()).position(|window| window == from.as_bytes());
    let at = at.with_context(|| format!("{from:?} is not in the torrent"))?;
    let mut torrent = torrent.to_vec();
    torrent[at..at + to.len()].copy_from_slice(to.as_bytes());
    Ok(torrent)
}

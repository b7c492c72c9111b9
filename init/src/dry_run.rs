//! A dry run: what this machine would do, and how fast it could, without a single write.

use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

use layout::Layout;
use metainfo::Metainfo;
use restore::Sample;

/// The network is measured for so long at most.
const MEASURE: Duration = Duration::from_secs(3);
/// How long the server may take to answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What was found out, in a line for screen and server. `words` names the disk and what is on it; `interface` is the network
/// card in use; `boot_url` something large that the server has.
pub fn words(
    meta: &Metainfo,
    layout: &Layout,
    words: &str,
    sample: Sample,
    interface: &str,
    boot_url: Option<&str>,
) -> String {
    let len = units::size(meta.geometry.content_len());
    let there = match (sample.right, sample.looked_at) {
        (0, _) => "none of it is there yet".to_owned(),
        (right, looked_at) => format!("{right} of {looked_at} sampled pieces are already there"),
    };
    let smallest = units::size(layout.disk_size());
    let disk_rate = rate(sample.bytes, sample.took);
    let network = match boot_url.map(measure) {
        Some(Ok(bytes_per_s)) => format!("the network delivers {}", units::rate(bytes_per_s)),
        Some(Err(cause)) => format!("the network could not be measured ({cause})"),
        None => "the network was not measured (ezio.conf names no BOOT)".to_owned(),
    };
    let link = link_speed(interface).map(|mbit| format!(" on a link of {mbit} Mbit/s")).unwrap_or_default();
    format!(
        "dry run, nothing was written: would write {len} to {words}; it fits (at least {smallest} are needed); {there}; \
         the disk reads {}; {network}{link}",
        units::rate(disk_rate)
    )
}

/// Fetches for a few seconds and counts.
fn measure(url: &str) -> Result<u64, String> {
    let config = ureq::Agent::config_builder().timeout_connect(Some(TIMEOUT)).timeout_recv_response(Some(TIMEOUT));
    // The server may lose its power in the middle.
    let agent = ureq::Agent::new_with_config(config.timeout_recv_body(Some(MEASURE + TIMEOUT)).build());
    let answer = agent.get(url).call().map_err(|cause| format!("{url}: {cause}"))?;
    let mut body = answer.into_body().into_reader();
    let mut buf = vec![0; 256 * 1024];
    let started = Instant::now();
    let mut bytes: u64 = 0;
    while started.elapsed() < MEASURE {
        match body.read(&mut buf) {
            Ok(0) => break,
            Ok(len) => bytes += u64::try_from(len).expect("fits"),
            Err(cause) => return Err(format!("{url}: {cause}")),
        }
    }
    Ok(rate(bytes, started.elapsed()))
}

fn rate(bytes: u64, took: Duration) -> u64 {
    let millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX).max(1);
    bytes.saturating_mul(1000) / millis
}

/// Mbit/s, where the driver knows.
fn link_speed(interface: &str) -> Option<u32> {
    let text = std::fs::read_to_string(Path::new("/sys/class/net").join(interface).join("speed")).ok()?;
    text.trim().parse().ok().filter(|&mbit| mbit > 0)
}

/// The initramfs, which is large, in the boot directory of a server.
pub fn initramfs(boot_url: &str) -> String {
    format!("{}/initrd.img", boot_url.trim_end_matches('/'))
}

//! What another server offers: the torrent of an image, and its manifest from beside it.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use layout::Layout;
use metainfo::Metainfo;

use library::Listed;
use library::check_name;
use library::manifest::Manifest;

/// Largest manifest or list fetched, in bytes.
const JSON_LEN_MAX: u64 = 16 << 20;
/// How long a server gets to take a connection, and then to begin its answer.
const ANSWER: Duration = Duration::from_secs(30);
/// How long a whole answer may take; a large torrent over a slow line has 20 MB.
const WHOLE: Duration = Duration::from_secs(600);
/// How often a server that has just started is asked again, and the pause between.
const NOT_READY_TRIES: u32 = 60;
const NOT_READY_PAUSE: Duration = Duration::from_secs(1);

/// An image that can be had.
#[derive(Debug)]
pub struct Offer {
    /// Where it is: URL, or absolute path of the torrent.
    pub source: String,
    /// What it will be called.
    pub name: String,
    /// The torrent as it came.
    pub torrent: Vec<u8>,
    /// The same, parsed and checked.
    pub meta: Metainfo,
    /// Where its content lives on a disk.
    pub layout: Layout,
    /// Its manifest, if there is one; it agrees with the torrent.
    pub manifest: Option<Manifest>,
}

/// A source as it is written down: URLs as they are, files with their whole path.
///
/// # Errors
/// If it is neither a URL that can be asked nor a path.
pub fn full_name(source: &str) -> anyhow::Result<String> {
    if is_url(source) {
        return Ok(source.to_owned());
    }
    ensure!(
        !source.contains("://"),
        "{source} cannot be asked: only http:// can. What is on an https server, fetch with curl -O and pull the .torrent file"
    );
    ensure!(!source.starts_with("magnet:"), "a magnet link names no image: give the URL of its torrent");
    let path = std::path::absolute(source).with_context(|| format!("finding {source}"))?;
    Ok(path.to_str().context("the path of the torrent is not text")?.to_owned())
}

/// Fetches and checks what `source` offers; `name` is what the image shall be called if not as its torrent.
///
/// # Errors
/// Why it cannot be had, and what to do about it there or here.
pub fn offer(source: &str, name: Option<&str>, stop: &AtomicBool) -> anyhow::Result<Offer> {
    let path = if is_url(source) { source.split(['?', '#']).next().unwrap_or(source) } else { source };
    let (beside, file) = path.rsplit_once('/').context("a torrent has a name")?;
    let stem = file.strip_suffix(".torrent").unwrap_or(file);
    let name = name.unwrap_or(stem).to_owned();
    check_name(&name).context("give another with --name")?;

    let torrent = read(source, metainfo::TORRENT_LEN_MAX, stop)?;
    let torrent = match torrent {
        Some(bytes) => bytes,
        None if is_url(source) => return Err(not_there(source, &format!("{beside}/"), stem, stop)),
        None => bail!("there is no file {source}"),
    };
    let reading = || format!("reading the torrent {source}");
    let meta = Metainfo::parse(&torrent).with_context(reading)?;
    let layout = Layout::new(&meta).with_context(reading)?;

    let manifest_source = format!("{beside}/{stem}.json");
    let manifest = match read(&manifest_source, JSON_LEN_MAX, stop)? {
        None => {
            log::warn!("there is no {manifest_source}: the manifest is made from the torrent");
            None
        }
        Some(bytes) => {
            let checking = || format!("checking the manifest {manifest_source}");
            let manifest = Manifest::parse(&bytes).with_context(checking)?;
            check(&manifest, &meta, &layout).with_context(checking)?;
            Some(manifest)
        }
    };
    Ok(Offer { source: source.to_owned(), name, torrent, meta, layout, manifest })
}

fn is_url(source: &str) -> bool {
    source.starts_with("http://")
}

/// Whether a manifest says the same as the torrent.
fn check(manifest: &Manifest, meta: &Metainfo, layout: &Layout) -> anyhow::Result<()> {
    let infohash = meta.infohash.to_string();
    ensure!(
        manifest.infohash == infohash,
        "it belongs to infohash {}, the torrent is {infohash}: the image is being replaced there, so try again; \
         if it stays, capture it there again",
        manifest.infohash
    );
    let agree = |what: &str, says: u64, is: u64| {
        ensure!(says == is, "it says {what} {says}, the torrent says {is}: it was changed");
        Ok(())
    };
    agree("content_len", manifest.content_len, layout.content_len())?;
    agree("extent_count", manifest.extent_count, layout.extents().len() as u64)?;
    let Some(facts) = &meta.facts else { return Ok(()) };
    agree("disk_size", manifest.disk_size, facts.disk_size)?;
    agree("zeros_len", manifest.zeros_len, facts.zeros.len())?;
    agree("sector_size", u64::from(manifest.sector_size), u64::from(facts.sector_size))?;
    ensure!(
        manifest.table == facts.table,
        "it says table {:?}, the torrent says {:?}: it was changed",
        manifest.table,
        facts.table
    );
    Ok(())
}

/// A file or what is behind a URL; `None` if it is not there.
fn read(source: &str, limit: u64, stop: &AtomicBool) -> anyhow::Result<Option<Vec<u8>>> {
    if is_url(source) {
        return get(source, limit, stop);
    }
    let path = Path::new(source);
    let opening = || format!("opening {source}");
    let len = match fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        found => found.with_context(opening)?.len(),
    };
    ensure!(len <= limit, "{source} has {len} bytes, more than the {limit} such a file may have");
    fs::read(path).map(Some).with_context(opening)
}

fn get(url: &str, limit: u64, stop: &AtomicBool) -> anyhow::Result<Option<Vec<u8>>> {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_resolve(Some(ANSWER))
        .timeout_connect(Some(ANSWER))
        .timeout_recv_response(Some(ANSWER))
        .timeout_global(Some(WHOLE))
        .build()
        .into();
    for _ in 0..NOT_READY_TRIES {
        ensure!(!stop.load(Ordering::Relaxed), "interrupted");
        let answer = agent.get(url).call();
        let mut answer = answer.with_context(|| {
            format!("{url}: no answer; check the address, that `ezio serve` runs there, and the firewalls in between")
        })?;
        match answer.status().as_u16() {
            200 => {
                let body = answer.body_mut().with_config().limit(limit).read_to_vec();
                return body.map(Some).with_context(|| format!("fetching {url}"));
            }
            404 => return Ok(None),
            503 => std::thread::sleep(NOT_READY_PAUSE),
            status => bail!("{url}: the server answers with status {status} instead of a file"),
        }
    }
    bail!("{url}: the server has had no time for it for a minute: look at its log there")
}

/// Why a torrent is not there.
fn not_there(url: &str, list_url: &str, name: &str, stop: &AtomicBool) -> anyhow::Error {
    let list = get(list_url, JSON_LEN_MAX, stop).ok().flatten();
    match list.and_then(|bytes| serde_json::from_slice::<Vec<Listed>>(&bytes).ok()) {
        Some(list) => {
            let names: Vec<&str> = list.iter().map(|listed| listed.name.as_str()).collect();
            let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            anyhow::anyhow!("{url} is not there: that server publishes no image {name:?}; images it has: {names}")
        }
        None => anyhow::anyhow!(
            "{url} is not there (404): if `ezio serve` runs there, it does not publish its images; set publish = true in \
             its config, or start it with --publish true"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_can_be_asked_is_a_source() {
        for (source, why) in [("https://b/images/x.torrent", "only http://"), ("magnet:?xt=1", "magnet")] {
            let error = full_name(source).expect_err(source).to_string();
            assert!(error.contains(why), "{error}");
        }
        assert_eq!(full_name("http://b/images/x.torrent").expect("good"), "http://b/images/x.torrent");
        assert!(full_name("x.torrent").expect("good").starts_with('/'));
    }
}

//! HTTP: boot script, kernel and initramfs, torrents, tracker, reports, status, published images.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{ConnectInfo, DefaultBodyLimit, Path, Query, RawQuery, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use netboot::MacAddr;
use report::Report;
use seal::{PROOF_HEADER, Proof};
use serde::Deserialize;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::room::identity::Identity;
use crate::room::status::Status;
use crate::room::table::table;
use crate::room::{ReportError, Room, count};
use crate::services::binding::{self, Binding};
use crate::services::boot_script;
use crate::services::listener::{Ends, LimitedListener};
use crate::services::stop::stopped;
use crate::services::tracker::TrackerService;
use netboot::loaders::BOOT_FILES;

/// Largest report; a real one has two kilobytes.
const MAX_BODY: usize = 64 << 10;
/// Read from disk at a time when a file goes out.
const CHUNK: usize = 256 << 10;

mod origin;
pub mod published;

#[derive(Clone)]
struct App {
    room: Arc<Room>,
    tracker: Arc<TrackerService>,
}

/// Opens the port on one address.
///
/// # Errors
/// A port in use or a missing right.
pub async fn bind(room: &Room, binding: &Binding) -> anyhow::Result<TcpListener> {
    let port = room.settings.http_port();
    let listener = TcpListener::bind((binding.address, port)).await;
    listener.map_err(|error| binding::explain(error, "HTTP", binding.address, port, false, "http_port"))
}

/// Serves until told to stop.
pub async fn run(
    room: Arc<Room>,
    tracker: Arc<TrackerService>,
    listener: TcpListener,
    mut stop: watch::Receiver<bool>,
) {
    let router = Router::new()
        .route("/", get(page))
        .route("/status.json", get(status))
        .route("/boot.ipxe", get(script))
        .route("/boot/{name}", get(boot_file))
        .route("/torrents/{name}", get(torrent))
        .route("/images/", get(published::list))
        .route("/images/{file}", get(published::file))
        .route("/announce", get(announce))
        .route("/report", post(report))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(axum::middleware::from_fn_with_state(room.clone(), origin::check))
        .with_state(App { room, tracker });
    let service = router.into_make_service_with_connect_info::<Ends>();
    tokio::select! {
        served = axum::serve(LimitedListener::new(listener), service) => {
            if let Err(error) = served {
                log::error!("HTTP has stopped: {error}; restart the server");
            }
        }
        // Not gracefully: a machine that fetches a kernel retries, and the person who stops us does not want to wait.
        () = stopped(&mut stop) => {}
    }
}

#[derive(Deserialize)]
struct ScriptQuery {
    mac: Option<String>,
    #[serde(default)]
    uuid: String,
    #[serde(default)]
    serial: String,
}

async fn script(State(app): State<App>, ends: ConnectInfo<Ends>, query: Query<ScriptQuery>) -> Response {
    let address = ipv4(ends.local);
    let text = match query.mac.as_deref().map(str::parse::<MacAddr>) {
        None => boot_script::script_for_anybody(&app.room, address),
        Some(Ok(mac)) if !mac.is_unicast() => {
            count(&app.room.counters.http_bad);
            return (StatusCode::BAD_REQUEST, format!("{mac} is no machine's MAC address\n")).into_response();
        }
        Some(Ok(mac)) => {
            // First who it is: another machine may have the card now.
            app.room.asked(mac, "boot script", &Identity::of(&query.uuid, &query.serial));
            let script = boot_script::script(&app.room, mac, address);
            log::debug!("{mac} fetches its boot script");
            script
        }
        Some(Err(error)) => {
            count(&app.room.counters.http_bad);
            return (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response();
        }
    };
    ([(header::CONTENT_TYPE, "text/plain"), (header::CACHE_CONTROL, "no-store")], text).into_response()
}

async fn boot_file(
    State(app): State<App>,
    ends: ConnectInfo<Ends>,
    method: Method,
    Path(name): Path<String>,
) -> Response {
    let Some(name) = BOOT_FILES.into_iter().find(|known| *known == name) else { return not_found() };
    let path = app.room.boot_dir.join(name);
    let opened = match tokio::fs::File::open(&path).await {
        Ok(file) => file.metadata().await.map(|facts| (file, facts.len())),
        Err(error) => Err(error),
    };
    let (file, len) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            log::error!("{} cannot be read: {error}; run `make image`", path.display());
            return not_found();
        }
    };
    log::debug!("{} fetches {name} by HTTP, {len} bytes", ends.from);
    let body = if method == Method::HEAD { Body::empty() } else { stream(file, len) };
    let headers =
        [(header::CONTENT_LENGTH, len.to_string()), (header::CONTENT_TYPE, "application/octet-stream".into())];
    (headers, body).into_response()
}

/// Exactly `len` bytes of a file, in chunks; a file that shrinks meanwhile ends the connection, not the server.
fn stream(file: tokio::fs::File, len: u64) -> Body {
    let chunks = futures_lite::stream::try_unfold((file, len), |(mut file, left)| async move {
        let mut chunk = vec![0; usize::try_from(left).unwrap_or(CHUNK).min(CHUNK)];
        if chunk.is_empty() {
            return Ok(None);
        }
        file.read_exact(&mut chunk).await?;
        let left = left - chunk.len() as u64;
        Ok::<_, std::io::Error>(Some((Bytes::from(chunk), (file, left))))
    });
    Body::from_stream(chunks)
}

async fn torrent(State(app): State<App>, Path(name): Path<String>) -> Response {
    let Some(name) = name.strip_suffix(".torrent") else { return not_found() };
    match app.room.torrent(name) {
        Ok(Some(image)) => {
            ([(header::CONTENT_TYPE, "application/x-bittorrent")], image.torrent_bytes.clone()).into_response()
        }
        Ok(None) => not_found(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn announce(State(app): State<App>, ends: ConnectInfo<Ends>, RawQuery(query): RawQuery) -> Response {
    let query = query.unwrap_or_default();
    let local = ends.local.ip().to_canonical();
    let reply = app.tracker.announce(&query, ends.from.ip(), local).unwrap_or_else(|refusal| {
        count(&app.room.counters.announces_bad);
        refusal
    });
    ([(header::CONTENT_TYPE, "text/plain")], reply).into_response()
}

async fn report(State(app): State<App>, ends: ConnectInfo<Ends>, headers: HeaderMap, body: Bytes) -> Response {
    let taken = match serde_json::from_slice::<Report>(&body) {
        Ok(mut report) => {
            if report.ip.is_empty() {
                report.ip = ends.from.ip().to_canonical().to_string();
            }
            let proof = headers.get(PROOF_HEADER).and_then(|proof| proof.to_str().ok()?.parse::<Proof>().ok());
            app.room.report(report, proof.map(|proof| (proof, &*body)), ends.from.ip().to_canonical()).await
        }
        Err(error) => Err(ReportError::Refused(error.to_string())),
    };
    match taken {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(ReportError::NotKept(why)) => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("not kept: {why}\n")).into_response()
        }
        Err(ReportError::Refused(error)) => {
            count(&app.room.counters.reports_bad);
            log::debug!("a report from {} is refused: {error}", ends.from);
            (StatusCode::BAD_REQUEST, format!("not taken: {error}\n")).into_response()
        }
    }
}

async fn status(State(app): State<App>) -> Response {
    axum::Json(Status::of(&app.room)).into_response()
}

async fn page(State(app): State<App>, headers: HeaderMap) -> Response {
    let table = table(&Status::of(&app.room));
    let wants_html =
        headers.get(header::ACCEPT).is_some_and(|accept| accept.as_bytes().windows(4).any(|w| w == b"html"));
    if !wants_html {
        return table.into_response();
    }
    let table = table.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let page = format!(
        "<!doctype html><meta charset=\"utf-8\"><meta http-equiv=\"refresh\" content=\"2\"><title>EZIO</title>\n\
         <pre>{table}</pre>\n"
    );
    ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], page).into_response()
}

fn not_found() -> Response {
    (StatusCode::NOT_FOUND, "not found\n").into_response()
}

fn ipv4(addr: SocketAddr) -> Ipv4Addr {
    match addr.ip().to_canonical() {
        IpAddr::V4(address) => address,
        // We listen on IPv4 only.
        IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
    }
}

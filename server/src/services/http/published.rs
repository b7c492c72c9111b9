//! The images as other sites' servers see them, while the library is published: a list, torrents, manifests.
//!
//! A torrent goes out with an announce URL of this server. That is outside `info`, so the infohash stays what it is.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{ConnectInfo, Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::App;
use crate::services::listener::Ends;
use library::Listed;
use library::torrent_file;
use terminal::Throttle;

/// Lines in the log about fetched torrents.
static FETCHED: Throttle = Throttle::new(100, Duration::from_secs(60));
/// Longest host name in a URL of ours: a DNS name has at most 253 characters, and a port may follow.
const HOST_LEN_MAX: usize = 260;

pub(super) async fn list(State(app): State<App>) -> Response {
    if !app.room.settings.publish() {
        return not_published();
    }
    let list: Vec<Listed> = app
        .room
        .images()
        .iter()
        .map(|image| Listed {
            name: image.name.clone(),
            infohash: image.meta.infohash.to_string(),
            content_len: image.layout.content_len(),
            disk_size: image.manifest.disk_size,
            torrent: format!("/images/{}.torrent", image.name),
            manifest: format!("/images/{}.json", image.name),
        })
        .collect();
    axum::Json(list).into_response()
}

pub(super) async fn file(
    State(app): State<App>,
    ends: ConnectInfo<Ends>,
    headers: HeaderMap,
    Path(file): Path<String>,
) -> Response {
    if !app.room.settings.publish() {
        return not_published();
    }
    let Some((name, kind)) = file.rsplit_once('.') else { return super::not_found() };
    let Some(image) = app.room.images().into_iter().find(|image| image.name == name) else {
        // A client that has the torrent announces at once, so it gets none before the tracker knows the image.
        return match app.room.library.names() {
            Ok(names) if names.iter().any(|known| known == name) => {
                (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "1")], "not ready yet, or damaged\n")
                    .into_response()
            }
            _ => super::not_found(),
        };
    };
    match kind {
        "torrent" => {
            let announce = format!("http://{}/announce", host(&headers, &ends));
            match torrent_file::parts(&image.torrent_bytes, Some(&announce)) {
                Ok(parts) => {
                    if let Some(more) = FETCHED.pass() {
                        log::info!("{} fetches the torrent of image {name}{more}", ends.from);
                    }
                    let len: usize = parts.iter().map(Bytes::len).sum();
                    let headers = [
                        (header::CONTENT_LENGTH, len.to_string()),
                        (header::CONTENT_TYPE, "application/x-bittorrent".into()),
                    ];
                    let parts = futures_lite::stream::iter(parts.map(Ok::<_, Infallible>));
                    (headers, Body::from_stream(parts)).into_response()
                }
                Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}\n")).into_response(),
            }
        }
        "json" => ([(header::CONTENT_TYPE, "application/json")], image.manifest.for_others().to_json()).into_response(),
        _ => super::not_found(),
    }
}

/// How the client calls us, which also holds behind a port forward; else the address it reached.
fn host(headers: &HeaderMap, ends: &Ends) -> String {
    let named = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let is_plain = |host: &&str| {
        (1..=HOST_LEN_MAX).contains(&host.len())
            && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte))
    };
    named.filter(is_plain).map_or_else(|| ends.local.to_string(), str::to_owned)
}

fn not_published() -> Response {
    (
        StatusCode::NOT_FOUND,
        "this server does not publish its images: set publish = true, or start it with --publish true\n",
    )
        .into_response()
}

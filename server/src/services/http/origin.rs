//! Which names browsers may use for this server, and which pages may talk to it.
//!
//! A page from anywhere, open in a browser in the room, could send reports (it needs no permission for a simple POST), and
//! by a name of its own that it lets point to this server it could read the status (DNS rebinding). So a request that names
//! the page that it comes from (`Origin`, RFC 6454) is answered only if that is a page of ours, and the `Host` has to be an
//! address, or a name that nobody outside can own.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::room::{Room, count};

/// Ends of names that cannot be registered by anybody (RFC 6762, RFC 8375, RFC 6761, ICANN 2024).
const PRIVATE: [&str; 6] = [".local", ".lan", ".internal", ".home.arpa", ".localdomain", ".localhost"];

/// Answers a request if it may come from where it comes from.
pub async fn check(State(room): State<Arc<Room>>, request: Request, next: Next) -> Response {
    match refused(request.headers(), &room.settings.http_names) {
        None => next.run(request).await,
        Some(why) => {
            count(&room.counters.http_bad);
            log::debug!("HTTP: {why}");
            (StatusCode::FORBIDDEN, format!("{why}\n")).into_response()
        }
    }
}

/// Why a request is not answered.
fn refused(headers: &HeaderMap, names: &[String]) -> Option<String> {
    let text = |name| headers.get(name).map(|value: &header::HeaderValue| value.to_str().unwrap_or("?"));
    let host = text(header::HOST);
    if let Some(host) = host.filter(|host| !is_ours(name_of(host), names)) {
        return Some(format!(
            "this server is not known as {:?}: use its IP address, or add the name to `http_names` in the config",
            name_of(host)
        ));
    }
    // Without a Host it is no browser.
    let own = format!("http://{}", host.unwrap_or_default());
    text(header::ORIGIN)
        .filter(|origin| !origin.eq_ignore_ascii_case(&own))
        .map(|origin| format!("a page of {origin:?} may not ask this server, {own}"))
}

fn name_of(host: &str) -> &str {
    if let Some((address, _)) = host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return address;
    }
    host.split_once(':').map_or(host, |(name, _)| name)
}

fn is_ours(name: &str, names: &[String]) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    let is_private = || !name.contains('.') || PRIVATE.iter().any(|end| name.ends_with(end));
    name.parse::<IpAddr>().is_ok() || is_private() || names.iter().any(|known| known.eq_ignore_ascii_case(&name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_pages_and_names_are_answered() {
        let names = ["boot.example.org".to_owned()];
        for (host, origin, is_answered) in [
            (Some("10.0.0.1"), None, true),
            (Some("10.0.0.1:8080"), None, true),
            (Some("[fe80::1]:80"), None, true),
            (None, None, true),
            (Some("ezio"), None, true),
            (Some("ezio.lan"), None, true),
            (Some("EZIO.local."), None, true),
            (Some("boot.example.org"), None, true),
            (Some("Boot.Example.org:80"), None, true),
            (Some("evil.example"), None, false),
            (Some("10.0.0.1.evil.example"), None, false),
            (Some("lan.evil.example:80"), None, false),
            (Some("10.0.0.1"), Some("http://10.0.0.1"), true),
            (Some("10.0.0.1:8080"), Some("http://10.0.0.1:8080"), true),
            (Some("10.0.0.1"), Some("http://10.0.0.2"), false),
            (Some("10.0.0.1"), Some("http://evil.example"), false),
            (Some("10.0.0.1"), Some("null"), false),
            (Some("evil.example"), Some("http://evil.example"), false),
            (None, Some("http://evil.example"), false),
        ] {
            let mut headers = HeaderMap::new();
            for (name, value) in [(header::HOST, host), (header::ORIGIN, origin)] {
                if let Some(value) = value {
                    headers.insert(name, value.parse().expect("a value"));
                }
            }
            assert_eq!(refused(&headers, &names).is_none(), is_answered, "{host:?} {origin:?}");
        }
    }
}

//! Asks a running server for its status.

use std::time::Duration;

use anyhow::Context;

use crate::room::status::Status;

/// How long the server may take to answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The URL of a server that a person names.
pub fn url_of(server: &str) -> String {
    let server = server.trim_end_matches('/');
    if server.contains("://") { server.to_owned() } else { format!("http://{server}") }
}

/// A client that does not wait for ever, and never asks a proxy of the environment: the server is on the LAN.
pub fn agent() -> ureq::Agent {
    ureq::Agent::config_builder().timeout_global(Some(TIMEOUT)).proxy(None).build().into()
}

/// What the server at `url` says of the room.
///
/// # Errors
/// If nobody answers there, or something that is no status.
pub fn fetch(agent: &ureq::Agent, url: &str) -> anyhow::Result<Status> {
    let asking = || format!("asking {url} for the status: does `ezio serve` run there?");
    let answer = agent.get(format!("{url}/status.json")).call().with_context(asking)?.body_mut().read_to_string();
    serde_json::from_str(&answer.with_context(asking)?).with_context(|| format!("reading what {url} said"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_needs_no_scheme() {
        for (server, url) in [
            ("127.0.0.1:8181", "http://127.0.0.1:8181"),
            ("images.lan/", "http://images.lan"),
            ("https://x/", "https://x"),
        ] {
            assert_eq!(url_of(server), url);
        }
    }
}

//! What several test programs need.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

/// Longer than anything takes on a slow machine.
const DEADLINE: Duration = Duration::from_secs(600);

/// Waits for a condition.
pub fn wait_for(what: &str, mut is_true: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_true() {
        assert!(started.elapsed() < DEADLINE, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A port that nobody else is given as long as the socket lives: it is bound and does not listen, which keeps out all but
/// those who ask for this very port and are ready to share (`SO_REUSEADDR`), as servers are.
pub fn free_port() -> (u16, Socket) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.set_reuse_address(true).expect("shared");
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).expect("a free port");
    let addr = socket.local_addr().ok().and_then(|addr| addr.as_socket()).expect("where it is bound");
    (addr.port(), socket)
}

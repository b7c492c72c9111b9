//! Looks for other servers of a network: asks for a network boot now and then, and listens to who offers one.
//!
//! It hears whole frames, so a DHCP client of this computer keeps its port and its packets.

use std::fs::File;
use std::io::Read;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use netboot::frames;
use netboot::rivals::{Question, ServerNumber, no_card, sighted};
use terminal::Throttle;
use tokio::sync::watch;

use crate::room::Room;
use crate::room::rivals::is_shown;
use crate::services::binding::Binding;
use crate::services::link::{LinkSocket, TO_DHCP_CLIENT};
use crate::services::stop::stopped;

/// How often is asked.
const ASK_EVERY: Duration = Duration::from_secs(30);
/// Pauses after the first questions: a switch may hold a port back for a while, and packets get lost.
const ASK_FIRST: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(8)];
/// Client architectures that are asked for: BIOS, x86-64 UEFI. Some servers answer only one of them.
const ARCHITECTURES: [u16; 2] = [0, 7];
/// Pause after a socket error, so that a vanished interface does not eat a core.
const ERROR_PAUSE: Duration = Duration::from_millis(500);

/// What offers may have us log: a few lines at once, then one a minute.
static FOUND: Throttle = Throttle::new(20, Duration::from_secs(60));

/// The number of this server.
pub fn server_number() -> ServerNumber {
    static NUMBER: OnceLock<ServerNumber> = OnceLock::new();
    *NUMBER.get_or_init(random)
}

fn random<const LEN: usize>() -> [u8; LEN] {
    let mut bytes = [0; LEN];
    if let Err(error) = File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes)) {
        log::warn!("reading /dev/urandom: {error}");
    }
    bytes
}

/// Looks until the signal to stop.
pub async fn run(room: Arc<Room>, binding: Binding, mut stop: watch::Receiver<bool>) {
    let socket = match LinkSocket::open(&binding.interface, frames::IPV4, &TO_DHCP_CLIENT) {
        Ok(socket) => socket,
        Err(error) => {
            log::warn!("{}: other DHCP and PXE servers will not be noticed: {error}", binding.interface);
            return;
        }
    };
    let mut asked = 0;
    let mut next = tokio::time::Instant::now();
    let mut frame = [0; 2048];
    loop {
        tokio::select! {
            () = tokio::time::sleep_until(next) => {
                next += ASK_FIRST.get(asked).copied().unwrap_or(ASK_EVERY);
                asked += 1;
                let card = socket.card();
                for arch in ARCHITECTURES {
                    let xid = u32::from_be_bytes(random());
                    let question = Question { mac: no_card(card), xid, arch, number: server_number() };
                    if let Some(frame) = frames::from_client(card, &question.message())
                        && let Err(error) = socket.send(&frame)
                    {
                        log::debug!("{}: asking for other servers failed: {error}", binding.interface);
                    }
                }
            }
            received = socket.receive(&mut frame) => match received {
                Ok(len) => look(&room, &binding, &frame[..len]),
                Err(_) => tokio::time::sleep(ERROR_PAUSE).await,
            },
            () = stopped(&mut stop) => break,
        }
    }
    room.rivals().forget(&binding.interface);
}

fn look(room: &Room, binding: &Binding, frame: &[u8]) {
    let Some(sighting) = frames::to_client(frame).and_then(sighted) else { return };
    // What we have sent on another card of this network.
    if room.bindings().iter().any(|ours| ours.address == sighting.server) {
        return;
    }
    if let Some(rival) = room.rivals().heard(&binding.interface, sighting)
        && is_shown(&rival, &room.settings)
        && let Some(more) = FOUND.pass()
    {
        log::warn!("{}{more}", rival.words(&room.settings));
    }
}

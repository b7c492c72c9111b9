//! Says what is obeyed, for the commands that wait for it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::room::Room;
use crate::room::reserve::Reserve;
use crate::services::stop::stopped;

/// How often the orders are looked at, also while no machine asks.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How often space is reserved again that was needed on a full disk.
const RESERVE_EVERY: Duration = Duration::from_secs(10);

/// Looks at the orders, until told to stop.
pub async fn run(room: Arc<Room>, mut stop: watch::Receiver<bool>) {
    let mut before = None;
    let reserve = Reserve::of(&room.library.state_dir());
    let mut reserved = Instant::now();
    loop {
        if reserved.elapsed() >= RESERVE_EVERY {
            reserved = Instant::now();
            let reserve = reserve.clone();
            if let Ok(Err(error)) = tokio::task::spawn_blocking(move || reserve.take()).await {
                log::debug!("no space can be reserved: {error}");
            }
        }
        let looking = room.clone();
        let look = tokio::task::spawn_blocking(move || {
            looking.book().acknowledge();
            looking.armed().images(&looking.settings)
        });
        if let Ok(images) = look.await {
            if before.as_ref().is_some_and(|before| *before != images) {
                log::info!("armed: {}", if images.is_empty() { "nothing".into() } else { images.join(", ") });
            }
            before = Some(images);
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = stopped(&mut stop) => break,
        }
    }
}

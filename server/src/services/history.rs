//! Writes what the machines have reported.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::room::Room;
use crate::services::stop::stopped;

/// How often the machines' last words are written; and how often at most, while a report waits for that.
const SAVE_EVERY: Duration = Duration::from_secs(1);
const SAVE_PAUSE: Duration = Duration::from_millis(20);

/// Writes the machines' history, until told to stop.
pub async fn run(room: Arc<Room>, mut stop: watch::Receiver<bool>) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(SAVE_EVERY) => {}
            () = room.history().wanted() => {}
            () = stopped(&mut stop) => break,
        }
        let saving = room.clone();
        let pause = tokio::task::spawn_blocking(move || saving.save_fleet()).await.unwrap_or_default();
        tokio::select! {
            () = tokio::time::sleep(pause.max(SAVE_PAUSE)) => {}
            () = stopped(&mut stop) => break,
        }
    }
}

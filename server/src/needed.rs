//! Which images machines may be fetching. Taken away, they lack their seeder; replaced, a room has half of it the old one.

use anyhow::bail;

use crate::armed::Armed;
use crate::library::Library;
use crate::serve::Running;

/// Fails if machines may be fetching the image of that name; `or_else` is what else could be done than `ezio disarm`.
///
/// # Errors
/// That it is armed, or that the running server's config gives it to somebody, and what to do.
pub fn refuse_if_needed(library: &Library, name: &str, or_else: &str) -> anyhow::Result<()> {
    let armed = Armed::load(&library.state_dir())?;
    let why = if armed.orders().iter().any(|order| order.image.as_deref() == Some(name)) {
        "is armed"
    } else if Running::find(library.dir())
        // What a config names, only a running server knows.
        .and_then(Running::settings)
        .is_ok_and(|settings| armed.images(&settings).iter().any(|image| image == name))
    {
        "is what the config of the running server gives to a group or machine, and the room is armed"
    } else {
        return Ok(());
    };
    bail!("image {name:?} {why}: machines may be fetching it, so run `ezio disarm` first{or_else}");
}

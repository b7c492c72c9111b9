//! Which images machines may be fetching: [`library::Guard`] of this server.

use library::Library;

use crate::room::book;
use crate::room::place;
use crate::room::running::ServerNote;

/// Why machines may be fetching the image of that name: it is armed, or the running server's config gives it to a machine.
///
/// # Errors
/// If what is armed cannot be read.
pub fn needed(library: &Library, name: &str) -> anyhow::Result<Option<&'static str>> {
    let library = &place::with_state(library.clone(), None);
    let armed = book::read(&library.state_dir())?;
    if armed.orders().iter().any(|order| order.image.as_deref() == Some(name)) {
        return Ok(Some("is armed"));
    }
    // Only a running server knows what its config names.
    let settings = ServerNote::find(library).and_then(ServerNote::settings);
    let is_given = settings.is_ok_and(|settings| armed.images(&settings).iter().any(|image| image == name));
    Ok(is_given
        .then_some("is what the config of the running server gives to a group or machine, and the room is armed"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::room::orders::Order;
    use crate::room::scope::Scope;

    #[test]
    fn what_is_armed_is_needed_until_it_is_disarmed() {
        let dir = tempfile::tempdir().expect("a directory");
        let library = Library::create(dir.path()).expect("made");
        let order = Order { image: Some("debian".into()), ..Order::hold(Scope::All) };
        assert_eq!(needed(&library, "debian").expect("read"), None);
        book::update(&library.state_dir(), |armed| armed.arm(order)).expect("written");
        assert_eq!(needed(&library, "debian").expect("read"), Some("is armed"));
        assert_eq!(needed(&library, "other").expect("read"), None);
        book::update(&library.state_dir(), |armed| armed.disarm(&Scope::All)).expect("written");
        assert_eq!(needed(&library, "debian").expect("read"), None);
    }
}

//! What is asked directly before the first write.

use std::fmt;
use std::sync::Arc;

type Ask = dyn Fn(&dyn Fn() -> bool) -> Result<(), String> + Send + Sync;

/// The last question before a disk is written to: whether it still is to be. Asked once, and only if something has to be
/// written.
#[derive(Clone)]
pub struct Permission(Arc<Ask>);

impl Permission {
    /// `ask` may block for as long as there is no answer; it gets a function that says when nobody waits any more, after which
    /// it has to return soon. An error is the refusal, in words for people.
    pub fn new(ask: impl Fn(&dyn Fn() -> bool) -> Result<(), String> + Send + Sync + 'static) -> Permission {
        Permission(Arc::new(ask))
    }

    pub(crate) fn ask(&self, is_over: &dyn Fn() -> bool) -> Result<(), String> {
        (self.0)(is_over)
    }
}

impl fmt::Debug for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Permission")
    }
}

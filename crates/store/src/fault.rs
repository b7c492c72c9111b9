//! Faults that a test orders, for the changes that its thread makes.

use std::cell::Cell;

/// What happens to the next change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The disk is full: nothing is written.
    Full,
    /// The power goes after the commit, before the witness is written.
    NoWitness,
}

thread_local! {
    static NEXT: Cell<Option<Fault>> = const { Cell::new(None) };
}

/// Orders a fault for the next change that this thread makes, or none.
pub fn next(fault: Option<Fault>) {
    NEXT.set(fault);
}

pub(crate) fn is_next(fault: Fault) -> bool {
    NEXT.get() == Some(fault) && {
        NEXT.set(None);
        true
    }
}

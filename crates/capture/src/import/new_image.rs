//! What is to become of an import.

use library::{Draft, Guard, Library};

/// The image that is to be made: where, and what it is called.
#[derive(Clone, Copy, Debug)]
pub struct NewImage<'a> {
    /// Where it is made.
    pub library: &'a Library,
    /// What it will be called.
    pub name: &'a str,
    /// Whether it may take the place of one of that name.
    pub replace: bool,
    /// Knows whether machines need that one.
    pub guard: Guard,
}

impl NewImage<'_> {
    /// Starts it.
    ///
    /// # Errors
    /// As [`Library::draft`].
    pub fn draft(&self) -> anyhow::Result<Draft> {
        self.library.draft(self.name, self.replace, self.guard)
    }
}

//! The image that an import makes.

use library::{Draft, Guard, Library};

/// The image that an import makes: its library and its name.
#[derive(Clone, Copy, Debug)]
pub struct NewImage<'a> {
    /// The library it goes to.
    pub library: &'a Library,
    /// Its name.
    pub name: &'a str,
    /// Whether it may replace an existing image of that name.
    pub replace: bool,
    /// Checks whether machines need that existing image.
    pub guard: Guard,
}

impl NewImage<'_> {
    /// Starts a draft.
    ///
    /// # Errors
    /// As for [`Library::draft`].
    pub fn draft(&self) -> anyhow::Result<Draft> {
        self.library.draft(self.name, self.replace, self.guard)
    }
}

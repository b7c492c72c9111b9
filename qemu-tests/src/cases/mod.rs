//! The stories. Each is one function of a screen or less; longest first, so that two at a time end together.

use anyhow::Result;

use crate::rack::Rack;

mod framework;

/// One story.
pub struct Case {
    /// Its name, also of its folder.
    pub name: &'static str,
    /// What it shows, in a line.
    pub what: &'static str,
    /// Tells it.
    pub run: fn(&mut Rack) -> Result<()>,
}

/// All of them.
pub const CASES: &[Case] = &[
    Case {
        name: "golden_disk_starts_in_bios",
        what: "the golden disk itself starts from every bus",
        run: framework::golden_bios,
    },
    Case {
        name: "golden_disk_starts_in_uefi",
        what: "the golden disk itself starts in UEFI",
        run: framework::golden_uefi,
    },
    Case { name: "rack_itself_boots_direct", what: "x", run: framework::direct },
    Case { name: "rack_itself_pxe", what: "x", run: framework::pxe },
];

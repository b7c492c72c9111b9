//! The parts without I/O, tried with everything: wire, picker, super-seeding, tracker, announce replies.

mod picker;
mod super_seeding;
mod tracker;
mod wire;

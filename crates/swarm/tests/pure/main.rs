//! The parts without I/O, tried with everything: wire, picker, reveal, tracker, announce replies.

mod picker;
mod reveal;
mod tracker;
mod wire;

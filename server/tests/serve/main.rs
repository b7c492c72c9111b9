//! `ezio serve` as machines and people meet it: the real binary in a separate network namespace, foreign clients in
//! another one, and nothing outside of them touched.

mod lan;
mod library;
mod packets;
mod process;

mod arming;
mod dhcp;
mod files;
mod hostile;
mod interfaces;
mod mistakes;
mod relays;
mod rivals;
mod sealed;
mod seeding;
mod state;
mod state_faults;
mod tftp;

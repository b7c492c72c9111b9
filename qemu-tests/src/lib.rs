//! Virtual racks: real firmware, real networks, real disks, in QEMU, without changing anything on the host.
//!
//! A case is a separate process in separate namespaces ([`sandbox`]). It makes a [`Network`], starts [`Machine`]s and
//! perhaps a [`Server`] on it, waits for words on their consoles, and compares [`Disk`]s. However the case ends, its
//! machines, taps and namespaces end with it.

pub mod cases;
pub mod compare;
pub mod demo;
mod demo_screen;
pub mod disk;
pub mod faults;
pub mod foreign;
pub mod golden;
pub mod golden_debian;
mod golden_initrd;
pub mod log;
pub mod machine;
pub mod nbd;
pub mod network;
pub mod paths;
pub mod pcap;
pub mod process;
pub mod qmp;
pub mod ra;
pub mod rack;
pub mod runner;
pub mod sandbox;
pub mod server;

pub use disk::{Bus, Disk};
pub use machine::{Machine, MachineSpec};
pub use network::Network;
pub use rack::Rack;
pub use server::Server;

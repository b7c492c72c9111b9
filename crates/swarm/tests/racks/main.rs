//! Swarms in one process, over loopback, with stores in memory; and with stock clients beside them.

mod common;
mod faults;
mod foreign;
mod generated;
mod transfer;

//! Tests of swarms in one process, over loopback, with stores in memory and with stock clients.

mod common;
mod crowds;
mod faults;
mod foreign;
mod generated;
mod lan;
mod transfer;

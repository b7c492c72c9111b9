//! What runs while a room is served.

pub mod binding;
pub mod dhcp;
pub mod history;
pub mod http;
pub mod network;
pub mod orders;
pub mod rivals;
pub mod seeder;
pub mod stop;
pub mod tftp;
pub mod tracker;

mod boot_script;
mod changes;
mod holders;
mod link;
mod listener;

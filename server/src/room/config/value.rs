//! Values of the config's keys: which ones there are, and how they are read and written.

use std::fmt;
use std::marker::PhantomData;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;

use clap::ValueEnum;
use netboot::MacAddr;
use netboot::server::RelayedRange;
use order::{After, TargetRule};
use serde::de::value::{SeqAccessDeserializer, StrDeserializer};
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// How DHCP is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DhcpMode {
    /// Beside the site's DHCP server; answers only netboot clients.
    Proxy,
    /// Gives leases: only for a network without any other DHCP server.
    Server,
    /// Not at all; the site's DHCP server has to name our boot files.
    Off,
}

/// Which machines ProxyDHCP answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// Those that an order is for; all of them while an order is for every machine.
    Armed,
    /// All of them while anything is armed.
    All,
}

/// Addresses, `FIRST-LAST`, both included.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AddressRange(pub RangeInclusive<Ipv4Addr>);

impl FromStr for AddressRange {
    type Err = String;

    fn from_str(text: &str) -> Result<AddressRange, String> {
        let error = || format!("{text:?} is not a range of addresses; write it as 10.0.0.50-10.0.0.99");
        let (first, last) = text.split_once('-').ok_or_else(error)?;
        let first: Ipv4Addr = first.trim().parse().map_err(|_| error())?;
        let last: Ipv4Addr = last.trim().parse().map_err(|_| error())?;
        if first > last { Err(error()) } else { Ok(AddressRange(first..=last)) }
    }
}

impl From<AddressRange> for String {
    fn from(range: AddressRange) -> String {
        format!("{}-{}", range.0.start(), range.0.end())
    }
}

impl TryFrom<String> for AddressRange {
    type Error = String;

    fn try_from(text: String) -> Result<AddressRange, String> {
        text.parse()
    }
}

/// Addresses of a network behind a DHCP relay, `FIRST-LAST/LENGTH`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RelayedAddresses(pub RelayedRange);

impl FromStr for RelayedAddresses {
    type Err = String;

    fn from_str(text: &str) -> Result<RelayedAddresses, String> {
        let error = || {
            format!(
                "{text:?} is not a range of addresses of one network with the length of its prefix; write it as \
                 10.1.0.50-10.1.0.99/24"
            )
        };
        let (range, len) = text.split_once('/').ok_or_else(error)?;
        let AddressRange(range) = range.parse().map_err(|_| error())?;
        let prefix_len: u8 = len.trim().parse().map_err(|_| error())?;
        let is_one = (1..=32).contains(&prefix_len)
            && (u32::from(*range.start()) ^ u32::from(*range.end())).leading_zeros() >= u32::from(prefix_len);
        if is_one { Ok(RelayedAddresses(RelayedRange { range, prefix_len })) } else { Err(error()) }
    }
}

impl From<RelayedAddresses> for String {
    fn from(RelayedAddresses(RelayedRange { range, prefix_len }): RelayedAddresses) -> String {
        format!("{}/{prefix_len}", String::from(AddressRange(range)))
    }
}

impl TryFrom<String> for RelayedAddresses {
    type Error = String;

    fn try_from(text: String) -> Result<RelayedAddresses, String> {
        text.parse()
    }
}

/// A type of values, in words.
pub trait Allowed {
    /// The values that it has: "`key` takes …".
    const ALLOWED: &str;
}

macro_rules! allowed {
    ($($type:ty: $words:literal,)*) => {
        $(impl Allowed for $type {
            const ALLOWED: &str = $words;
        })*
    };
}

allowed! {
    PathBuf: "a path",
    String: "text",
    bool: "`true` or `false`",
    u16: "a port number, up to 65535",
    u32: "a number of seconds",
    u64: "a number of seconds",
    Ipv4Addr: "an IPv4 address",
    AddressRange: "first and last address, `\"10.0.0.50-10.0.0.99\"`",
    DhcpMode: "`\"proxy\"`, `\"server\"` or `\"off\"`",
    Answer: "`\"armed\"` or `\"all\"`",
    TargetRule: "a target rule",
    After: "`\"reboot\"`, `\"poweroff\"` or `\"halt\"`",
    Vec<String>: "a name, or a list of names",
    Vec<RelayedAddresses>: "`\"10.1.0.50-10.1.0.99/24\"`, or a list of such",
    Vec<Ipv4Addr>: "an IPv4 address, or a list of them",
    Vec<MacAddr>: "a list of MAC addresses",
}

impl<T: Allowed> Allowed for Option<T> {
    const ALLOWED: &str = T::ALLOWED;
}

/// What a key holds: one value or none, or a list.
pub trait Field: Sized {
    /// This value, or if it is none, the one below.
    fn over(self, below: Self) -> Self;

    fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error>;
}

impl<T: for<'de> Deserialize<'de>> Field for Option<T> {
    fn over(self, below: Self) -> Self {
        self.or(below)
    }

    fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Deserialize::deserialize(deserializer)
    }
}

/// A list of one may be written without brackets.
impl<T: for<'de> Deserialize<'de>> Field for Vec<T>
where
    Vec<T>: Allowed,
{
    fn over(self, below: Self) -> Self {
        if self.is_empty() { below } else { self }
    }

    fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OneOrMany(PhantomData))
    }
}

struct OneOrMany<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for OneOrMany<T>
where
    Vec<T>: Allowed,
{
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(<Vec<T>>::ALLOWED)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Vec<T>, E> {
        Ok(vec![T::deserialize(StrDeserializer::new(text))?])
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Vec<T>, A::Error> {
        Vec::deserialize(SeqAccessDeserializer::new(list))
    }
}

/// A value as the file has it, without quotation marks.
pub fn written(value: &impl Serialize) -> String {
    match toml::Value::try_from(value) {
        Ok(toml::Value::String(text)) => text,
        Ok(other) => other.to_string(),
        Err(_) => String::new(),
    }
}

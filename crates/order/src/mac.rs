//! The Ethernet address that names a machine everywhere.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An Ethernet address; `aa:bb:cc:dd:ee:ff` in text, and read with colons or dashes in either case.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddr(pub [u8; 6]);

/// Text that is no Ethernet address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a MAC address; write it as 52:54:00:12:34:56")]
pub struct MacError(String);

impl MacAddr {
    /// `aa-bb-cc-dd-ee-ff`, for file names and URLs.
    pub fn dashed(self) -> String {
        self.to_string().replace(':', "-")
    }

    /// `01-aa-bb-cc-dd-ee-ff`: hardware type and address, as PXELINUX and `BOOTIF` write it.
    pub fn bootif(self) -> String {
        format!("01-{}", self.dashed())
    }

    /// Reads what [`MacAddr::bootif`] writes.
    ///
    /// # Errors
    /// [`MacError`] if it does not start with `01-` or is no address.
    pub fn from_bootif(text: &str) -> Result<MacAddr, MacError> {
        text.strip_prefix("01-").ok_or_else(|| MacError(text.into()))?.parse()
    }

    /// Whether it names one machine: neither all zeros nor a group address.
    pub fn is_unicast(self) -> bool {
        self.0 != [0; 6] && self.0[0] & 1 == 0
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        f.pad(&format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}"))
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MacAddr {
    type Err = MacError;

    fn from_str(text: &str) -> Result<MacAddr, MacError> {
        let error = || MacError(text.chars().take(40).collect());
        let separator = if text.contains('-') { '-' } else { ':' };
        let mut mac = [0; 6];
        let mut parts = text.split(separator);
        for byte in &mut mac {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(error)?;
            if !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(error());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| error())?;
        }
        if parts.next().is_some() { Err(error()) } else { Ok(MacAddr(mac)) }
    }
}

impl TryFrom<String> for MacAddr {
    type Error = MacError;

    fn try_from(text: String) -> Result<MacAddr, MacError> {
        text.parse()
    }
}

impl From<MacAddr> for String {
    fn from(mac: MacAddr) -> String {
        mac.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_usual_spelling_reads_and_one_is_written() {
        let mac = MacAddr([0x52, 0x54, 0, 0x77, 0, 0xaf]);
        for text in ["52:54:00:77:00:af", "52-54-00-77-00-AF", "52:54:00:77:00:AF"] {
            assert_eq!(text.parse(), Ok(mac), "{text}");
        }
        assert_eq!(mac.to_string(), "52:54:00:77:00:af");
        assert_eq!(MacAddr::from_bootif(&mac.bootif()), Ok(mac));
    }

    #[test]
    fn anything_else_is_refused_with_the_text() {
        for text in
            ["", "52:54:00:77:00", "52:54:00:77:00:af:01", "52:54:00:77:00:+a", "5254007700af", "ä:ö:00:77:00:af"]
        {
            let error = text.parse::<MacAddr>().expect_err(text).to_string();
            assert!(error.contains("is not a MAC address"), "{error}");
        }
        assert!(MacAddr::from_bootif("52-54-00-77-00-af").is_err());
    }
}

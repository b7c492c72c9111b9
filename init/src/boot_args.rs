//! The kernel command line.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result};
use order::MacAddr;

/// The kernel command line, as far as it is for us.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BootArgs {
    /// `ezio.server=`: where TFTP is; else DHCP says.
    pub server: Option<Ipv4Addr>,
    /// `BOOTIF=01-aa-bb-cc-dd-ee-ff`: the card the firmware booted from.
    pub boot_mac: Option<MacAddr>,
    /// Every other `ezio.key=value`, in order.
    pub overrides: Vec<(String, String)>,
}

impl BootArgs {
    /// Reads `/proc/cmdline`'s text. What is not for us is passed over.
    ///
    /// # Errors
    /// A value of ours that cannot be read.
    pub fn parse(cmdline: &str) -> Result<BootArgs> {
        let mut args = BootArgs::default();
        for word in cmdline.split_whitespace() {
            let Some((key, value)) = word.split_once('=') else { continue };
            match key {
                "BOOTIF" => {
                    let mac = value.strip_prefix("01-").unwrap_or(value);
                    args.boot_mac = Some(mac.parse().with_context(|| format!("reading BOOTIF={value}"))?);
                }
                "ezio.server" => {
                    let server =
                        value.parse().with_context(|| format!("reading ezio.server={value}, an IPv4 address"))?;
                    args.server = Some(server);
                }
                _ => {
                    if let Some(key) = key.strip_prefix("ezio.") {
                        args.overrides.push((key.to_owned(), value.to_owned()));
                    }
                }
            }
        }
        Ok(args)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_read() {
        let args = BootArgs::parse(
            "BOOT_IMAGE=x console=ttyS0 quiet BOOTIF=01-52-54-00-77-00-01 ezio.server=10.77.0.1 ezio.target=serial=X9 root=/",
        )
        .expect("good");
        assert_eq!(args.server, Some(Ipv4Addr::new(10, 77, 0, 1)));
        assert_eq!(args.boot_mac, Some(MacAddr([0x52, 0x54, 0, 0x77, 0, 1])));
        assert_eq!(args.overrides, [("target".to_owned(), "serial=X9".to_owned())]);
        assert_eq!(BootArgs::parse("").expect("empty"), BootArgs::default());
        for bad in ["ezio.server=nowhere", "BOOTIF=01-zz-00-00-00-00-00", "BOOTIF=1", "BOOTIF=01-é-1-1-1-1-1"] {
            assert!(BootArgs::parse(bad).is_err(), "{bad}");
        }
    }
}

//! What this machine is told to do: `ezio.conf`, overridden by the kernel command line.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result, bail};
use restore::Grow;
use targetrule::TargetRule;

/// What happens once the disk is proven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// Into the new system.
    Reboot,
    /// Off.
    PowerOff,
    /// Stop, with the result on the screen.
    Halt,
}

impl After {
    /// The word for it in `ezio.conf`.
    pub fn word(self) -> &'static str {
        match self {
            After::Reboot => "reboot",
            After::PowerOff => "poweroff",
            After::Halt => "halt",
        }
    }

    fn parse(text: &str) -> Result<After> {
        Ok(match text {
            "reboot" => After::Reboot,
            "poweroff" => After::PowerOff,
            "halt" => After::Halt,
            other => bail!("AFTER={other} is not known: use reboot, poweroff or halt"),
        })
    }
}

/// The kernel command line, as far as it is for us.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BootArgs {
    /// `ezio.server=`: where TFTP is; else DHCP says.
    pub server: Option<Ipv4Addr>,
    /// `BOOTIF=01-aa-bb-cc-dd-ee-ff`: the card the firmware booted from.
    pub boot_mac: Option<[u8; 6]>,
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
                    args.boot_mac = Some(parse_mac(mac).with_context(|| format!("reading BOOTIF={value}"))?);
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

fn parse_mac(text: &str) -> Result<[u8; 6]> {
    let mut mac = [0; 6];
    let parts: Vec<_> = text.split(['-', ':']).collect();
    if parts.len() != mac.len() || parts.iter().any(|part| part.len() != 2) {
        bail!("{text:?} is not a MAC address such as 52-54-00-12-34-56");
    }
    for (byte, part) in mac.iter_mut().zip(parts) {
        *byte = u8::from_str_radix(part, 16).with_context(|| format!("{text:?} is not a MAC address"))?;
    }
    Ok(mac)
}

/// Everything `ezio.conf` can say.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// `TORRENT`: path on the TFTP server.
    pub torrent: String,
    /// `IMAGE`: name for people; else the torrent's.
    pub image: Option<String>,
    /// `TARGET`: which disk.
    pub target: TargetRule,
    /// `AFTER`.
    pub after: After,
    /// `VERIFY`: read everything back; `yes` unless told otherwise.
    pub verify: bool,
    /// `KEEP`: look at what the disk holds already and fetch only the rest; `yes` unless told otherwise.
    pub keep: bool,
    /// `DISCARD`: tell a flash disk which space the image does not use; `yes` unless told otherwise.
    pub discard: bool,
    /// `GROW`: the partition that is to use the space of a larger disk; none unless told otherwise.
    pub grow: Grow,
    /// `NEW_IDS`: give the disk an identity of its own.
    pub new_ids: bool,
    /// `DRY_RUN`: say what would be done, and write nothing.
    pub dry_run: bool,
    /// `LINGER`: seconds without an upload after which a finished machine stops seeding.
    pub linger_seconds: u64,
    /// `TRACKER`: URLs; else the torrent's.
    pub trackers: Vec<String>,
    /// `REPORT`: where to say how it goes.
    pub report_url: Option<String>,
    /// Keys that are not known, to be warned about.
    pub unknown: Vec<String>,
}

impl Settings {
    /// Reads `ezio.conf` (`KEY=value` lines, `#` comments, EZIO's old lower-case `torrent` and `disk`), then the
    /// overrides, which win.
    ///
    /// # Errors
    /// A line without `=`, a bad value, or no `TORRENT` at all, each naming its line or key.
    pub fn parse(conf: &str, overrides: &[(String, String)]) -> Result<Settings> {
        let mut settings = Settings {
            torrent: String::new(),
            image: None,
            target: TargetRule::default(),
            after: After::Reboot,
            verify: true,
            keep: true,
            discard: true,
            grow: Grow::No,
            new_ids: false,
            dry_run: false,
            linger_seconds: 15,
            trackers: Vec::new(),
            report_url: None,
            unknown: Vec::new(),
        };
        for (number, line) in (1..).zip(conf.lines()) {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (key, value) = line.split_once('=').with_context(|| {
                let shown: String = line.chars().take(60).collect();
                format!("line {number} of ezio.conf is not KEY=value: {shown:?}")
            })?;
            let value = value.trim().trim_matches('"');
            settings.set(key.trim(), value).with_context(|| format!("line {number} of ezio.conf"))?;
        }
        for (key, value) in overrides {
            settings.set(key, value).with_context(|| format!("ezio.{key} on the kernel command line"))?;
        }
        if settings.torrent.is_empty() {
            bail!("ezio.conf names no TORRENT: arm an image on the server, or add TORRENT=path");
        }
        Ok(settings)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<()> {
        match key.to_ascii_uppercase().as_str() {
            "TORRENT" => self.torrent = value.trim_start_matches('/').to_owned(),
            "IMAGE" => self.image = Some(value.to_owned()),
            "TARGET" | "DISK" => self.target = value.parse().with_context(|| format!("{key}={value}"))?,
            "AFTER" => self.after = After::parse(value)?,
            "VERIFY" => self.verify = yes_or_no(key, value)?,
            "KEEP" => self.keep = yes_or_no(key, value)?,
            "DISCARD" => self.discard = yes_or_no(key, value)?,
            "GROW" => self.grow = value.parse().with_context(|| format!("GROW={value}"))?,
            "NEW_IDS" => self.new_ids = yes_or_no(key, value)?,
            "DRY_RUN" => self.dry_run = yes_or_no(key, value)?,
            "LINGER" => {
                self.linger_seconds =
                    value.parse().with_context(|| format!("LINGER={value} is not a number of seconds"))?;
            }
            "TRACKER" => {
                self.trackers = value.split([',', ' ']).filter(|url| !url.is_empty()).map(str::to_owned).collect()
            }
            "REPORT" => self.report_url = Some(value.to_owned()),
            // Given back in every report, from the first one on: see `value_of`.
            "DEPLOYMENT" => {}
            "MAGNET" => bail!("magnet links are not supported: name the torrent with TORRENT=path"),
            _ => self.unknown.push(key.to_owned()),
        }
        Ok(())
    }
}

/// What a key is set to, also where the rest cannot be read: a mistake in the settings is to be told to the server that
/// they name.
pub fn value_of(conf: &str, overrides: &[(String, String)], key: &str) -> Option<String> {
    let lines = conf.lines().filter_map(|line| line.split_once('='));
    let lines = lines.map(|(name, value)| (name.trim(), value.trim().trim_matches('"')));
    let mut all = lines.chain(overrides.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    all.rfind(|(name, _)| name.eq_ignore_ascii_case(key)).map(|(_, value)| value.to_owned())
}

fn yes_or_no(key: &str, value: &str) -> Result<bool> {
    match value {
        "yes" | "1" => Ok(true),
        "no" | "0" => Ok(false),
        other => bail!("{key}={other} is not known: use yes or no"),
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
        assert_eq!(args.boot_mac, Some([0x52, 0x54, 0, 0x77, 0, 1]));
        assert_eq!(args.overrides, [("target".to_owned(), "serial=X9".to_owned())]);
        assert_eq!(BootArgs::parse("").expect("empty"), BootArgs::default());
        for bad in ["ezio.server=nowhere", "BOOTIF=01-zz-00-00-00-00-00", "BOOTIF=1", "BOOTIF=01-é-1-1-1-1-1"] {
            assert!(BootArgs::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_conf_of_2017_is_understood() {
        for conf in ["torrent=/golden.torrent\ndisk=/dev/sda\n", "TORRENT=golden.torrent\r\nTARGET=/dev/sda\r\n"] {
            let settings = Settings::parse(conf, &[]).expect(conf);
            assert_eq!(settings.torrent, "golden.torrent");
            assert_eq!(settings.target, "/dev/sda".parse().expect("a path"));
            assert_eq!(settings.after, After::Reboot);
        }
    }

    #[test]
    fn the_command_line_wins() {
        let overrides = [("after".to_owned(), "halt".to_owned())];
        let settings = Settings::parse("TORRENT=x\nAFTER=poweroff\nCOLOUR=red", &overrides).expect("good");
        assert_eq!(settings.after, After::Halt);
        assert_eq!(settings.unknown, ["COLOUR"]);
    }

    #[test]
    fn the_documentation_is_right() {
        let text = include_str!("../../docs/config.md");
        let conf = text.split("```conf\n").nth(1).and_then(|rest| rest.split("```").next()).expect("an example");
        let settings = Settings::parse(conf, &[]).expect("the example is right");
        assert_eq!(settings.unknown, Vec::<String>::new());
        assert_eq!((settings.grow, settings.after), (Grow::Last, After::PowerOff));
        // The keys that `set` knows, but for the old name and what is refused.
        let source = include_str!("settings.rs");
        let set =
            source.split("fn set(").nth(1).and_then(|rest| rest.split("_ => self.unknown").next()).expect("there");
        for key in set.lines().filter_map(|line| line.trim().strip_prefix('"')?.split('"').next()) {
            assert!(key == "MAGNET" || conf.contains(&format!("\n{key}=")), "docs/config.md lacks {key}");
        }
    }

    #[test]
    fn switches_are_yes_or_no() {
        let settings = Settings::parse("TORRENT=x\nKEEP=no\nDISCARD=0\nDRY_RUN=yes\nVERIFY=1", &[]).expect("good");
        assert_eq!((settings.keep, settings.discard, settings.dry_run, settings.verify), (false, false, true, true));
        let settings = Settings::parse("TORRENT=x\nGROW=3\nNEW_IDS=1", &[]).expect("good");
        assert_eq!((settings.grow, settings.new_ids), (Grow::Number(3), true));
        let settings = Settings::parse("TORRENT=x", &[]).expect("good");
        assert_eq!((settings.grow, settings.new_ids), (Grow::No, false));
        assert_eq!((settings.keep, settings.discard, settings.dry_run, settings.verify), (true, true, false, true));
    }

    #[test]
    fn a_bad_conf_still_says_whom_to_tell() {
        let conf = "TORRENT=x\nTARGET=serail=X\nhello\n# REPORT=no\nreport = \"http://a/report\"\nDEPLOYMENT=7\n";
        assert!(Settings::parse(conf, &[]).is_err());
        assert_eq!(value_of(conf, &[], "REPORT").as_deref(), Some("http://a/report"));
        assert_eq!(value_of(conf, &[], "DEPLOYMENT").as_deref(), Some("7"));
        assert_eq!(value_of(conf, &[("report".into(), "http://b".into())], "REPORT").as_deref(), Some("http://b"));
        assert_eq!(value_of(conf, &[], "IMAGE"), None);
    }

    #[test]
    fn bad_conf_says_where() {
        let error = |conf: &str| format!("{:#}", Settings::parse(conf, &[]).expect_err(conf));
        assert!(error("TORRENT=x\nAFTER=explode").starts_with("line 2 of ezio.conf: AFTER=explode is not known"));
        assert!(error("TORRENT=x\n\nhello").starts_with("line 3 of ezio.conf is not KEY=value"));
        assert!(error("LINGER=-1").contains("not a number of seconds"));
        assert!(error("VERIFY=maybe").contains("use yes or no"));
        assert!(error("GROW=most").contains("the number of a partition"));
        assert!(error("").contains("names no TORRENT"));
        assert!(error("TARGET=size").contains("TARGET=size: \"size\" does not say which disk"));
    }
}

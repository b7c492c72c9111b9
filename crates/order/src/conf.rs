//! `ezio.conf`: `KEY=value` lines, `#` comments, keys in any case.

use std::fmt;

use crate::keys::{KEYS, Options, Overrides};
use crate::nearest::nearest;
use crate::value::ValueError;

/// The format that is written, and the newest one that is read.
pub const FORMAT: u32 = 1;
/// Longest token, in hex digits.
const TOKEN_LEN_MAX: usize = 128;
/// Longest sealed token, in hex digits.
const SEALED_LEN_MAX: usize = 512;
/// So much of a line that cannot be read is shown, in characters.
const SHOWN_LEN: usize = 60;

/// What one machine is to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Order {
    /// Path of the torrent on the TFTP server, without a slash in front.
    pub torrent: String,
    /// Name for people; else the torrent's.
    pub image: Option<String>,
    /// Announce URLs; else the torrent's.
    pub trackers: Vec<String>,
    /// URL that progress is reported to.
    pub report: Option<String>,
    /// URL of the directory with kernel and initramfs.
    pub boot: Option<String>,
    /// Given back in every report; empty for none.
    pub deployment: String,
    /// Hex digits that prove to the server who reports; empty for none.
    pub token: String,
    /// The same in place of it, sealed to the key that the machine asked with; empty for none.
    pub sealed_token: String,
    /// How it is done.
    pub options: Options,
    /// Keys that are not known, with their values: those of a newer server, or mistakes.
    pub unknown: Vec<(String, String)>,
}

/// An order that cannot be obeyed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// A line that says nothing.
    #[error("line {line} of ezio.conf is not KEY=value: {text:?}")]
    NoKey {
        /// From 1.
        line: usize,
        /// Its start.
        text: String,
    },
    /// A key with a value that it cannot have.
    #[error("{place}")]
    Value {
        /// Where it stands.
        place: String,
        /// What is wrong with it.
        source: ValueError,
    },
    /// It does not say which image.
    #[error("ezio.conf names no TORRENT: arm an image on the server, or add TORRENT=path")]
    NoTorrent,
    /// A newer server wrote it.
    #[error(
        "ezio.conf has format {found}, and this boot image knows formats up to {FORMAT}: the server is newer than its boot \
         image; build the boot image of the same version with `make image` and start this machine again"
    )]
    Newer {
        /// The format of the text.
        found: String,
    },
}

impl Order {
    /// Reads `ezio.conf`, then the overrides (key and value), which win.
    ///
    /// # Errors
    /// A format that is too new, a line without `=`, a value that cannot be, or no torrent; each names its line or key.
    pub fn parse(conf: &str, overrides: &[(String, String)]) -> Result<Order, OrderError> {
        let format = value_of(conf, overrides, "FORMAT").unwrap_or_else(|| FORMAT.to_string());
        if !format.parse::<u32>().is_ok_and(|format| format <= FORMAT) {
            return Err(OrderError::Newer { found: format.chars().take(SHOWN_LEN).collect() });
        }
        let (mut order, mut options) = (Order::default(), Overrides::default());
        for (line, text) in (1..).zip(conf.lines()) {
            let text = text.trim();
            if text.is_empty() || text.starts_with('#') {
                continue;
            }
            let (key, value) = text
                .split_once('=')
                .ok_or_else(|| OrderError::NoKey { line, text: text.chars().take(SHOWN_LEN).collect() })?;
            order
                .set(&mut options, key.trim(), unquoted(value))
                .map_err(|source| OrderError::Value { place: format!("line {line} of ezio.conf"), source })?;
        }
        for (key, value) in overrides {
            order.set(&mut options, key, value).map_err(|source| OrderError::Value {
                place: format!("ezio.{key} on the kernel command line"),
                source,
            })?;
        }
        if order.torrent.is_empty() {
            return Err(OrderError::NoTorrent);
        }
        options.apply(&mut order.options);
        Ok(order)
    }

    fn set(&mut self, options: &mut Overrides, key: &str, value: &str) -> Result<(), ValueError> {
        match key.to_ascii_uppercase().as_str() {
            "FORMAT" => {}
            "TORRENT" => self.torrent = value.trim_start_matches('/').to_owned(),
            "IMAGE" => self.image = Some(value.to_owned()),
            "TRACKER" => {
                self.trackers = value.split([',', ' ']).filter(|url| !url.is_empty()).map(str::to_owned).collect();
            }
            "REPORT" => self.report = Some(value.to_owned()),
            "BOOT" => self.boot = Some(value.to_owned()),
            "DEPLOYMENT" => self.deployment = value.to_owned(),
            "TOKEN" => self.token = hex_digits(value, TOKEN_LEN_MAX)?,
            "SEALED_TOKEN" => self.sealed_token = hex_digits(value, SEALED_LEN_MAX)?,
            "MAGNET" => return Err(ValueError::Magnet),
            _ if options.set(key, value)? => {}
            _ => self.unknown.push((key.to_owned(), value.to_owned())),
        }
        Ok(())
    }

    /// The keys that are not known, each with the one that may have been meant.
    pub fn unknown_in_words(&self) -> Vec<String> {
        let meant = |key: &str| nearest(key, KEYS.iter().map(|known| known.name));
        let words = |key: &String| match meant(key) {
            Some(near) => format!("{key} (did you mean {near}?)"),
            None => key.clone(),
        };
        self.unknown.iter().map(|(key, _)| words(key)).collect()
    }
}

/// As `ezio.conf`. Control characters become spaces, so that no value begins another line.
impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = |key: &str, value: &str| {
            let value = value.replace(char::is_control, " ");
            let quote = if value.starts_with('"') || value != value.trim() { "\"" } else { "" };
            writeln!(f, "{key}={quote}{value}{quote}")
        };
        line("FORMAT", &FORMAT.to_string())?;
        line("TORRENT", &self.torrent)?;
        for (key, value) in [("IMAGE", &self.image), ("REPORT", &self.report), ("BOOT", &self.boot)] {
            if let Some(value) = value {
                line(key, value)?;
            }
        }
        if !self.trackers.is_empty() {
            line("TRACKER", &self.trackers.join(","))?;
        }
        let proofs = [("TOKEN", &self.token), ("SEALED_TOKEN", &self.sealed_token)];
        for (key, value) in [("DEPLOYMENT", &self.deployment)].into_iter().chain(proofs) {
            if !value.is_empty() {
                line(key, value)?;
            }
        }
        self.options.lines().iter().try_for_each(|(key, value)| line(key, value))?;
        self.unknown.iter().try_for_each(|(key, value)| line(key, value))
    }
}

/// A token becomes part of a file's name.
fn hex_digits(value: &str, max: usize) -> Result<String, ValueError> {
    if value.len() <= max && value.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        Ok(value.to_owned())
    } else {
        Err(ValueError::Token { value: value.chars().take(SHOWN_LEN).collect(), max })
    }
}

/// What a key is set to, also where the rest cannot be read: a mistake in an order is reported to the server that it names.
pub fn value_of(conf: &str, overrides: &[(String, String)], key: &str) -> Option<String> {
    let lines = conf.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    let lines = lines.filter_map(|line| line.split_once('=')).map(|(name, value)| (name.trim(), unquoted(value)));
    let mut all = lines.chain(overrides.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    all.rfind(|(name, _)| name.eq_ignore_ascii_case(key)).map(|(_, value)| value.to_owned())
}

/// A value without the quotes around it.
fn unquoted(value: &str) -> &str {
    let value = value.trim();
    value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use layout::parttable::adapt::Grow;
    use proptest::prelude::*;

    use super::*;
    use crate::keys::example;
    use crate::value::After;

    fn parse(conf: &str) -> Order {
        Order::parse(conf, &[]).expect(conf)
    }

    #[test]
    fn the_conf_of_2017_is_understood() {
        for conf in ["torrent=/golden.torrent\ndisk=/dev/sda\n", "TORRENT=golden.torrent\r\nTARGET=/dev/sda\r\n"] {
            let order = parse(conf);
            assert_eq!(order.torrent, "golden.torrent");
            assert_eq!(order.options.target, "/dev/sda".parse().expect("a path"));
            assert_eq!(order.options.after, After::Reboot);
        }
    }

    #[test]
    fn the_command_line_wins() {
        let overrides = [("after".to_owned(), "halt".to_owned())];
        let order = Order::parse("TORRENT=x\nAFTER=poweroff\nCOLOUR=red\nTRAGET=x", &overrides).expect("good");
        assert_eq!(order.options.after, After::Halt);
        assert_eq!(order.unknown_in_words(), ["COLOUR", "TRAGET (did you mean TARGET?)"]);
    }

    #[test]
    fn the_documentation_has_the_table() {
        let text = include_str!("../../../docs/config.md");
        let conf = text.split("```conf\n").nth(1).and_then(|rest| rest.split("```").next()).expect("an example");
        assert_eq!(conf, example(), "docs/config.md has another example than the table of keys");
        let order = parse(conf);
        assert_eq!(order.unknown, []);
        assert_eq!((order.options.grow, order.options.after), (Grow::Last, After::Poweroff));
    }

    #[test]
    fn switches_are_yes_or_no() {
        let options = parse("TORRENT=x\nKEEP=no\nDISCARD=0\nDRY_RUN=yes\nVERIFY=1\nGROW=3\nNEW_IDS=1").options;
        assert_eq!((options.keep, options.discard, options.dry_run, options.verify), (false, false, true, true));
        assert_eq!((options.grow, options.new_ids), (Grow::Number(3), true));
        assert_eq!(parse("TORRENT=x").options, Options::default());
    }

    #[test]
    fn a_bad_conf_still_says_whom_to_tell() {
        let conf = "TORRENT=x\nTARGET=serail=X\nhello\n# REPORT=no\nreport = \"http://a/report\"\nDEPLOYMENT=7\n";
        assert!(Order::parse(conf, &[]).is_err());
        assert_eq!(value_of(conf, &[], "REPORT").as_deref(), Some("http://a/report"));
        assert_eq!(value_of(conf, &[], "DEPLOYMENT").as_deref(), Some("7"));
        assert_eq!(value_of(conf, &[("report".into(), "http://b".into())], "REPORT").as_deref(), Some("http://b"));
        assert_eq!(value_of(conf, &[], "IMAGE"), None);
    }

    #[test]
    fn a_bad_conf_says_where() {
        let error = |conf: &str| {
            let error = Order::parse(conf, &[]).expect_err(conf);
            let mut words = error.to_string();
            let mut cause = std::error::Error::source(&error);
            while let Some(next) = cause {
                words += &format!(": {next}");
                cause = next.source();
            }
            words
        };
        assert!(error("TORRENT=x\nAFTER=explode").starts_with("line 2 of ezio.conf: AFTER=explode is not known"));
        assert!(error("TORRENT=x\n\nhello").starts_with("line 3 of ezio.conf is not KEY=value"));
        assert!(error("LINGER=-1").contains("not a number of seconds"));
        assert!(error("VERIFY=maybe").contains("use yes or no"));
        assert!(error("GROW=most").contains("the number of a partition"));
        assert!(
            error("TOKEN=../x").contains("is no token")
                && error(&format!("TOKEN={}", "0".repeat(129))).contains("128 hex")
        );
        assert!(error("SEALED_TOKEN=../x").contains("is no token"));
        assert!(error(&format!("SEALED_TOKEN={}", "0".repeat(513))).contains("512 hex"));
        assert!(error("MAGNET=x").contains("not supported"));
        assert!(error("").contains("names no TORRENT"));
        assert!(error("TARGET=size").contains("TARGET=size: \"size\" does not say which disk"));
    }

    #[test]
    fn an_order_of_a_newer_format_is_refused_whatever_else_it_says() {
        for conf in ["TORRENT=x\nformat = 2\nAFTER=fly", "FORMAT=99999999999\nhello", "FORMAT=two\nTORRENT=x"] {
            let error = Order::parse(conf, &[]).expect_err(conf).to_string();
            assert!(error.contains("has format ") && error.contains("formats up to 1"), "{error}");
        }
        parse("FORMAT=1\nTORRENT=x");
        parse("FORMAT=0\nTORRENT=x");
    }

    prop_compose! {
        fn text()(text in "[ -~é\"]{0,20}") -> String { text }
    }

    prop_compose! {
        fn orders()(
            torrent in "[a-z/]{0,8}[a-z]",
            image in proptest::option::of(text()),
            trackers in proptest::collection::vec("[!-+.-~]{1,12}", 0..3),
            report in proptest::option::of(text()),
            deployment in "[0-9a-f]{0,8}",
            after in 0..3usize,
            linger: u32,
            token in "[0-9a-f]{0,32}",
            sealed_token in "[0-9a-f]{0,144}",
            switches: [bool; 6],
            grow in proptest::option::of(1u32..),
            target in prop_oneof![Just("auto"), Just("bus=nvme,min=200G"), Just("/dev/sda"), Just("serial=a b")],
            unknown in proptest::collection::vec(("X[A-Z_]{3,9}", text()), 0..3),
        ) -> Order {
            let [verify, keep, discard, new_ids, confirm, dry_run] = switches;
            let after = After::ALL[after];
            let (target, grow) = (target.parse().expect("a rule"), grow.map_or(Grow::Last, Grow::Number));
            let options = Options { target, after, linger, verify, keep, discard, grow, new_ids, confirm, dry_run };
            let torrent = torrent.trim_start_matches('/').to_owned();
            let boot = report.clone();
            Order { torrent, image, trackers, report, boot, deployment, token, sealed_token, options, unknown }
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(order in orders()) {
            prop_assert_eq!(Order::parse(&order.to_string(), &[]), Ok(order));
        }

        #[test]
        fn overrides_keep_what_they_say(order in orders()) {
            let mut overrides = Overrides::default();
            for (key, value) in order.options.lines() {
                prop_assert_eq!(overrides.set(key, &value), Ok(true));
            }
            let mut options = Options::default();
            overrides.apply(&mut options);
            prop_assert_eq!(&overrides.lines(), &options.lines());
            prop_assert_eq!(options, order.options);
        }

        #[test]
        fn any_text_is_read_or_refused(text in "(?s).{0,200}") {
            let _ = Order::parse(&text, &[]);
        }
    }
}

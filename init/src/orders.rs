//! What this machine is to do: asked for until the server has an answer that makes sense.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use metainfo::Metainfo;
use netboot::MacAddr;
use order::{Order, value_of};

use crate::boot_args::BootArgs;
use crate::confirm;
use crate::console::Console;
use crate::fetch::{self, Obstacle};
use crate::memory;
use crate::reporter::Reporter;

/// Pause between two tries.
const ASK_EVERY: Duration = Duration::from_secs(5);
/// The same trouble is shown again after this long.
pub const REPEAT_TROUBLE: Duration = Duration::from_secs(60);

/// Whom this machine asks, and as whom.
#[derive(Clone, Copy)]
pub struct Asking<'a> {
    pub server: Ipv4Addr,
    /// The address by which the server knows this machine.
    pub mac: MacAddr,
    /// What the kernel command line says, which overrides the server's word.
    pub args: &'a BootArgs,
}

impl Asking<'_> {
    /// Asks until there is an order and its torrent.
    ///
    /// # Errors
    /// What will not pass: an order or a torrent that makes no sense, or does not fit into memory.
    pub async fn until_answered(self, console: &Console, reporter: &Reporter) -> Result<(Order, Metainfo)> {
        let mut shown: Option<(String, Instant)> = None;
        loop {
            let trouble = match self.once(reporter).await {
                Ok(answer) => return Ok(answer),
                Err(Obstacle::Lasting(error)) => return Err(error),
                Err(Obstacle::Passing(error)) => format!("{error:#}"),
            };
            if shown.as_ref().is_none_or(|(last, at)| *last != trouble || at.elapsed() > REPEAT_TROUBLE) {
                console.trouble(&trouble);
                shown = Some((trouble, Instant::now()));
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    async fn once(self, reporter: &Reporter) -> Result<(Order, Metainfo), Obstacle> {
        let (conf, name) = fetch::conf(self.server, self.mac).await?;
        let order = self.read(&conf, &name, reporter).map_err(Obstacle::Lasting)?;
        let torrent = fetch::torrent(self.server, &order.torrent).await?;
        memory::check_torrent(&torrent).map_err(Obstacle::Lasting)?;
        let meta =
            Metainfo::parse(&torrent).with_context(|| format!("refusing {} from {}", order.torrent, self.server));
        Ok((order, meta.map_err(Obstacle::Lasting)?))
    }

    fn read(self, conf: &[u8], name: &str, reporter: &Reporter) -> Result<Order> {
        // Before anything can be wrong with it, or only the screen would know.
        let text = String::from_utf8_lossy(conf);
        let value = |key: &str| value_of(&text, &self.args.overrides, key);
        if let Some(url) = value("REPORT") {
            reporter.update(|report| {
                report.deployment = value("DEPLOYMENT").unwrap_or_default();
                report.image = value("IMAGE").unwrap_or_default();
                report.token = value("TOKEN").unwrap_or_default();
            });
            reporter.set_url(url);
        }
        let text = str::from_utf8(conf).with_context(|| format!("{name} on {} is not text", self.server))?;
        let order = Order::parse(text, &self.args.overrides);
        let order = order.with_context(|| format!("reading {name} from {}", self.server))?;
        for key in order.unknown_in_words() {
            log::warn!("{name}: the key {key} is unknown and is ignored");
        }
        if order.options.confirm {
            confirm::name(self.mac, &order)?;
        }
        reporter.update(|report| report.dry_run = order.options.dry_run);
        Ok(order)
    }
}

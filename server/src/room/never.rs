//! Which machines are never to be imaged, also when the server is started without its config.

use std::collections::BTreeSet;

use netboot::MacAddr;
use store::Store;

use crate::room::config::Settings;

/// Kind of the rows with machines that the last config named.
const KIND: &str = "never";

/// Remembers the machines that a config never wants imaged. Without a config, those of the last one are kept back.
///
/// # Errors
/// If the store cannot be read or written.
pub fn remember(store: &mut Store, settings: &mut Settings, has_config: bool) -> anyhow::Result<()> {
    let known: BTreeSet<MacAddr> = store.rows(KIND)?.into_iter().filter_map(|(mac, _)| mac.parse().ok()).collect();
    if !has_config {
        for mac in &known {
            settings.machines.entry(*mac).or_default().never = Some(true);
        }
        if !known.is_empty() {
            let names: Vec<String> = known.iter().map(MacAddr::to_string).collect();
            log::warn!(
                "started without --config: `never = true` of the last config still holds for {}; start with a config to change it",
                names.join(", ")
            );
        }
        return Ok(());
    }
    let now: BTreeSet<MacAddr> = settings.machines_named().into_iter().filter(|mac| settings.is_never(*mac)).collect();
    if now != known {
        store.change(|change| {
            known.difference(&now).try_for_each(|mac| change.delete(KIND, &mac.to_string()))?;
            now.difference(&known).try_for_each(|mac| change.put(KIND, &mac.to_string(), "by the config"))
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_outlives_the_config() {
        let dir = tempfile::tempdir().expect("a directory");
        let mac = |last| MacAddr([2, 0, 0, 0, 0, last]);
        let config = |text: &str| toml::from_str::<Settings>(text).expect("good");
        let start = |mut settings: Settings, has_config| {
            remember(&mut Store::open(dir.path(), |_| Ok(())).expect("opens"), &mut settings, has_config)
                .expect("remembered");
            settings
        };
        let text = format!(
            "[groups.staff]\nmachines = [\"{}\"]\nnever = true\n[machines.\"{}\"]\nnever = true\n",
            mac(1),
            mac(2)
        );
        start(config(&text), true);
        let without = start(Settings::default(), false);
        assert!(without.is_never(mac(1)) && without.is_never(mac(2)) && !without.is_never(mac(3)));
        let changed = start(config(&format!("[machines.\"{}\"]\nnever = true\n", mac(3))), true);
        assert!(changed.is_never(mac(3)) && !changed.is_never(mac(1)));
        let without = start(Settings::default(), false);
        assert!(!without.is_never(mac(1)) && without.is_never(mac(3)));
    }
}

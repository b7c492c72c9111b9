//! What an `ezio arm` changes, and for which machines.

use std::collections::BTreeMap;
use std::path::Path;

use netboot::MacAddr;

use crate::room::book;
use crate::room::config::Settings;
use crate::room::fleet::Fleet;
use crate::room::history;
use crate::room::orders::Armed;

/// Machines named in a line.
const NAMED: usize = 8;

/// The machines that the server knows.
///
/// # Errors
/// If they cannot be read.
pub fn known(state_dir: &Path) -> anyhow::Result<Fleet> {
    if !state_dir.join(store::FILE).exists() {
        return Ok(Fleet::default());
    }
    history::load(&book::open(state_dir)?)
}

/// What becomes different for the machines that are known, a line each kind of difference.
pub fn changes(before: &Armed, after: &Armed, fleet: &Fleet, settings: &Settings) -> Vec<String> {
    let mut macs = settings.machines_named();
    macs.extend(fleet.machines().map(|machine| machine.mac));
    let mut kinds: BTreeMap<String, Vec<MacAddr>> = BTreeMap::new();
    for mac in macs {
        let (old, new) = (before.job_for(mac, settings), after.job_for(mac, settings));
        let is_done = |job: &crate::room::orders::Job| fleet.is_done(mac, job);
        let kind = match (&old, &new) {
            (None, None) => continue,
            (Some(old), None) => format!("will not get {} any more", old.image),
            (_, Some(new)) if is_done(new) => format!("will keep {} (--again images again)", new.image),
            (Some(old), Some(new)) if old.image != new.image => match is_done(old) {
                true => format!("will get {} in place of {}, which is on the disk", new.image, old.image),
                false => format!("will get {} in place of {}", new.image, old.image),
            },
            (Some(old), Some(new)) if is_done(old) => format!("will get {} again, which is on the disk", new.image),
            (Some(_), Some(new)) => format!("will get {} as before", new.image),
            (None, Some(new)) => format!("will get {}", new.image),
        };
        kinds.entry(kind).or_default().push(mac);
    }
    let line = |(kind, macs): (String, Vec<MacAddr>)| {
        let named: Vec<String> = macs.iter().take(NAMED).map(|mac| settings.called(*mac)).collect();
        let more = macs.len().saturating_sub(NAMED);
        let more = if more > 0 { format!(", and {more} more") } else { String::new() };
        format!("{} {kind}: {}{more}", units::count(macs.len() as u64, "machine"), named.join(", "))
    };
    kinds.into_iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::room::orders::Order;
    use crate::room::scope::Scope;

    #[test]
    fn each_difference_is_a_line() {
        let text: String = (1..=12).map(|last| format!("[machines.\"02:00:00:00:00:{last:02x}\"]\n")).collect();
        let settings: Settings = toml::from_str(&text).expect("good");
        let mac = |last| MacAddr([2, 0, 0, 0, 0, last]);
        let order = |scope, image: &str, deployment: &str| Order {
            image: Some(image.into()),
            deployment: deployment.into(),
            ..Order::hold(scope)
        };
        let mut before = Armed::default();
        before.arm(order(Scope::All, "debian", "d1"));
        let mut fleet = Fleet::default();
        for last in [1, 2] {
            let report = format!(r#"{{"mac":"{}","stage":"done","deployment":"d1"}}"#, mac(last));
            fleet.report(serde_json::from_str(&report).expect("JSON"), true, &before, &settings).expect("good");
        }
        let mut after = before.clone();
        after.arm(order(Scope::Machine(mac(2)), "other", "d2"));
        after.disarm(&Scope::Machine(mac(3)));
        assert_eq!(
            changes(&before, &after, &fleet, &settings),
            [
                "9 machines will get debian as before: 02:00:00:00:00:04, 02:00:00:00:00:05, 02:00:00:00:00:06, \
                 02:00:00:00:00:07, 02:00:00:00:00:08, 02:00:00:00:00:09, 02:00:00:00:00:0a, 02:00:00:00:00:0b, and 1 more",
                "1 machine will get other in place of debian, which is on the disk: 02:00:00:00:00:02",
                "1 machine will keep debian (--again images again): 02:00:00:00:00:01",
                "1 machine will not get debian any more: 02:00:00:00:00:03",
            ]
        );
        let mut again = before.clone();
        again.arm(order(Scope::All, "debian", "d3"));
        let lines = changes(&before, &again, &fleet, &settings);
        assert!(lines.iter().any(|line| line.contains("will get debian again, which is on the disk")), "{lines:?}");
    }
}

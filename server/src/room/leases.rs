//! The leases on disk: a row each, so that several networks do not overwrite each other's.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::Context;
use netboot::server::LeaseRecord;
use store::{Change, Store};

use crate::room::state;

/// Kind of the rows with leases.
const KIND: &str = "lease";

/// The leases of one network.
#[derive(Debug)]
pub struct LeaseBook {
    store: Store,
    kept: BTreeMap<Ipv4Addr, LeaseRecord>,
}

impl LeaseBook {
    /// All leases in a store, and the book in which those of one network are kept.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn open(store: Store) -> anyhow::Result<(LeaseBook, Vec<LeaseRecord>)> {
        let record = |(_, body): (String, String)| serde_json::from_str::<LeaseRecord>(&body);
        let records = store.rows(KIND)?.into_iter().map(record).collect::<Result<Vec<_>, _>>();
        let records = records.context("reading a lease")?;
        let kept = records.iter().map(|record| (record.address, record.clone())).collect();
        Ok((LeaseBook { store, kept }, records))
    }

    /// Writes what differs from what is kept.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn save(&mut self, records: &[LeaseRecord]) -> anyhow::Result<()> {
        let changed: Vec<&LeaseRecord> =
            records.iter().filter(|record| self.kept.get(&record.address) != Some(record)).collect();
        if changed.is_empty() {
            return Ok(());
        }
        self.store.change(|change| put(change, changed.iter().copied()))?;
        self.kept.extend(changed.into_iter().map(|record| (record.address, record.clone())));
        Ok(())
    }
}

/// Takes over what older versions kept in `leases.json`. Machines whose leases are lost get other addresses.
///
/// # Errors
/// If the store cannot be written.
pub fn take_over(state_dir: &Path, change: &mut Change<'_>) -> anyhow::Result<()> {
    let records = state::read::<Vec<LeaseRecord>>(&state_dir.join("leases.json")).unwrap_or_else(|error| {
        log::error!("the leases are lost, so machines get other addresses: {error:#}");
        None
    });
    put(change, records.unwrap_or_default().iter())
}

fn put<'a>(change: &mut Change<'_>, records: impl Iterator<Item = &'a LeaseRecord>) -> anyhow::Result<()> {
    for record in records {
        let body = serde_json::to_string(record).context("writing a lease")?;
        change.put(KIND, &record.address.to_string(), &body)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::room::book;

    fn lease(last: u8, expires: u64) -> LeaseRecord {
        LeaseRecord { address: Ipv4Addr::new(10, 0, 0, last), mac: None, expires, relay: None }
    }

    #[test]
    fn networks_keep_their_leases_side_by_side_and_older_ones_are_taken_over() {
        let dir = tempfile::tempdir().expect("a directory");
        state::write(&dir.path().join("leases.json"), &[lease(1, 5), lease(2, 5)]).expect("written");
        let open = || LeaseBook::open(book::open(dir.path()).expect("opens")).expect("read");
        let ((mut one, records), (mut other, _)) = (open(), open());
        assert_eq!(records, [lease(1, 5), lease(2, 5)]);
        one.save(&[lease(1, 9)]).expect("written");
        other.save(&[lease(2, 7), lease(3, 7)]).expect("written");
        one.save(&[lease(1, 9)]).expect("nothing to write");
        assert_eq!(open().1, [lease(1, 9), lease(2, 7), lease(3, 7)]);
    }
}

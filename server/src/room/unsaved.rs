//! Which machines' records differ from what is on disk, and which are written next.

use std::collections::BTreeSet;

use netboot::MacAddr;

/// What a commit and a row cost on disk besides the row's text, in bytes: pages of the log and of the database.
const COMMIT_BYTES: usize = 24 << 10;
const ROW_BYTES: usize = 3 << 9;
/// Rows of so many bytes are written at once.
const BATCH_BYTES: usize = 1 << 20;
/// And of rows that nobody waits for.
const LAZY_BYTES: usize = 64 << 10;

/// A machine's record as it is written; `None` is a machine that is forgotten.
pub type Row = (MacAddr, Option<String>);

/// What differs from what is on disk.
#[derive(Debug, Default)]
pub struct Unsaved {
    /// Machines with a change that is acknowledged once it is kept.
    urgent: BTreeSet<MacAddr>,
    /// Machines with other changes, or that are forgotten.
    lazy: BTreeSet<MacAddr>,
    /// Those of the urgent ones that are being written at this moment.
    in_flight: BTreeSet<MacAddr>,
}

impl Unsaved {
    /// A machine has changed; an urgent change is acknowledged once it is kept.
    pub fn add(&mut self, mac: MacAddr, is_urgent: bool) {
        if is_urgent { &mut self.urgent } else { &mut self.lazy }.insert(mac);
    }

    /// Whether an urgent change is not on disk yet.
    pub fn is_waited_for(&self, mac: MacAddr) -> bool {
        self.urgent.contains(&mac) || self.in_flight.contains(&mac)
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.urgent.is_empty() && self.lazy.is_empty()
    }

    /// What to write next: urgent changes first, of these the `first` ones, in rows that `row` makes. Changes that nobody
    /// waits for do not hold up the others: they fill a small batch at most.
    pub fn next(&mut self, first: impl Fn(&MacAddr) -> bool, row: impl Fn(&MacAddr) -> Option<String>) -> Vec<Row> {
        let (before, after): (Vec<MacAddr>, Vec<MacAddr>) = self.urgent.iter().partition(|mac| first(mac));
        let urgent = before.into_iter().chain(after).map(|mac| (mac, BATCH_BYTES));
        let lazy = self.lazy.difference(&self.urgent).map(|mac| (*mac, LAZY_BYTES));
        let (mut rows, mut bytes) = (Vec::new(), 0);
        for (mac, max) in urgent.chain(lazy) {
            if bytes >= max {
                break;
            }
            rows.push((mac, row(&mac)));
            bytes += rows.last().map_or(0, cost_of);
        }
        for (mac, _) in &rows {
            self.lazy.remove(mac);
            if self.urgent.remove(mac) {
                self.in_flight.insert(*mac);
            }
        }
        rows
    }

    /// What [`Unsaved::next`] gave is on disk, or is not.
    pub fn written(&mut self, rows: &[Row], is_kept: bool) {
        for (mac, _) in rows {
            let was_urgent = self.in_flight.remove(mac);
            if !is_kept {
                self.add(*mac, was_urgent);
            }
        }
    }
}

/// Bytes that are written for these rows together.
pub fn cost(rows: &[Row]) -> usize {
    COMMIT_BYTES + rows.iter().map(cost_of).sum::<usize>()
}

fn cost_of((_, row): &Row) -> usize {
    ROW_BYTES + row.as_ref().map_or(0, String::len)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mac(number: usize) -> MacAddr {
        MacAddr([2, 0, 0, 0, (number >> 8) as u8, number as u8])
    }

    #[test]
    fn what_is_waited_for_goes_first_and_comes_back_if_it_is_not_kept() {
        let mut unsaved = Unsaved::default();
        (0..2000).for_each(|number| unsaved.add(mac(number), number % 2 == 0));
        let row = |_: &MacAddr| Some("x".repeat(600));
        let rows = unsaved.next(|other| *other == mac(1998), row);
        assert_eq!(rows[0].0, mac(1998), "the first of the first");
        assert!(rows.iter().all(|(mac, _)| mac.0[5] % 2 == 0) && rows.len() > 100);
        assert!((BATCH_BYTES..BATCH_BYTES + COMMIT_BYTES + 2 * ROW_BYTES).contains(&cost(&rows)), "{}", cost(&rows));
        assert!(unsaved.is_waited_for(mac(1998)) && !unsaved.is_waited_for(mac(1)));
        unsaved.written(&rows, false);
        assert!(unsaved.is_waited_for(mac(1998)), "it could not be written");
        while unsaved.is_waited_for(mac(0)) || !unsaved.urgent.is_empty() {
            let rows = unsaved.next(|_| false, row);
            unsaved.written(&rows, true);
        }
        let rows = unsaved.next(|_| false, row);
        assert!(cost(&rows) < LAZY_BYTES + COMMIT_BYTES + 2 * ROW_BYTES, "nobody waits for these");
        // A change that comes while the one before it is being written has to be written too.
        let mut unsaved = Unsaved::default();
        unsaved.add(mac(1), true);
        let rows = unsaved.next(|_| false, row);
        unsaved.add(mac(1), true);
        unsaved.written(&rows, true);
        assert!(unsaved.is_waited_for(mac(1)) && !unsaved.is_empty());
    }
}

//! Missing pieces by how many peers have them: every change costs one swap.

use metainfo::PieceIndex;

use super::{Picker, State};

impl Picker {
    pub(super) fn back_to_missing(&mut self, piece: PieceIndex) {
        self.bytes_in_flight -= u64::from(self.geometry.len_of(piece));
        self.state[piece.as_usize()] = State::Missing;
        self.enter_bucket(piece);
    }

    pub(super) fn enter_bucket(&mut self, piece: PieceIndex) {
        self.push_to_bucket(piece);
        self.missing.insert(piece);
        for view in self.peers.values_mut().filter(|view| view.has.contains(piece)) {
            view.unstarted += 1;
        }
    }

    pub(super) fn leave_bucket(&mut self, piece: PieceIndex) {
        self.pull_from_bucket(piece);
        self.missing.remove(piece);
        for view in self.peers.values_mut().filter(|view| view.has.contains(piece)) {
            view.unstarted -= 1;
        }
    }

    pub(super) fn change_availability(&mut self, piece: PieceIndex, up: bool) {
        let is_missing = self.missing.contains(piece);
        if is_missing {
            self.pull_from_bucket(piece);
        }
        let availability = &mut self.availability[piece.as_usize()];
        *availability = if up { *availability + 1 } else { availability.saturating_sub(1) };
        if is_missing {
            self.push_to_bucket(piece);
        }
    }

    pub(super) fn push_to_bucket(&mut self, piece: PieceIndex) {
        let availability = self.availability[piece.as_usize()];
        if self.buckets.len() <= availability {
            self.buckets.resize_with(availability + 1, Vec::new);
        }
        self.place[piece.as_usize()] = self.buckets[availability].len();
        self.buckets[availability].push(piece);
    }

    pub(super) fn pull_from_bucket(&mut self, piece: PieceIndex) {
        let bucket = &mut self.buckets[self.availability[piece.as_usize()]];
        let place = self.place[piece.as_usize()];
        bucket.swap_remove(place);
        if let Some(moved) = bucket.get(place) {
            self.place[moved.as_usize()] = place;
        }
    }
}

//! The blocks that one peer requested and has not been sent.

use std::collections::{BTreeMap, HashMap};

use metainfo::PieceIndex;

use crate::wire::Request;

/// Most requests that are remembered per peer; stock clients keep at most about 500. Further requests are not answered.
const MAX_UPLOADS: usize = 2048;

/// Ranges that a peer requested, each once, in its order. No operation searches all of them, because every message of a
/// peer may cause one.
#[derive(Debug, Default)]
pub(super) struct Uploads {
    by_age: BTreeMap<u64, Request>,
    age: HashMap<Request, u64>,
    clock: u64,
}

impl Uploads {
    pub(super) fn push(&mut self, request: Request) {
        if self.age.len() < MAX_UPLOADS && !self.age.contains_key(&request) {
            self.clock += 1;
            self.age.insert(request, self.clock);
            self.by_age.insert(self.clock, request);
        }
    }

    pub(super) fn cancel(&mut self, request: &Request) {
        if let Some(age) = self.age.remove(request) {
            self.by_age.remove(&age);
        }
    }

    /// Forgets what was asked for of a piece; whether that was anything.
    pub(super) fn cancel_piece(&mut self, piece: PieceIndex) -> bool {
        let before = self.age.len();
        self.age.retain(|request, _| request.piece != piece);
        self.by_age.retain(|_, request| request.piece != piece);
        self.age.len() < before
    }

    pub(super) fn first(&self) -> Option<Request> {
        self.by_age.first_key_value().map(|(_, &request)| request)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.age.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use metainfo::Geometry;

    #[test]
    fn ranges_are_served_in_order_once_and_not_after_a_cancel() {
        let geometry = Geometry::new(1, 16384).expect("sane");
        let request = |begin| Request { piece: geometry.piece(0).expect("the only one"), begin, len: 16384 };
        let mut uploads = Uploads::default();
        [3, 1, 2, 1, 0].into_iter().for_each(|begin| uploads.push(request(begin)));
        uploads.cancel(&request(2));
        uploads.cancel(&request(9));
        let mut served = Vec::new();
        while let Some(first) = uploads.first() {
            served.push(first.begin);
            uploads.cancel(&first);
        }
        assert_eq!(served, [3, 1, 0]);
        assert!(uploads.is_empty());
        (0..9000).for_each(|begin| uploads.push(request(begin)));
        assert_eq!((uploads.age.len(), uploads.by_age.len()), (MAX_UPLOADS, MAX_UPLOADS));
    }
}

//! Owners share what a swarm gives, whatever number of links each of them has.

use std::collections::HashMap;
use std::time::Duration;

use metainfo::{BLOCK_LEN, Geometry};
use rand::SeedableRng;
use rand::rngs::StdRng;
use swarm::bits::PieceSet;
use swarm::core::{Core, Setup};
use swarm::picker::PeerKey;
use swarm::wire::Request;

const PIECES: u32 = 256;
const BLOCKS: u32 = 16;

/// A seeder with these links, each of which always wants 16 blocks; `wants` is the number of the next one.
struct Seeder {
    core: Core,
    geometry: Geometry,
    links: Vec<(PeerKey, u64)>,
    now: Duration,
    wants: fn(nth_of_link: u32, nth_of_owner: u32) -> u32,
    of_link: HashMap<PeerKey, u32>,
    of_owner: HashMap<u64, u32>,
}

impl Seeder {
    fn new(links_of_owners: &[usize], wants: fn(u32, u32) -> u32) -> Seeder {
        let piece_len = BLOCKS * BLOCK_LEN;
        let geometry = Geometry::new(u64::from(PIECES * piece_len), piece_len).expect("sane");
        let mut core = Core::new(Setup {
            geometry,
            block_bytes: BLOCK_LEN,
            have: Some(PieceSet::full(geometry)),
            budget: 1 << 20,
            upload_slots: 3,
            rng: StdRng::seed_from_u64(1),
        });
        let now = Duration::ZERO;
        let owners = (0u64..).zip(links_of_owners).flat_map(|(owner, &count)| vec![owner; count]);
        let links: Vec<_> = owners.map(|owner| (core.join_of(owner, now).0, owner)).collect();
        let (of_link, of_owner) = (HashMap::new(), HashMap::new());
        let mut seeder = Seeder { core, geometry, links, now, wants, of_link, of_owner };
        for (key, owner) in seeder.links.clone() {
            (0..16).for_each(|_| seeder.ask(key, owner));
        }
        seeder
    }

    fn ask(&mut self, key: PeerKey, owner: u64) {
        let (link, all) = (self.of_link.entry(key).or_default(), self.of_owner.entry(owner).or_default());
        let block = (self.wants)(*link, *all) % (PIECES * BLOCKS);
        (*link, *all) = (*link + 1, *all + 1);
        let piece = self.geometry.piece(block / BLOCKS).expect("one of them");
        assert!(self.core.heard_request(key, Request::block(&self.geometry, piece, block % BLOCKS), self.now));
    }

    /// Sends this many blocks, alternating between the links that have their turn. How many each owner got.
    fn send(&mut self, blocks: u32, stalls: impl Fn(u64) -> bool) -> HashMap<u64, u32> {
        let mut got: HashMap<u64, u32> = HashMap::new();
        let mut sent = 0;
        while sent < blocks {
            let mut is_idle = true;
            for (key, owner) in self.links.clone() {
                let mut one = 1;
                let fits = |_: &Request| std::mem::take(&mut one) == 1;
                let taken =
                    if self.core.next_upload(key).is_some() { self.core.take_uploads(key, fits) } else { Vec::new() };
                let Some(request) = taken.first() else { continue };
                is_idle = false;
                sent += 1;
                *got.entry(owner).or_default() += 1;
                self.now += Duration::from_millis(3);
                if stalls(owner) {
                    self.core.stalled(key, self.now);
                } else {
                    self.core.sent(key, request.piece, BLOCK_LEN, self.now);
                }
                self.ask(key, owner);
            }
            self.core.tick(self.now);
            let _ = self.core.take_actions();
            if is_idle {
                self.now += Duration::from_millis(100);
            }
        }
        got
    }
}

#[test]
fn a_room_with_one_link_each_shares_alike() {
    let got = Seeder::new(&[1; 6], |nth, _| nth).send(1200, |_| false);
    assert!(got.len() == 6 && got.values().all(|count| (180..=220).contains(count)), "{got:?}");
}

#[test]
fn many_links_that_want_different_blocks_get_less_than_one_that_is_alone() {
    let got = Seeder::new(&[60, 1], |_, nth| nth).send(3000, |_| false);
    assert!(got[&1] > 2000 && got[&0] > 300, "{got:?}");
    let got = Seeder::new(&[60, 1, 1, 1], |_, nth| nth).send(3000, |_| false);
    assert!((1..=3).all(|owner| got[&owner] > 600) && got[&0] > 100, "{got:?}");
}

#[test]
fn many_links_that_want_the_same_blocks_again_get_little() {
    let mut seeder = Seeder::new(&[60, 1], |nth, _| nth);
    let before = seeder.send(600, |_| false);
    let got = seeder.send(2000, |_| false);
    assert!(got[&1] > 1700 && got[&0] > 10, "{before:?}, then {got:?}");
}

#[test]
fn many_links_that_take_nothing_do_not_keep_another_from_its_turns() {
    let got = Seeder::new(&[60, 1], |_, nth| nth).send(2000, |owner| owner == 0);
    assert!(got[&1] > 1980, "{got:?}");
}

//! Who gets a stream frame: sequence to session, per link. The asymmetry to know: lookups happen per frame,
//! changes per session, so the latest answers of a shard are remembered where one comparison finds them.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use super::events::{LinkId, SessionId};
use crate::wire::hyper::StreamSeq;

/// Multiplies by a constant: sequences are handed out one after the other by us, never chosen by a peer.
#[derive(Debug, Default)]
pub struct SeqHasher(u64);

impl Hasher for SeqHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    fn write_u64(&mut self, n: u64) {
        self.0 = (self.0 ^ n).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}

/// `StreamSeq` to session, for one link.
#[derive(Debug, Default)]
pub struct RouteTable {
    routes: HashMap<u64, SessionId, BuildHasherDefault<SeqHasher>>,
}

impl RouteTable {
    /// Whose frames carry `seq`.
    pub fn find(&self, seq: StreamSeq) -> Option<SessionId> {
        self.routes.get(&seq.0).copied()
    }

    /// Routes `seq` to a session.
    pub fn add(&mut self, seq: StreamSeq, session: SessionId) {
        self.routes.insert(seq.0, session);
    }

    /// Forgets `seq`; its frames are skipped from now on.
    pub fn remove(&mut self, seq: StreamSeq) {
        self.routes.remove(&seq.0);
    }

    /// Number of sequences routed.
    pub fn len(&self) -> usize {
        self.routes.len()
    }

    /// Whether no sequence is routed.
    pub fn is_empty(&self) -> bool {
        self.routes.is_empty()
    }
}

/// Routes a cache remembers. Sequences are handed out one after the other, so that as many live sessions do not meet.
const CACHED: usize = 1_024;

#[derive(Debug, Clone, Copy)]
struct Cached {
    seq: StreamSeq,
    link: LinkId,
    session: SessionId,
}

/// What no link has.
const NOBODY: Cached = Cached { seq: StreamSeq(0), link: LinkId(u32::MAX), session: SessionId(u32::MAX) };

/// The latest answers of all route tables of a shard. Source: measured; a lookup in a table costs five times as much.
#[derive(Debug)]
pub struct RouteCache(Box<[Cached]>);

impl Default for RouteCache {
    fn default() -> RouteCache {
        RouteCache(vec![NOBODY; CACHED].into_boxed_slice())
    }
}

impl RouteCache {
    /// Whose frames carry `seq` on a link, whose table is `routes`.
    pub fn find(&mut self, link: LinkId, seq: StreamSeq, routes: &RouteTable) -> Option<SessionId> {
        let place = self.place(seq);
        if place.seq == seq && place.link == link {
            return Some(place.session);
        }
        let session = routes.find(seq)?;
        *place = Cached { seq, link, session };
        Some(session)
    }

    /// Must be called whenever a link's table forgets `seq`, or is forgotten itself.
    pub fn forget(&mut self, link: LinkId, seq: StreamSeq) {
        let place = self.place(seq);
        if place.seq == seq && place.link == link {
            *place = NOBODY;
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "the low bits choose the place")]
    fn place(&mut self, seq: StreamSeq) -> &mut Cached {
        &mut self.0[seq.0 as usize % CACHED]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_answers_as_the_tables_do() {
        let (mut a, mut b, mut cache) = (RouteTable::default(), RouteTable::default(), RouteCache::default());
        let (seq, rival) = (StreamSeq(5), StreamSeq(5 + CACHED as u64));
        a.add(seq, SessionId(1));
        a.add(rival, SessionId(2));
        b.add(StreamSeq(6), SessionId(3));
        for _ in 0..2 {
            assert_eq!(cache.find(LinkId(0), seq, &a), Some(SessionId(1)));
            assert_eq!(cache.find(LinkId(1), seq, &b), None, "another VM's sequence is nobody's here");
            assert_eq!(cache.find(LinkId(0), rival, &a), Some(SessionId(2)));
            assert_eq!(cache.find(LinkId(1), StreamSeq(6), &b), Some(SessionId(3)));
        }
        assert_eq!(cache.find(LinkId(0), seq, &a), Some(SessionId(1)));
        a.remove(seq);
        cache.forget(LinkId(1), seq);
        assert_eq!(cache.find(LinkId(0), seq, &a), Some(SessionId(1)), "remembered until it is told");
        cache.forget(LinkId(0), seq);
        assert_eq!(cache.find(LinkId(0), seq, &a), None);
        assert_eq!(cache.find(LinkId(u32::MAX - 1), StreamSeq(0), &a), None);
    }
}

//! Who gets a stream frame: sequence to session, per link. The asymmetry to know: lookups happen per frame,
//! changes per session, so the last answer is remembered.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use super::events::SessionId;
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
    last: Option<(StreamSeq, SessionId)>,
}

impl RouteTable {
    /// Whose frames carry `seq`.
    pub fn find(&mut self, seq: StreamSeq) -> Option<SessionId> {
        if let Some((last, session)) = self.last
            && last == seq
        {
            return Some(session);
        }
        let session = *self.routes.get(&seq.0)?;
        self.last = Some((seq, session));
        Some(session)
    }

    /// Routes `seq` to a session.
    pub fn add(&mut self, seq: StreamSeq, session: SessionId) {
        self.routes.insert(seq.0, session);
    }

    /// Forgets `seq`; its frames are skipped from now on.
    pub fn remove(&mut self, seq: StreamSeq) {
        self.routes.remove(&seq.0);
        self.last = None;
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

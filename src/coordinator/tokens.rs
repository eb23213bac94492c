//! Tokens, the sessions they name, and how far their processes are. Pure.
//!
//! A token is claimed by one connection at a time and used by one process ever. The asymmetry to know: the shard
//! owns the session and its bytes; here is only what commands need to know, and it is forgotten when the shard says
//! that the session has ended.

use std::collections::HashMap;
use std::rc::Rc;

use tokio::sync::Notify;

use super::registry::RequestError;
use super::shims::Attendant;
use crate::wire::cc2::SessionToken;
use crate::wire::hyper::StreamSeq;

/// How far a session's process is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Progress {
    /// None was started.
    Waiting,
    /// The agent has been asked to start it.
    Starting(Rc<Target>),
    /// It runs, or ran.
    Running(Rc<Target>),
    /// It was signalled to death before it started, and will not start.
    Cancelled,
}

/// Whom a signal is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) container: String,
    pub(super) process: String,
    /// It is its container's first process.
    pub(super) first: bool,
}

/// One session with a token.
#[derive(Debug)]
pub(super) struct TokenEntry {
    pub(super) token: SessionToken,
    pub(super) vm: u64,
    pub(super) shard: usize,
    /// The connection that has claimed it, and who deals with its messages.
    pub(super) claim: Option<(u64, Rc<dyn Attendant>)>,
    /// The process that claimed it last.
    pub(super) pid: i32,
    pub(super) progress: Progress,
    /// Who is told when `claim` or `progress` changes, or the entry goes.
    watchers: Option<Rc<Notify>>,
}

impl TokenEntry {
    /// Whether this connection still has the token: what a shim asked for is not done once it has left.
    pub(super) fn is_claimed_by(&self, connection: u64) -> bool {
        self.claim.as_ref().is_some_and(|(claimed, _)| *claimed == connection)
    }

    /// What is told once, when `claim` or `progress` changes next, or the entry goes.
    pub(super) fn change(&mut self) -> Rc<Notify> {
        Rc::clone(self.watchers.get_or_insert_default())
    }

    fn changed(&mut self) {
        if let Some(watchers) = self.watchers.take() {
            watchers.notify_waiters();
        }
    }
}

/// All of them. Entries are boxed, because half of a table's places are empty.
#[derive(Debug, Default)]
pub(super) struct Tokens {
    by_base: HashMap<u64, Box<TokenEntry>>,
    /// First sequences by the beginning of the token, which no two share.
    bases: HashMap<u64, u64>,
    next_connection: u64,
    /// Entries that are claimed.
    claimed: u64,
}

impl Tokens {
    /// Whether a token could be mixed up with one that is there: 64 random bits say that it never is.
    pub(super) fn is_taken(&self, token: SessionToken) -> bool {
        self.bases.contains_key(&token.beginning())
    }

    /// Adds a session whose token is not taken.
    pub(super) fn add(&mut self, token: SessionToken, base: StreamSeq, vm: u64, shard: usize) {
        let progress = Progress::Waiting;
        let entry = TokenEntry { token, vm, shard, claim: None, pid: 0, progress, watchers: None };
        self.by_base.insert(base.0, Box::new(entry));
        self.bases.insert(token.beginning(), base.0);
    }

    /// The session a client names.
    pub(super) fn find(&self, text: &str) -> Result<StreamSeq, RequestError> {
        let base = SessionToken::parse(text).and_then(|token| {
            let base = *self.bases.get(&token.beginning())?;
            (self.by_base.get(&base)?.token == token).then_some(base)
        });
        base.map(StreamSeq).ok_or_else(|| RequestError::UnknownToken(text.to_owned()))
    }

    pub(super) fn entry(&mut self, base: StreamSeq) -> Option<&mut TokenEntry> {
        self.by_base.get_mut(&base.0).map(|entry| &mut **entry)
    }

    /// Claims a token for a new connection, whose messages go to `attendant`. Returns its number.
    pub(super) fn claim(
        &mut self,
        base: StreamSeq,
        text: &str,
        pid: i32,
        attendant: Rc<dyn Attendant>,
    ) -> Result<u64, RequestError> {
        self.next_connection += 1;
        let connection = self.next_connection;
        let entry = self.entry(base).ok_or_else(|| RequestError::UnknownToken(text.to_owned()))?;
        if entry.claim.is_some() {
            return Err(RequestError::TokenClaimed(text.to_owned()));
        }
        (entry.claim, entry.pid) = (Some((connection, attendant)), pid);
        entry.changed();
        self.claimed += 1;
        Ok(connection)
    }

    /// A connection is gone: its token is free. Returns the shard if it had the token.
    pub(super) fn unclaim(&mut self, base: StreamSeq, connection: u64) -> Option<usize> {
        let entry = self.entry(base)?;
        entry.claim.take_if(|(claimed, _)| *claimed == connection)?;
        entry.changed();
        let shard = entry.shard;
        self.claimed -= 1;
        Some(shard)
    }

    /// Who deals with the messages of a connection that has the token.
    pub(super) fn attendant(&mut self, base: StreamSeq, connection: u64) -> Option<Rc<dyn Attendant>> {
        let (claimed, attendant) = self.entry(base)?.claim.as_ref()?;
        (*claimed == connection).then(|| Rc::clone(attendant))
    }

    /// How many connections have a token.
    pub(super) fn claimed(&self) -> u64 {
        self.claimed
    }

    pub(super) fn set(&mut self, base: StreamSeq, progress: Progress) {
        if let Some(entry) = self.entry(base) {
            entry.progress = progress;
            entry.changed();
        }
    }

    /// Forgets a session.
    pub(super) fn remove(&mut self, base: StreamSeq) -> Option<Box<TokenEntry>> {
        let mut entry = self.by_base.remove(&base.0)?;
        self.bases.remove(&entry.token.beginning());
        self.claimed -= u64::from(entry.claim.is_some());
        entry.changed();
        Some(entry)
    }

    /// The session of a VM's process.
    pub(super) fn of_process(&self, vm: u64, container: &str, process: &str) -> Option<StreamSeq> {
        let is_it = |entry: &TokenEntry| match &entry.progress {
            Progress::Starting(target) | Progress::Running(target) => {
                entry.vm == vm && target.container == container && target.process == process
            }
            Progress::Waiting | Progress::Cancelled => false,
        };
        // Processes may share an ID one after the other; the last one started is meant.
        self.by_base.iter().filter(|(_, entry)| is_it(entry)).map(|(&base, _)| StreamSeq(base)).max()
    }

    /// Whether a VM has sessions somebody could miss: claimed, or with a process.
    pub(super) fn is_used(&self, vm: u64) -> bool {
        let used = |entry: &TokenEntry| entry.claim.is_some() || !matches!(entry.progress, Progress::Waiting);
        self.by_base.values().any(|entry| entry.vm == vm && used(entry))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Coordinator, ShimLink};
    use super::*;
    use crate::wire::cc2::Frame;

    #[derive(Debug)]
    struct Nobody;

    impl Attendant for Nobody {
        fn attend(self: Rc<Self>, _: &Coordinator, _: ShimLink, _: Frame) {}
    }

    fn some() -> (Tokens, StreamSeq, String) {
        let mut tokens = Tokens::default();
        let token = SessionToken::new([7; 32]);
        tokens.add(token, StreamSeq(3), 1, 0);
        (tokens, StreamSeq(3), token.to_string())
    }

    #[test]
    fn a_token_is_small() {
        assert!(size_of::<TokenEntry>() <= 104, "{} bytes", size_of::<TokenEntry>());
    }

    #[test]
    fn a_token_is_claimed_once_and_free_again() {
        let (mut tokens, base, text) = some();
        assert_eq!(tokens.find(&text).unwrap(), base);
        assert_eq!(tokens.find("AAAA").unwrap_err().to_string(), "unknown token: AAAA");
        let mut similar = [7; 32];
        similar[31] = 8;
        let similar = SessionToken::new(similar);
        assert!(tokens.is_taken(similar), "it would be mixed up with the other");
        assert!(tokens.find(&similar.to_string()).is_err(), "all of a token counts");
        assert!(!tokens.is_taken(SessionToken::new([8; 32])));
        let claim = |tokens: &mut Tokens| tokens.claim(base, &text, 1, Rc::new(Nobody));
        let first = claim(&mut tokens).unwrap();
        assert_eq!(claim(&mut tokens).unwrap_err().to_string(), format!("token already claimed: {text}"));
        assert_eq!(tokens.unclaim(base, first + 1), None);
        assert!(claim(&mut tokens).is_err(), "another connection's end frees nothing");
        assert_eq!(tokens.claimed(), 1);
        assert!(tokens.attendant(base, first).is_some() && tokens.attendant(base, first + 1).is_none());
        assert_eq!(tokens.unclaim(base, first), Some(0));
        assert!(claim(&mut tokens).unwrap() > first);
        tokens.remove(base).unwrap();
        assert_eq!(tokens.claimed(), 0);
        assert!(tokens.find(&text).is_err());
    }

    #[test]
    fn events_find_the_session_of_their_process() {
        let (mut tokens, base, _) = some();
        let target = Target { container: "c".into(), process: "p".into(), first: false };
        assert_eq!(tokens.of_process(1, "c", "p"), None);
        assert!(!tokens.is_used(1));
        tokens.set(base, Progress::Starting(Rc::new(target)));
        assert_eq!(tokens.of_process(1, "c", "p"), Some(base));
        assert_eq!(tokens.of_process(2, "c", "p"), None);
        assert!(tokens.is_used(1) && !tokens.is_used(2));
    }
}

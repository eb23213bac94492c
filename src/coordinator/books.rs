//! What the coordinator knows, under any order of what may happen to it, held against a model as simple as possible.
//!
//! Only tests. The asymmetry to know: the model keeps every VM and token that ever was, so that one that comes back
//! shows.

use std::rc::Rc;

use proptest::prelude::*;

use super::registry::{Registry, RequestError, VmRef, VmState};
use super::shims::Attendant;
use super::tokens::Tokens;
use super::{Coordinator, ShimLink};
use crate::wire::cc2::{Frame, SessionToken};
use crate::wire::hyper::StreamSeq;

#[derive(Debug)]
struct Nobody;

impl Attendant for Nobody {
    fn attend(self: Rc<Self>, _: &Coordinator, _: ShimLink, _: Frame) {}
}

/// What happens; numbers choose among what there is.
#[derive(Debug, Clone, Copy)]
enum Happening {
    Hello(usize),
    Up(usize),
    Dies(usize),
    Bye(usize),
    Hidden(usize),
    Token(usize),
    Claim(usize),
    Unclaim(usize, bool),
    Ends(usize),
    FailedShard(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Connecting,
    Up,
    Dead,
    Hidden,
    Forgotten,
}

struct Token {
    base: StreamSeq,
    text: String,
    lives: bool,
    /// Which connection has it.
    claim: Option<u64>,
}

/// The coordinator's books, and what they should say.
struct Books {
    registry: Registry,
    tokens: Tokens,
    vms: Vec<(VmRef, Life)>,
    sessions: Vec<Token>,
    failed: [bool; SHARDS],
}

const SHARDS: usize = 3;

impl Books {
    fn new() -> Books {
        let (vms, sessions) = (Vec::new(), Vec::new());
        Books {
            registry: Registry::new(SHARDS, 100),
            tokens: Tokens::default(),
            vms,
            sessions,
            failed: [false; SHARDS],
        }
    }

    /// The VM that has a name.
    fn named(&self, name: &str) -> Option<usize> {
        let has_name = |life| !matches!(life, Life::Hidden | Life::Forgotten);
        self.vms.iter().position(|(vm, life)| vm.id() == name && has_name(*life))
    }

    fn hello(&mut self, number: usize) {
        let name = format!("vm{}", number % 4);
        let holder = self.named(&name);
        let got = self.registry.reserve(&name, "/c", "/i");
        match holder.map(|index| &mut self.vms[index].1) {
            Some(life) if *life != Life::Dead => return assert_eq!(got, Err(RequestError::AlreadyRegistered(name))),
            Some(life) => *life = Life::Forgotten,
            None => {}
        }
        if self.failed == [true; SHARDS] {
            return assert_eq!(got, Err(RequestError::Stopping));
        }
        let vm = got.expect("a name that is free");
        assert!(self.vms.iter().all(|(other, _)| other.key < vm.key), "a VM's number given twice");
        let shard = self.registry.by_key(vm.key).expect("it was just made").1.shard;
        assert!(!self.failed[shard], "a VM on a shard that failed");
        self.vms.push((vm, Life::Connecting));
    }

    /// Lets a VM with a name, if there is one, come to something.
    fn becomes(&mut self, number: usize, next: Life) {
        let Some((vm, life)) = self.vms.iter_mut().rev().nth(number % 8) else { return };
        match (*life, next) {
            (Life::Forgotten, _) => return assert!(self.registry.remove(vm.key).is_none(), "a VM forgotten twice"),
            (_, Life::Forgotten) => drop(self.registry.remove(vm.key).expect("it is there")),
            (Life::Hidden, _) | (Life::Dead, Life::Up | Life::Hidden) => return,
            (_, Life::Hidden) => self.registry.hide(vm.key),
            (_, state) => {
                let state = if state == Life::Up { VmState::Ready } else { VmState::Gone("killed".to_owned()) };
                self.registry.by_key(vm.key).expect("it is there").1.state = state;
            }
        }
        *life = next;
    }

    fn token(&mut self, number: usize) {
        let Some((vm, _)) = self.vms.iter().rev().nth(number % 8) else { return };
        let base = self.registry.sequences(2).expect("there are many");
        assert!(self.sessions.iter().all(|token| token.base.0 + 1 < base.0), "a sequence given twice");
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&base.0.to_be_bytes());
        let token = SessionToken::new(bytes);
        self.tokens.add(token, base, vm.key, 0);
        self.sessions.push(Token { base, text: token.to_string(), lives: true, claim: None });
    }

    fn claim(&mut self, number: usize) {
        let Some(token) = self.sessions.iter_mut().rev().nth(number % 8) else { return };
        let got = self.tokens.claim(token.base, &token.text, 1, Rc::new(Nobody));
        match (token.lives, token.claim) {
            (true, None) => token.claim = Some(got.expect("a token that is free")),
            (true, Some(_)) => assert_eq!(got, Err(RequestError::TokenClaimed(token.text.clone()))),
            (false, _) => assert_eq!(got, Err(RequestError::UnknownToken(token.text.clone()))),
        }
    }

    fn unclaim(&mut self, number: usize, stale: bool) {
        let Some(token) = self.sessions.iter_mut().rev().nth(number % 8) else { return };
        let connection = token.claim.unwrap_or(1) + u64::from(stale);
        let frees = token.claim == Some(connection);
        assert_eq!(self.tokens.unclaim(token.base, connection).is_some(), frees);
        token.claim = token.claim.filter(|_| !frees);
    }

    fn ends(&mut self, number: usize) {
        let Some(token) = self.sessions.iter_mut().rev().nth(number % 8) else { return };
        assert_eq!(self.tokens.remove(token.base).is_some(), token.lives, "a session ends once");
        (token.lives, token.claim) = (false, None);
    }

    fn happens(&mut self, happening: Happening) {
        match happening {
            Happening::Hello(number) => self.hello(number),
            Happening::Up(number) => self.becomes(number, Life::Up),
            Happening::Dies(number) => self.becomes(number, Life::Dead),
            Happening::Bye(number) => self.becomes(number, Life::Forgotten),
            Happening::Hidden(number) => self.becomes(number, Life::Hidden),
            Happening::Token(number) => self.token(number),
            Happening::Claim(number) => self.claim(number),
            Happening::Unclaim(number, stale) => self.unclaim(number, stale),
            Happening::Ends(number) => self.ends(number),
            Happening::FailedShard(number) => {
                self.registry.placement.fail(number % SHARDS);
                self.failed[number % SHARDS] = true;
            }
        }
    }

    fn check(&mut self) {
        for (vm, life) in &self.vms {
            let usable = self.registry.usable(vm).map(|found| found.key);
            match life {
                Life::Forgotten => assert_eq!(usable, Err(RequestError::Unknown(vm.id().to_owned()))),
                Life::Dead => assert!(matches!(usable, Err(RequestError::Gone { .. }))),
                Life::Connecting | Life::Up | Life::Hidden => assert_eq!(usable, Ok(vm.key)),
            }
        }
        for name in (0..4).map(|number| format!("vm{number}")) {
            let found = self.named(&name).map(|index| &self.vms[index]).filter(|(_, life)| *life != Life::Connecting);
            assert_eq!(self.registry.find(&name).ok().as_ref(), found.map(|(vm, _)| vm));
        }
        for token in &self.sessions {
            assert_eq!(self.tokens.find(&token.text).ok(), token.lives.then_some(token.base));
            let connection = token.claim.unwrap_or(1);
            assert_eq!(self.tokens.attendant(token.base, connection).is_some(), token.claim.is_some());
        }
        let claimed = self.sessions.iter().filter(|token| token.claim.is_some()).count();
        assert_eq!(self.tokens.claimed(), claimed as u64);
    }
}

fn happening() -> impl Strategy<Value = Happening> {
    let n = || 0..8_usize;
    prop_oneof![
        5 => n().prop_map(Happening::Hello),
        4 => n().prop_map(Happening::Up),
        2 => n().prop_map(Happening::Dies),
        2 => n().prop_map(Happening::Bye),
        2 => n().prop_map(Happening::Hidden),
        5 => n().prop_map(Happening::Token),
        5 => n().prop_map(Happening::Claim),
        4 => (n(), any::<bool>()).prop_map(|(number, stale)| Happening::Unclaim(number, stale)),
        2 => n().prop_map(Happening::Ends),
        1 => n().prop_map(Happening::FailedShard),
    ]
}

proptest! {
    #[test]
    fn the_books_say_what_happened(happenings in prop::collection::vec(happening(), 1..80)) {
        let mut books = Books::new();
        for happening in happenings {
            books.happens(happening);
            books.check();
        }
    }
}

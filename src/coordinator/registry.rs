//! What the coordinator knows: VMs by name, sessions by sequence, and the one counter sequences come from.
//!
//! Pure. The asymmetry to know: a VM that died keeps its name until bye, so that a runtime's clean-up succeeds, but
//! gives it up at once to a new hello.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use super::channel::ControlHandle;
use super::placement::Placement;
use super::users::Excess;
use crate::limits::{SEQ_END, SEQ_EPOCH_SECS, SEQ_PER_MILLI, SOCKETS_SLACK, VM_ID_MAX, VMS_MAX};
use crate::wire::hyper::StreamSeq;

/// What a VM can be doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum VmState {
    /// hello is under way.
    Connecting,
    /// Commands and sessions are served.
    Ready,
    /// It died; why.
    Gone(String),
}

/// One VM.
#[derive(Debug)]
pub(super) struct Vm {
    /// Its number on the shards; never reused.
    pub(super) key: u64,
    pub(super) shard: usize,
    pub(super) state: VmState,
    /// Paths of its two sockets.
    pub(super) ctl: Box<str>,
    pub(super) io: Box<str>,
    pub(super) control: Option<ControlHandle>,
    /// When the log last said that a client holds it back.
    pub(super) warned: Option<Instant>,
    /// Sessions with a token it has.
    pub(super) tokens: usize,
    /// Sessions of protocol 1 it has.
    pub(super) sessions: usize,
    /// The agent's API version, once asked.
    pub(super) api: Option<u32>,
}

impl Vm {
    /// The VM, if so many more sessions are no more than it may have.
    pub(super) fn room_for(&mut self, more: usize, vm: &VmRef, most: usize) -> Result<&mut Vm, Excess> {
        let sum = self.sessions.saturating_add(self.tokens).saturating_add(more);
        if sum <= most { Ok(self) } else { Err(Excess::OfVm { id: vm.id.to_string(), most }) }
    }
}

/// Which VM a client is attached to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmRef {
    pub(super) key: u64,
    pub(super) id: Rc<str>,
}

impl VmRef {
    /// The VM's name.
    pub fn id(&self) -> &str {
        &self.id
    }
}

/// Why a request failed: what the client is told, word for word.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// A member of hello is missing or empty.
    #[error("malformed hello command")]
    MalformedHello,
    /// The name is too long.
    #[error("containerId of {0} bytes: at most {VM_ID_MAX}")]
    NameTooLong(usize),
    /// The name is taken.
    #[error("{0}: container already registered")]
    AlreadyRegistered(String),
    /// No such VM.
    #[error("unknown containerID: {0}")]
    Unknown(String),
    /// The VM died.
    #[error("{id}: the VM is gone: {why}")]
    Gone {
        /// Its name.
        id: String,
        /// Why.
        why: String,
    },
    /// hello first.
    #[error("client not attached to a vm")]
    NotAttached,
    /// Neither 1 nor 2.
    #[error("asking for unexpected number of streams ({0})")]
    Streams(i64),
    /// No such hyperstart command.
    #[error("unknown command '{0}'")]
    UnknownCommand(String),
    /// The message is longer than agents take.
    #[error("message too long {0}")]
    MessageTooLong(usize),
    /// The agent's answer, or its absence.
    #[error("{0}")]
    Command(#[from] super::control::CommandError),
    /// The VM's sockets cannot be connected to.
    #[error("{id}: cannot connect to {path}: {why}")]
    Connect {
        /// The VM's name.
        id: String,
        /// Which socket.
        path: String,
        /// Why not.
        why: String,
    },
    /// The path is not one this client may use.
    #[error("{id}: {why}")]
    Path {
        /// The VM's name.
        id: String,
        /// What is wrong.
        why: String,
    },
    /// The agent never said that it is up.
    #[error("{id}: the agent gave no sign of life within {seconds} s")]
    NotReady {
        /// The VM's name.
        id: String,
        /// How long was waited.
        seconds: u64,
    },
    /// Too many VMs.
    #[error("too many VMs ({VMS_MAX})")]
    TooManyVms,
    /// The counter is used up.
    #[error("no stream sequences left: restart the daemon")]
    NoSequences,
    /// Over what a user or a VM may have.
    #[error("{0}")]
    Excess(#[from] Excess),
    /// Out of something; names it.
    #[error("out of resources: {0}")]
    Resources(String),
    /// Too many sessions on one VM, or asked for at once.
    #[error("asking for {asked} tokens: at most {most}")]
    Tokens {
        /// How many were asked for.
        asked: i64,
        /// How many could be had.
        most: i64,
    },
    /// No such token, or not of this VM.
    #[error("unknown token: {0}")]
    UnknownToken(String),
    /// Another shim has it.
    #[error("token already claimed: {0}")]
    TokenClaimed(String),
    /// A process was started with it before.
    #[error("token already used: {0}")]
    TokenUsed(String),
    /// Only commands that start a process take one.
    #[error("{name} doesn't need tokens but {count} token(s) were given")]
    NeedlessTokens {
        /// The command.
        name: String,
        /// How many.
        count: usize,
    },
    /// A process has one session.
    #[error("expected 0 or 1 token, got {0}")]
    ManyTokens(usize),
    /// Nobody claimed the token in time.
    #[error("timeout waiting for shim with token {0}")]
    NoShim(String),
    /// The command's payload has no process, or one that chose its sequences.
    #[error("{0}")]
    Process(#[from] crate::wire::process::ProcessError),
    /// Only shims may.
    #[error("client isn't a shim")]
    NotAShim,
    /// It has a token already.
    #[error("client is already a shim")]
    AlreadyAShim,
    /// No such signal.
    #[error("invalid signal number {0}: 1 to 64")]
    SignalNumber(i64),
    /// A window has columns and rows.
    #[error("SIGWINCH needs columns and rows from 1 to 65535")]
    WindowSize,
    /// The agent has no way to do it.
    #[error("the agent (hyperstart API {0}) cannot signal a process started by execcmd")]
    CannotSignal(u32),
    /// The process never started.
    #[error("no process was started in time")]
    NotStarted,
    /// The daemon is stopping.
    #[error("the daemon is stopping")]
    Stopping,
}

/// All VMs and sessions.
#[derive(Debug)]
pub(super) struct Registry {
    pub(super) vms: BTreeMap<Rc<str>, Box<Vm>>,
    /// Those unregistered over protocol 2 that still have processes, by number.
    pub(super) hidden: BTreeMap<u64, (Rc<str>, Box<Vm>)>,
    ids: HashMap<u64, Rc<str>>,
    /// Loads of the shards, and how many VMs each has.
    pub(super) placement: Placement,
    /// Sockets per shard: links, sessions and shims.
    sockets: Vec<u32>,
    /// Sockets one shard can serve.
    sockets_max: u32,
    next_key: u64,
    next_seq: u64,
    /// The counter has left behind what an earlier daemon may have handed out.
    skipped: bool,
}

impl Registry {
    pub(super) fn new(shards: usize, sockets_max: u32) -> Registry {
        Registry {
            vms: BTreeMap::new(),
            hidden: BTreeMap::new(),
            ids: HashMap::new(),
            placement: Placement::new(shards),
            sockets: vec![0; shards],
            sockets_max,
            next_key: 1,
            next_seq: 1,
            skipped: false,
        }
    }

    /// Takes a name for a VM that connects, on the shard that works least.
    pub(super) fn reserve(&mut self, id: &str, ctl: &str, io: &str) -> Result<VmRef, RequestError> {
        if id.len() > VM_ID_MAX {
            return Err(RequestError::NameTooLong(id.len()));
        }
        match self.vms.get(id).map(|vm| (&vm.state, vm.key)) {
            Some((VmState::Gone(_), key)) => drop(self.remove(key)),
            Some(_) => return Err(RequestError::AlreadyRegistered(id.to_owned())),
            None => {}
        }
        if self.vms.len() >= VMS_MAX {
            // Numbers rise: the lowest is the VM that was registered first.
            let gone = self.vms.values().filter(|vm| matches!(vm.state, VmState::Gone(_)));
            let oldest = gone.map(|vm| vm.key).min().ok_or(RequestError::TooManyVms)?;
            self.remove(oldest);
        }
        // A daemon with a failed shard ends.
        let shard = self.placement.place().ok_or(RequestError::Stopping)?;
        let key = self.next_key;
        self.next_key += 1;
        let state = VmState::Connecting;
        let vm = Vm {
            key,
            shard,
            state,
            ctl: ctl.into(),
            io: io.into(),
            control: None,
            warned: None,
            tokens: 0,
            sessions: 0,
            api: None,
        };
        let id: Rc<str> = id.into();
        self.vms.insert(Rc::clone(&id), Box::new(vm));
        self.ids.insert(key, Rc::clone(&id));
        Ok(VmRef { key, id })
    }

    /// Forgets a VM.
    pub(super) fn remove(&mut self, key: u64) -> Option<Box<Vm>> {
        let vm = match self.ids.remove(&key) {
            Some(id) => self.vms.remove(&id)?,
            None => self.hidden.remove(&key)?.1,
        };
        self.placement.leave(vm.shard);
        Some(vm)
    }

    /// A session of a VM has ended, one with a token or one of protocol 1.
    pub(super) fn end_session(&mut self, key: u64, had_token: bool) {
        let Some((_, vm)) = self.by_key(key) else { return };
        let count = if had_token { &mut vm.tokens } else { &mut vm.sessions };
        *count = count.saturating_sub(1);
    }

    /// Gives up a VM's name; its processes go on.
    pub(super) fn hide(&mut self, key: u64) {
        if let Some(id) = self.ids.remove(&key)
            && let Some(vm) = self.vms.remove(&id)
        {
            self.hidden.insert(key, (id, vm));
        }
    }

    /// The VM with this number, whatever its state.
    pub(super) fn by_key(&mut self, key: u64) -> Option<(&str, &mut Vm)> {
        if let Some(id) = self.ids.get(&key) {
            return Some((id, self.vms.get_mut(id)?));
        }
        let (id, vm) = self.hidden.get_mut(&key)?;
        Some((id, vm))
    }

    /// The VM a client is attached to, if it can be used.
    pub(super) fn usable(&mut self, vm: &VmRef) -> Result<&mut Vm, RequestError> {
        match self.by_key(vm.key) {
            None => Err(RequestError::Unknown(vm.id.to_string())),
            Some((id, Vm { state: VmState::Gone(why), .. })) => {
                Err(RequestError::Gone { id: id.to_owned(), why: why.clone() })
            }
            Some((_, found)) => Ok(found),
        }
    }

    /// The VM with this name, in any state but connecting.
    pub(super) fn find(&self, id: &str) -> Result<VmRef, RequestError> {
        match self.vms.get_key_value(id) {
            Some((id, vm)) if vm.state != VmState::Connecting => Ok(VmRef { key: vm.key, id: Rc::clone(id) }),
            _ => Err(RequestError::Unknown(id.to_owned())),
        }
    }

    /// Takes a place for one more socket on a shard. A socket that has ended may still be on its way out, which
    /// [`SOCKETS_SLACK`] is for.
    pub(super) fn take_socket(&mut self, shard: usize) -> Result<(), RequestError> {
        let most = self.sockets_max - SOCKETS_SLACK.min(self.sockets_max / 8);
        if self.sockets[shard] >= most {
            return Err(RequestError::Resources(format!("shard {shard} serves {most} sockets, its most (--shards)")));
        }
        self.sockets[shard] += 1;
        Ok(())
    }

    /// Gives it back.
    pub(super) fn give_socket(&mut self, shard: usize) {
        self.sockets[shard] = self.sockets[shard].saturating_sub(1);
    }

    /// Takes `streams` sequences in a row, never used before.
    pub(super) fn sequences(&mut self, streams: u8) -> Result<StreamSeq, RequestError> {
        let base = self.next_seq;
        let next = base + u64::from(streams);
        if next > SEQ_END {
            return Err(RequestError::NoSequences);
        }
        self.next_seq = next;
        Ok(StreamSeq(base))
    }

    /// A VM was up before this daemon knew it: its processes may have sequences of an earlier daemon. Moves the
    /// counter beyond all of those, once, to a number made of the time: 256 for each millisecond since 2020.
    pub(super) fn skip_sequences_in_use(&mut self, now: SystemTime) {
        if std::mem::replace(&mut self.skipped, true) {
            return;
        }
        let since = now.duration_since(UNIX_EPOCH + Duration::from_secs(SEQ_EPOCH_SECS)).unwrap_or_default();
        let start = u64::try_from(since.as_millis()).ok().and_then(|millis| millis.checked_mul(SEQ_PER_MILLI));
        // A clock that is wrong by a thousand years leaves the counter where it is.
        if let Some(start) = start.filter(|start| (self.next_seq..SEQ_END / 2).contains(start)) {
            self.next_seq = start;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_belongs_to_one_vm_until_it_dies_or_leaves() {
        let mut registry = Registry::new(2, 1_000);
        let first = registry.reserve("vm", "/c", "/i").unwrap();
        let taken = registry.reserve("vm", "/c", "/i").unwrap_err();
        assert_eq!(taken.to_string(), "vm: container already registered");
        assert_eq!(registry.find("vm").unwrap_err().to_string(), "unknown containerID: vm");
        registry.by_key(first.key).unwrap().1.state = VmState::Gone("killed".to_owned());
        let attached = registry.find("vm").unwrap();
        assert_eq!(attached, first);
        assert_eq!(registry.usable(&first).unwrap_err().to_string(), "vm: the VM is gone: killed");
        let second = registry.reserve("vm", "/c", "/i").unwrap();
        assert_ne!(first.key, second.key);
        assert_eq!(registry.usable(&first).unwrap_err().to_string(), "unknown containerID: vm");
        assert!(registry.remove(second.key).is_some());
        assert!(registry.remove(second.key).is_none());
    }

    #[test]
    fn a_vm_that_died_makes_room_when_there_are_too_many() {
        let mut registry = Registry::new(1, 1_000);
        let vms: Vec<_> = (0..VMS_MAX).map(|n| registry.reserve(&format!("vm{n}"), "/c", "/i").unwrap()).collect();
        assert_eq!(registry.reserve("more", "/c", "/i"), Err(RequestError::TooManyVms));
        for n in [9, 3, 5] {
            registry.by_key(vms[n].key).unwrap().1.state = VmState::Gone("killed".to_owned());
        }
        for (name, evicted) in [("first", "vm3"), ("second", "vm5"), ("third", "vm9")] {
            registry.reserve(name, "/c", "/i").unwrap();
            assert!(registry.find(evicted).is_err() && !registry.vms.contains_key(evicted), "{evicted}");
        }
        assert_eq!(registry.reserve("more", "/c", "/i"), Err(RequestError::TooManyVms));
    }

    #[test]
    fn vms_are_spread_over_shards() {
        let mut registry = Registry::new(3, 1_000);
        let keys: Vec<_> = (0..9).map(|n| registry.reserve(&format!("vm{n}"), "/c", "/i").unwrap().key).collect();
        let mut on = [0; 3];
        keys.iter().for_each(|&key| on[registry.by_key(key).unwrap().1.shard] += 1);
        assert_eq!(on, [3, 3, 3]);
        let freed = registry.remove(keys[4]).unwrap().shard;
        let next = registry.reserve("next", "/c", "/i").unwrap();
        assert_eq!(registry.by_key(next.key).unwrap().1.shard, freed);
    }

    #[test]
    fn a_shard_that_failed_gets_no_vm() {
        let mut registry = Registry::new(2, 1_000);
        registry.placement.fail(0);
        for n in 0..5 {
            let vm = registry.reserve(&format!("vm{n}"), "/c", "/i").unwrap();
            assert_eq!(registry.by_key(vm.key).unwrap().1.shard, 1);
        }
        registry.placement.fail(1);
        assert_eq!(registry.reserve("vm", "/c", "/i"), Err(RequestError::Stopping));
    }

    #[test]
    fn sequences_are_never_reused_and_end_below_what_a_float_holds() {
        let mut registry = Registry::new(1, 1_000);
        assert_eq!(registry.sequences(2).unwrap(), StreamSeq(1));
        assert_eq!(registry.sequences(1).unwrap(), StreamSeq(3));
        assert_eq!(registry.sequences(2).unwrap(), StreamSeq(4));
        registry.next_seq = SEQ_END - 2;
        assert_eq!(registry.sequences(2).unwrap(), StreamSeq(SEQ_END - 2));
        assert_eq!(registry.sequences(1), Err(RequestError::NoSequences));
    }

    #[test]
    fn a_vm_that_was_up_before_moves_the_counter_on_once() {
        let at = |millis| UNIX_EPOCH + Duration::from_secs(SEQ_EPOCH_SECS) + Duration::from_millis(millis);
        let mut registry = Registry::new(1, 1_000);
        registry.sequences(2).unwrap();
        registry.skip_sequences_in_use(at(1_000));
        assert_eq!(registry.sequences(1).unwrap(), StreamSeq(256_000));
        registry.skip_sequences_in_use(at(2_000));
        assert_eq!(registry.sequences(1).unwrap(), StreamSeq(256_001));
        for clock in [UNIX_EPOCH, at(0), at(SEQ_END)] {
            let mut registry = Registry::new(1, 1_000);
            registry.sequences(2).unwrap();
            registry.skip_sequences_in_use(clock);
            assert_eq!(registry.sequences(1).unwrap(), StreamSeq(3), "a clock that is wrong");
        }
    }

    #[test]
    fn a_full_shard_takes_no_more_until_a_socket_ends() {
        let mut registry = Registry::new(2, 2);
        registry.take_socket(1).unwrap();
        registry.take_socket(1).unwrap();
        let refused = registry.take_socket(1).unwrap_err();
        assert_eq!(refused.to_string(), "out of resources: shard 1 serves 2 sockets, its most (--shards)");
        registry.take_socket(0).unwrap();
        registry.give_socket(1);
        registry.take_socket(1).unwrap();
    }
}

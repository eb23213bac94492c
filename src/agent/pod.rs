//! Who is who in the guest: containers, their processes, and the sequences, process IDs and names they go by.
//!
//! No process is started or signalled here. The asymmetry to know: a process ends twice. When it is reaped its
//! process ID is nobody's any more; when its last output and status are delivered its sequences and name are free
//! ([`Pod::retire`]).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;

use serde_json::json;
use tokio::sync::{Notify, watch};

use crate::limits::{GUEST_PROCESSES_MAX, GUEST_STRAYS_MAX};
use crate::os::process::Ending;
use crate::wire::hyper::{Process, StreamSeq};

use super::command::{Refusal, Target, refuse};
use super::stdin::{StdinTable, Taken};

/// Names a process inside the agent; never reused.
pub(super) type ProcessKey = u64;

/// A container: a root directory and a first process.
#[derive(Debug)]
pub(super) struct Container {
    pub(super) root: PathBuf,
    first: Option<ProcessKey>,
}

/// One process, from its start until its status is delivered.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) container: String,
    pub(super) id: Option<String>,
    /// 0 when it has none; likewise `stderr`.
    pub(super) stdio: StreamSeq,
    pub(super) stderr: StreamSeq,
    /// The master's end of its terminal.
    pub(super) terminal: Option<Rc<OwnedFd>>,
    /// Its process ID while it may be signalled.
    pub(super) pid: Option<i32>,
    /// Set when it is reaped.
    pub(super) ending: watch::Sender<Option<Ending>>,
    /// Something new is queued on its stdin.
    pub(super) stdin_ready: Rc<Notify>,
}

/// Everything above, for one guest.
#[derive(Debug)]
pub(super) struct Pod {
    pub(super) share_dir: String,
    pub(super) started: bool,
    pub(super) stdin: StdinTable,
    containers: HashMap<String, Container>,
    processes: BTreeMap<ProcessKey, Entry>,
    by_seq: HashMap<StreamSeq, ProcessKey>,
    by_pid: HashMap<i32, ProcessKey>,
    next_key: ProcessKey,
    strays: BTreeSet<StreamSeq>,
}

impl Pod {
    /// Empty, with this table for stdin.
    pub(super) fn new(stdin: StdinTable) -> Pod {
        Pod {
            share_dir: String::new(),
            started: false,
            stdin,
            containers: HashMap::new(),
            processes: BTreeMap::new(),
            by_seq: HashMap::new(),
            by_pid: HashMap::new(),
            next_key: 1,
            strays: BTreeSet::new(),
        }
    }

    /// The root a process of this container starts in; no name is the agent's own root.
    pub(super) fn root_of(&self, container: &str) -> Result<PathBuf, Refusal> {
        match self.containers.get(container) {
            Some(found) => Ok(found.root.clone()),
            None if container.is_empty() => Ok("/".into()),
            None => refuse(format!("no container '{container}'")),
        }
    }

    /// Whether a container has this name.
    pub(super) fn has_container(&self, container: &str) -> bool {
        self.containers.contains_key(container)
    }

    /// Adds a container whose first process is added next.
    pub(super) fn add_container(&mut self, id: &str, root: PathBuf) {
        self.containers.insert(id.to_owned(), Container { root, first: None });
    }

    /// Says which process is the container's first.
    pub(super) fn set_first(&mut self, container: &str, key: ProcessKey) {
        if let Some(found) = self.containers.get_mut(container) {
            found.first = Some(key);
        }
    }

    /// Forgets a container.
    pub(super) fn remove_container(&mut self, container: &str) {
        self.containers.remove(container);
    }

    /// Whether a process with these names and sequences can be added to this container.
    pub(super) fn check_new(&self, container: &str, process: &Process) -> Result<(), Refusal> {
        if self.processes.len() >= GUEST_PROCESSES_MAX {
            return refuse(format!("{GUEST_PROCESSES_MAX} processes are running; that is the most there can be"));
        }
        for seq in [process.stdio, process.stderr] {
            if seq != 0 && self.stdin.is_known(StreamSeq(seq)) {
                return refuse(format!("sequence {seq} is in use"));
            }
        }
        match &process.id {
            Some(id) if self.find_named(container, id).is_some() => {
                refuse(format!("container '{container}' has a process '{id}' already"))
            }
            _ => Ok(()),
        }
    }

    /// Adds a process; its sequences are known from now on.
    pub(super) fn add(&mut self, entry: Entry) -> ProcessKey {
        let key = self.next_key;
        self.next_key += 1;
        if entry.stdio.0 != 0 {
            self.stdin.open(entry.stdio, entry.terminal.is_some());
        }
        if entry.stderr.0 != 0 {
            self.stdin.open_output(entry.stderr);
        }
        for seq in [entry.stdio, entry.stderr] {
            // An answer to input that came too early would end the session that begins now.
            self.strays.remove(&seq);
            self.by_seq.insert(seq, key);
        }
        if let Some(pid) = entry.pid {
            self.by_pid.insert(pid, key);
        }
        self.processes.insert(key, entry);
        key
    }

    /// A child was reaped. Returns whether it was one of ours.
    pub(super) fn ended(&mut self, pid: i32, ending: Ending) -> bool {
        let Some(entry) = self.by_pid.remove(&pid).and_then(|key| self.processes.get_mut(&key)) else { return false };
        entry.pid = None;
        entry.ending.send_replace(Some(ending));
        true
    }

    /// Frees everything a process went by.
    pub(super) fn retire(&mut self, key: ProcessKey) -> Option<Entry> {
        let entry = self.processes.remove(&key)?;
        for seq in [entry.stdio, entry.stderr] {
            self.stdin.remove(seq);
            self.by_seq.remove(&seq);
        }
        if let Some(pid) = entry.pid {
            self.by_pid.remove(&pid);
        }
        if let Some(container) = self.containers.get_mut(&entry.container).filter(|found| found.first == Some(key)) {
            container.first = None;
        }
        Some(entry)
    }

    /// Its stdio and stderr sequences.
    pub(super) fn sequences(&self, key: ProcessKey) -> Option<(StreamSeq, StreamSeq)> {
        self.processes.get(&key).map(|entry| (entry.stdio, entry.stderr))
    }

    /// Payload of the event that says a process ended.
    pub(super) fn finished_event(&self, key: ProcessKey, status: u8) -> Vec<u8> {
        let (container, process) = match self.processes.get(&key) {
            Some(entry) => (entry.container.as_str(), entry.id.as_deref().unwrap_or("")),
            None => ("", ""),
        };
        let event = json!({ "container": container, "process": process, "event": "finished", "status": status });
        event.to_string().into_bytes()
    }

    /// The process a command means.
    pub(super) fn find(&self, target: &Target) -> Result<&Entry, Refusal> {
        let found = match target {
            Target::Seq(seq) => self.by_seq.get(seq).copied(),
            Target::Named { container, process } if process.is_empty() => {
                self.containers.get(container).and_then(|container| container.first)
            }
            Target::Named { container, process } => self.find_named(container, process),
        };
        match (found.and_then(|key| self.processes.get(&key)), target) {
            (Some(entry), _) => Ok(entry),
            (None, Target::Seq(seq)) => refuse(format!("no process has sequence {seq}")),
            (None, Target::Named { container, process }) => {
                refuse(format!("container '{container}' has no running process '{process}'"))
            }
        }
    }

    fn find_named(&self, container: &str, id: &str) -> Option<ProcessKey> {
        let named = |entry: &Entry| entry.container == container && entry.id.as_deref() == Some(id);
        self.processes.iter().find(|(_, entry)| named(entry)).map(|(&key, _)| key)
    }

    /// Process ID of a container's first process.
    pub(super) fn first_pid(&self, container: &str) -> Option<i32> {
        let first = self.containers.get(container)?.first?;
        self.processes.get(&first)?.pid
    }

    /// Process IDs that may be signalled: one container's, or all.
    pub(super) fn pids(&self, container: Option<&str>) -> Vec<i32> {
        let wanted = |entry: &&Entry| container.is_none_or(|name| entry.container == name);
        self.processes.values().filter(wanted).filter_map(|entry| entry.pid).collect()
    }

    /// Process IDs that may be signalled, of processes on terminals.
    pub(super) fn terminal_pids(&self) -> Vec<i32> {
        self.processes.values().filter(|entry| entry.terminal.is_some()).filter_map(|entry| entry.pid).collect()
    }

    /// Processes whose status is not delivered yet.
    pub(super) fn unfinished(&self) -> usize {
        self.processes.len()
    }

    /// Takes one frame of the stream channel.
    pub(super) fn take_frame(&mut self, seq: StreamSeq, payload: &[u8]) -> Taken {
        let taken = self.stdin.push(seq, payload);
        match taken {
            Taken::Queued => {
                if let Some(entry) = self.by_seq.get(&seq).and_then(|key| self.processes.get(key)) {
                    entry.stdin_ready.notify_one();
                }
            }
            Taken::Unknown if self.strays.len() < GUEST_STRAYS_MAX => {
                self.strays.insert(seq);
            }
            Taken::Unknown => tracing::debug!(%seq, "input for an unknown sequence goes unanswered: too many wait"),
            Taken::Ignored => {}
        }
        taken
    }

    /// The next unknown sequence to answer with EOF.
    pub(super) fn next_stray(&mut self) -> Option<StreamSeq> {
        self.strays.pop_first()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> Pod {
        Pod::new(StdinTable::new(100, 1000))
    }

    fn entry(container: &str, id: &str, seqs: (u64, u64), pid: i32) -> Entry {
        Entry {
            container: container.into(),
            id: Some(id.into()),
            stdio: StreamSeq(seqs.0),
            stderr: StreamSeq(seqs.1),
            terminal: None,
            pid: Some(pid),
            ending: watch::Sender::new(None),
            stdin_ready: Rc::new(Notify::new()),
        }
    }

    fn named(container: &str, process: &str) -> Target {
        Target::Named { container: container.into(), process: process.into() }
    }

    #[test]
    fn a_process_is_found_by_all_its_names_until_it_retires() {
        let mut pod = pod();
        pod.add_container("c", "/root".into());
        let key = pod.add(entry("c", "p", (1, 2), 77));
        pod.set_first("c", key);
        for target in [Target::Seq(StreamSeq(1)), Target::Seq(StreamSeq(2)), named("c", "p"), named("c", "")] {
            assert_eq!(pod.find(&target).unwrap().pid, Some(77));
        }
        assert_eq!(pod.first_pid("c"), Some(77));
        assert!(pod.ended(77, Ending::Exited(3)));
        assert_eq!((pod.first_pid("c"), pod.pids(None)), (None, vec![]));
        assert!(!pod.ended(77, Ending::Exited(3)), "a process ID is not ours for ever");
        assert_eq!(pod.find(&named("c", "p")).unwrap().pid, None);
        assert!(pod.retire(key).is_some());
        assert!(pod.find(&named("c", "p")).is_err() && pod.find(&Target::Seq(StreamSeq(1))).is_err());
        assert_eq!(pod.unfinished(), 0);
        assert!(pod.retire(key).is_none());
    }

    #[test]
    fn names_and_sequences_are_unique() {
        let mut pod = pod();
        pod.add(entry("c", "p", (1, 2), 77));
        let asking = |stdio, stderr, id: &str| Process { stdio, stderr, id: Some(id.into()), ..Process::default() };
        assert!(pod.check_new("c", &asking(1, 3, "q")).is_err());
        assert!(pod.check_new("c", &asking(3, 2, "q")).is_err());
        assert!(pod.check_new("c", &asking(3, 4, "p")).is_err());
        assert!(pod.check_new("d", &asking(3, 4, "p")).is_ok());
        assert!(pod.check_new("c", &asking(0, 0, "q")).is_ok());
    }

    #[test]
    fn early_input_is_answered_once_and_not_after_its_process_exists() {
        let mut pod = pod();
        assert_eq!(pod.take_frame(StreamSeq(1), b"x"), Taken::Unknown);
        assert_eq!(pod.take_frame(StreamSeq(1), b"y"), Taken::Unknown);
        assert_eq!(pod.take_frame(StreamSeq(9), b""), Taken::Unknown);
        pod.add(entry("", "p", (9, 0), 5));
        assert_eq!(pod.next_stray(), Some(StreamSeq(1)));
        assert_eq!(pod.next_stray(), None);
    }

    #[test]
    fn answers_to_unknown_sequences_are_bounded() {
        let mut pod = pod();
        for seq in 1..5_000 {
            pod.take_frame(StreamSeq(seq), b"x");
        }
        assert_eq!(std::iter::from_fn(|| pod.next_stray()).count(), GUEST_STRAYS_MAX);
    }
}

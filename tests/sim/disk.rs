//! The simulated disk: files that slow clients' output spills to, on a disk that is slow, small and fails.
//!
//! Operations take any time, in any order among files; writes and reads come short; there is no space, or the disk is
//! broken for a while; what was read twice in vain is lost with its session. The asymmetry to know: a file that is
//! closed goes at once, but its operations in flight keep their memory, as the kernel does.

use std::collections::BTreeMap;

use ringway::buf::{BufView, Source};
use ringway::limits::{CHUNK_LEN, SEND_MAX};
use ringway::relay::{Plane, SessionId, SpillBounds, SpillFault, SpillOp, SpillSpace, Spilled};
use ringway::wire::SlowReader;

use crate::peers::At;
use crate::random::Random;
use crate::shape::Shape;
use crate::world::{Step, World};

/// What nobody wrote, or what was there before a hole was punched.
const NOTHING: u8 = 0xDD;

/// Sizes and habits of the disk.
#[derive(Debug, Clone)]
pub(crate) struct DiskShape {
    /// Bytes of one file, and of all.
    pub(crate) session: u64,
    pub(crate) total: u64,
    /// Percent of operations in flight that end in one turn.
    pub(crate) quick: usize,
    /// Percent of writes and reads that come short.
    pub(crate) short: usize,
    /// Percent of operations that fail.
    pub(crate) fails: usize,
    /// Of a hundred sessions, so many have another policy.
    pub(crate) others: usize,
}

impl DiskShape {
    pub(crate) fn calm() -> DiskShape {
        DiskShape { session: 1 << 30, total: 1 << 30, quick: 100, short: 0, fails: 0, others: 0 }
    }

    pub(crate) fn random(random: &mut Random) -> DiskShape {
        DiskShape {
            session: random.pick(&[4 << 10, 64 << 10, 1 << 20, 1 << 30]),
            total: random.pick(&[16 << 10, 256 << 10, 1 << 30]),
            quick: random.pick(&[5, 30, 100]),
            short: random.pick(&[0, 20, 60]),
            fails: random.pick(&[0, 0, 5, 30]),
            others: random.pick(&[0, 20]),
        }
    }
}

/// A plane that spills as the shape says.
pub(crate) fn plane(shape: &Shape) -> Plane {
    let plane = Plane::new(shape.tuning);
    match &shape.disk {
        None => plane,
        Some(disk) => plane.with_spill(SpillBounds { session: disk.session, space: SpillSpace::new(disk.total) }),
    }
}

/// An operation in flight. It holds a reference to each view.
#[derive(Debug)]
enum Op {
    Open,
    Write { views: Vec<BufView>, bytes: Vec<u8>, offset: usize },
    Read { views: Vec<BufView>, offset: usize, len: usize },
    Punch { offset: usize, len: usize },
}

impl Op {
    fn views(&self) -> &[BufView] {
        match self {
            Op::Write { views, .. } | Op::Read { views, .. } => views,
            Op::Open | Op::Punch { .. } => &[],
        }
    }
}

#[derive(Debug, Default)]
struct File {
    open: bool,
    bytes: Vec<u8>,
    ops: Vec<Op>,
    /// Its last read failed, and is tried once more.
    retries: bool,
}

/// All files.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    files: BTreeMap<u32, File>,
    /// Operations of files that were closed.
    orphans: Vec<Op>,
    /// Bytes written by all that were reported.
    pub(crate) written: u64,
    /// Sessions lost with what could not be read.
    pub(crate) lost: usize,
}

impl World {
    pub(crate) fn choose_policy(&mut self, index: usize) {
        let Some(disk) = &self.shape.disk else { return };
        let (session, others) = (self.clients[index].session, disk.others);
        if self.random.percent(others) {
            self.set_policy(index, session, &[SlowReader::Block, SlowReader::Disconnect]);
        }
    }

    fn set_policy(&mut self, index: usize, session: SessionId, from: &[SlowReader]) {
        let policy = self.random.pick(from);
        self.clients[index].slow_reader = policy;
        self.plane.set_slow_reader(session, policy);
    }

    /// A scenario's word.
    pub(crate) fn reads_slowly(&mut self, client: At, policy: SlowReader) {
        let At::Client(index) = client else { panic!("not a client") };
        self.set_policy(index, self.clients[index].session, &[policy]);
    }

    pub(crate) fn spill(&mut self, session: SessionId, op: SpillOp) {
        self.progress += 1;
        let index = *self.sessions.get(&session).expect("a spill file of a session that is gone");
        if op == SpillOp::Open {
            assert!(!std::mem::replace(&mut self.clients[index].spilling, true), "client {index} has a spill file");
            let file = File { ops: vec![Op::Open], ..File::default() };
            assert!(self.disk.files.insert(session.0, file).is_none(), "a second file");
            return;
        }
        let mut file = self.disk.files.remove(&session.0).expect("a spill file that is there");
        let range = |offset: u64, views: &[BufView]| {
            (usize::try_from(offset).expect("small"), views.iter().map(|view| view.len as usize).sum::<usize>())
        };
        let is_write = |op: &Op| matches!(op, Op::Write { .. });
        let is_read = |op: &Op| matches!(op, Op::Read { .. });
        match op {
            SpillOp::Open => {}
            SpillOp::Write { views, offset } => {
                let views = self.plane.views(views).to_vec();
                let bytes = views.iter().flat_map(|&view| self.mem.bytes(view)).copied().collect();
                let (offset, len) = range(offset, &views);
                assert!(file.open && len > 0 && !file.ops.iter().any(is_write), "one write at a time");
                assert!(views.iter().all(|view| matches!(view.source, Source::Chunk(_))), "a lease on its way to disk");
                views.iter().for_each(|view| self.mem.retain(view.source));
                file.ops.push(Op::Write { views, bytes, offset });
            }
            SpillOp::Read { views, offset } => {
                let views = self.plane.views(views).to_vec();
                let (offset, len) = range(offset, &views);
                assert!(file.open && len > 0 && !file.ops.iter().any(is_read), "one read at a time");
                assert!(offset + len <= file.bytes.len(), "a read of what was never written");
                views.iter().for_each(|view| self.mem.retain(view.source));
                file.ops.push(Op::Read { views, offset, len });
            }
            SpillOp::Punch { offset, len } => {
                let len = usize::try_from(len).expect("small");
                file.ops.push(Op::Punch { offset: range(offset, &[]).0, len });
            }
            SpillOp::Close => {
                self.clients[index].spilling = false;
                self.disk.orphans.append(&mut file.ops);
                return;
            }
        }
        self.disk.files.insert(session.0, file);
    }

    /// Some operations end.
    pub(crate) fn run_disk(&mut self) {
        let Some(shape) = self.shape.disk.clone() else { return };
        let sessions: Vec<u32> = self.disk.files.keys().copied().collect();
        for session in sessions {
            let ready = |file: &File| !file.ops.is_empty();
            while self.disk.files.get(&session).is_some_and(ready) && (self.healed || self.random.percent(shape.quick))
            {
                self.end_file_op(session, &shape);
            }
        }
        if !self.disk.orphans.is_empty() && (self.healed || self.random.percent(30)) {
            let index = self.random.below(self.disk.orphans.len());
            let op = self.disk.orphans.swap_remove(index);
            self.progress += 1;
            self.end_in_vain(&op);
        }
        if self.plane.wants_to_retry() && (self.healed || self.random.percent(20)) {
            self.plane.retry_spills();
        }
    }

    /// An operation of a closed file ends: it touches its own memory and nothing else.
    fn end_in_vain(&mut self, op: &Op) {
        if let Op::Read { views, .. } = op {
            views.iter().for_each(|view| self.fill(*view, &vec![NOTHING; view.len as usize]));
        }
        op.views().iter().for_each(|view| self.mem.release(view.source));
    }

    fn fill(&mut self, view: BufView, bytes: &[u8]) {
        let Source::Chunk(chunk) = view.source else { panic!("a read into a receive buffer") };
        self.mem.chunks.write(chunk, view.off, bytes);
    }

    fn end_file_op(&mut self, session: u32, shape: &DiskShape) {
        let fails = !self.healed && self.random.percent(shape.fails);
        let short = !self.healed && self.random.percent(shape.short);
        let full = self.random.percent(50);
        let fault = || SpillFault { full, text: if full { "no space" } else { "broken" }.to_owned() };
        let file = self.disk.files.get_mut(&session).expect("it is there");
        let op = file.ops.swap_remove(self.random.below(file.ops.len()));
        let index = self.sessions[&SessionId(session)];
        self.progress += 1;
        let how = match &op {
            Op::Open if fails => {
                self.disk.files.remove(&session);
                self.clients[index].spilling = false;
                Spilled::Opened(Err(fault()))
            }
            Op::Open => {
                file.open = true;
                Spilled::Opened(Ok(()))
            }
            Op::Punch { .. } if fails => Spilled::Punched(Err(fault())),
            Op::Punch { offset, len } => {
                file.bytes[*offset..offset + len].fill(NOTHING);
                Spilled::Punched(Ok(()))
            }
            Op::Write { views, bytes, offset } => {
                let now: Vec<u8> = views.iter().flat_map(|&view| self.mem.bytes(view)).copied().collect();
                assert!(now == *bytes, "bytes changed while they were written");
                let n =
                    if short || fails { self.random.between(usize::from(!fails), bytes.len()) } else { bytes.len() };
                let end = file.bytes.len().max(offset + n);
                file.bytes.resize(end, NOTHING);
                file.bytes[*offset..offset + n].copy_from_slice(&bytes[..n]);
                if fails { Spilled::Wrote(Err(fault())) } else { Spilled::Wrote(Ok(n)) }
            }
            Op::Read { views, offset, len } => {
                let was_retried = std::mem::replace(&mut file.retries, fails);
                let n = if short && !was_retried { self.random.between(1, *len) } else { *len };
                let mut bytes = file.bytes[*offset..offset + len].to_vec();
                bytes[n..].fill(NOTHING);
                let mut at = 0;
                for &view in views {
                    let end = at + view.len as usize;
                    self.fill(view, &bytes[at..end]);
                    at = end;
                }
                if fails && was_retried {
                    self.disk.lost += 1;
                    self.expect_session_end(index);
                }
                if fails { Spilled::Read(Err(fault())) } else { Spilled::Read(Ok(n)) }
            }
        };
        if let Spilled::Wrote(Ok(n)) = how {
            self.disk.written += n as u64;
        }
        self.note(Step::Spilled(index, how.clone()));
        self.plane.spilled(&mut self.mem, SessionId(session), how);
        self.carry_out(At::Client(index));
        op.views().iter().for_each(|view| self.mem.release(view.source));
    }

    /// A session ends for good, with its token.
    fn expect_session_end(&mut self, index: usize) {
        if let Some(shim) = &mut self.clients[index].shim {
            shim.released = true;
        }
        self.expect_client_death(index);
    }

    /// Sessions that were to be ended for not reading are those that are owed too much, and no others: those of shims
    /// that are stuck end for that.
    pub(crate) fn expect_too_slow(&mut self, over: bool) {
        let sessions = self.plane.status().into_iter().flat_map(|link| link.sessions);
        let alive = sessions.filter(|session| session.state != "leaving");
        let alive: Vec<u64> = alive.map(|session| session.io_base).collect();
        for index in 0..self.clients.len() {
            let client = &self.clients[index];
            let ended = !client.reported_ended && !client.doomed && !alive.contains(&client.base);
            if ended && client.slow_reader == SlowReader::Disconnect {
                if over || client.to_client.owed() >= self.shape.tuning.session_buffer {
                    self.expect_session_end(index);
                } else {
                    assert!(self.is_stuck(index), "client {index} was ended below its bound");
                }
            }
        }
    }

    /// Chunks that spilling sessions may hold beyond others: what is in front of the file and on its way.
    pub(crate) fn chunks_of_spills(&self) -> usize {
        let orphans: usize = self.disk.orphans.iter().map(|op| op.views().len()).sum();
        let each = 4 * self.shape.tuning.session_buffer / CHUNK_LEN + 16;
        orphans + self.clients.iter().filter(|client| client.spilling).count() * each
    }

    /// What a spilling session has in memory stays under its bound.
    pub(crate) fn check_spills(&self) {
        if !self.clients.iter().any(|client| client.spilling) {
            return;
        }
        for session in self.plane.status().into_iter().flat_map(|link| link.sessions) {
            let client = &self.clients[self.seqs[&session.io_base]];
            assert!(client.spilling || session.spilled == 0, "{session:?} has spilled without a file");
            let in_memory = session.queued_to_client - session.spilled;
            let most = 3 * self.shape.tuning.session_buffer + 4 * self.shape.to_client.bytes() + 4 * SEND_MAX;
            assert!(!client.spilling || in_memory <= most as u64, "{in_memory} bytes in memory, {most} at most");
            let bound = self.shape.disk.as_ref().map_or(0, |disk| disk.session);
            assert!(session.spilled <= bound, "{} bytes in a file, {bound} at most", session.spilled);
        }
    }

    /// Every file is gone, and its space is free.
    pub(crate) fn check_no_spills(&self) {
        assert!(self.disk.files.is_empty() && self.disk.orphans.is_empty(), "spill files at rest");
        let totals = self.plane.totals();
        assert_eq!((totals.spilling, totals.spill_space), (0, 0), "spill space at rest");
    }
}

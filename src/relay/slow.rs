//! What is done about clients that do not read: their output spills to a file, their VM is not read, or they go.
//!
//! The asymmetry to know: a VM is held back at once, in the flush that finds a session owed too much; spilling and
//! ending wait until the effects of that flush have been carried out, because they touch what it sends.

use super::events::{Effect, Gone, Report, Sending, SessionId};
use super::plane::{Plane, session_id};
use super::session::Session;
use super::spill::{Outcome, Sizes, Spill, SpillBounds, SpillOp, Spilled};
use crate::buf::{Leases, Memory};
use crate::wire::SlowReader;

/// What is to become of a session once the effects of a flush have been carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Its shim may have to be given up.
    MayBeStuck,
    /// It is owed more than its bound in memory.
    Spills,
    /// It ends, for the same reason.
    Ends,
}

impl Plane {
    /// The same plane, whose slow clients' output may spill.
    #[must_use]
    pub fn with_spill(self, bounds: SpillBounds) -> Plane {
        Plane { spill_bounds: Some(bounds), ..self }
    }

    /// Says what is done about a session whose client does not read.
    pub fn set_slow_reader(&mut self, id: SessionId, policy: SlowReader) {
        self.sessions[id.0 as usize].slow_reader = policy;
    }

    /// Sees to a session that is owed too much: behind the bytes just `tried`, so that a client that keeps up but gets
    /// less a turn than its agent sends is bounded too, or with those that wait.
    pub(super) fn bound_output<L: Leases>(&mut self, mem: &mut Memory<L>, id: SessionId, tried: Option<usize>) {
        let over = tried.is_none() && self.is_over_total(mem);
        let tried = tried.unwrap_or(0);
        let session = &self.sessions[id.0 as usize];
        let full = session.to_client.bytes() - tried >= self.tuning.session_buffer;
        let is_nobodys = session.link.is_none() || session.blocks || session.is_given_up();
        if is_nobodys || session.to_client.ready() == tried || !(full || over) {
            return;
        }
        match (session.slow_reader, &session.spill) {
            (SlowReader::Spill, Some(spill)) if !full && spill.stopped().is_none() => {}
            (SlowReader::Spill, None) if self.head_to_keep(session).is_some() => {
                self.verdicts.push((id, Verdict::Spills));
            }
            (SlowReader::Disconnect, _) => self.verdicts.push((id, Verdict::Ends)),
            (SlowReader::Spill | SlowReader::Block, _) => self.hold_link(id),
        }
    }

    /// Stops reading a session's link because of it.
    fn hold_link(&mut self, id: SessionId) {
        let session = &mut self.sessions[id.0 as usize];
        let Some(link_id) = session.link.filter(|_| !session.blocks) else { return };
        session.blocks = true;
        self.verdicts.push((id, Verdict::MayBeStuck));
        let link = &mut self.links[link_id.0 as usize];
        link.blockers += 1;
        if link.blockers == 1 {
            self.totals.blocked += 1;
            let (vm, by) = (link.vm, session.base);
            self.update_reading(link_id);
            self.effects.push(Effect::Report(Report::LinkBlocked { vm, by }));
        }
    }

    /// Reads a session's link again as far as it is concerned.
    pub(super) fn unblock_link(&mut self, id: SessionId) {
        let session = &mut self.sessions[id.0 as usize];
        if !std::mem::take(&mut session.blocks) {
            return;
        }
        let Some(link_id) = session.link else { return };
        let link = &mut self.links[link_id.0 as usize];
        link.blockers -= 1;
        if link.blockers == 0 {
            self.effects.push(Effect::Report(Report::LinkUnblocked { vm: link.vm }));
        }
        self.update_reading(link_id);
    }

    /// Reads its link again if a session is owed little enough in memory for that. A frame that has not ended never
    /// holds it back: only reading can end it.
    pub(super) fn unblock_if_low<L: Leases>(&mut self, mem: &Memory<L>, id: SessionId) {
        let session = &self.sessions[id.0 as usize];
        if !session.blocks {
            return;
        }
        let out = &session.to_client;
        let spills = session.spill.as_ref().is_some_and(|spill| spill.stopped().is_none());
        let is_little = out.bytes() <= self.tuning.session_buffer / 2 && (spills || !self.is_over_total(mem));
        if out.ready() == 0 || is_little {
            self.unblock_link(id);
        }
    }

    /// Carries out what the last flush decided. Call it when its effects have been carried out; `true`: flush again.
    pub fn carry_out_verdicts<L: Leases>(&mut self, mem: &mut Memory<L>) -> bool {
        let mut any = false;
        while let Some((id, verdict)) = self.verdicts.pop() {
            let Some(session) = self.sessions.get(id.0 as usize) else { continue };
            match verdict {
                Verdict::MayBeStuck if !session.is_stuck() => continue,
                Verdict::MayBeStuck => self.gone(mem, super::Peer::Client(id), Gone::Closed),
                Verdict::Spills if !self.begin_spill(mem, id) => continue,
                Verdict::Spills => self.mark_client(id),
                Verdict::Ends => {
                    self.totals.too_slow += 1;
                    self.end_session(mem, id, Gone::TooSlow(self.tuning.session_buffer));
                }
            }
            any = true;
        }
        any
    }

    /// Ends a session for good, with its token if it has one.
    fn end_session<L: Leases>(&mut self, mem: &mut Memory<L>, id: SessionId, why: Gone) {
        if let Some(shim) = &mut self.sessions[id.0 as usize].shim {
            shim.give_up();
        }
        self.client_gone(mem, id, why);
    }

    /// How much of what a client is owed would stay in memory in front of a file: what is being sent at least. `None`
    /// where there is no more than that, or no file to be had.
    fn head_to_keep(&self, session: &Session) -> Option<usize> {
        let sizes = Sizes::of(self.tuning.session_buffer);
        let tried = match session.sending {
            Sending::Trying(bytes) if !session.sends_replies() => bytes,
            _ => 0,
        };
        let head = sizes.head.max(tried);
        let may_spill = self.spill_bounds.is_some() && session.spill.is_none();
        (may_spill && session.to_client.ready() >= head + sizes.segment).then_some(head)
    }

    /// Puts a file between the oldest and the newest of what a client is owed; `false` where none is to be.
    fn begin_spill<L: Leases>(&mut self, mem: &mut Memory<L>, id: SessionId) -> bool {
        let Some(head) = self.head_to_keep(&self.sessions[id.0 as usize]) else { return false };
        let session = &mut self.sessions[id.0 as usize];
        session.to_client.settle(&mut self.arena, mem);
        let head = session.to_client.split(&mut self.arena, mem, head);
        session.spill = Some(Box::new(Spill::new(head)));
        self.totals.spilling += 1;
        let (vm, base) = (session.vm, session.base);
        self.effects.push(Effect::Spill(id, SpillOp::Open));
        self.effects.push(Effect::Report(Report::SpillBegan { vm, base }));
        self.update_waiting(id);
        true
    }

    /// Does what there is to do between a session's file and its memory.
    pub(super) fn advance_spill<L: Leases>(&mut self, mem: &mut Memory<L>, id: SessionId) {
        let sizes = Sizes::of(self.tuning.session_buffer);
        let Plane { sessions, arena, views, effects, spill_bounds, totals, .. } = self;
        let session = &mut sessions[id.0 as usize];
        let (Some(spill), Some(bounds)) = (&mut session.spill, spill_bounds) else { return };
        let space = spill.space();
        let mut ask = |op| effects.push(Effect::Spill(id, op));
        session.to_client.settle(arena, mem);
        spill.refill(arena, mem, &mut session.to_client, sizes);
        spill.next_read(mem, views, sizes).into_iter().for_each(&mut ask);
        // A VM that is gone brings nothing more: what is in memory may stay there.
        if session.link.is_some() {
            match spill.next_write(arena, mem, &mut session.to_client, views, (sizes, bounds)) {
                Ok(op) => op.into_iter().for_each(&mut ask),
                Err(()) => totals.spill_full += 1,
            }
        }
        spill.next_punch(bounds).into_iter().for_each(&mut ask);
        totals.spill_space = totals.spill_space + spill.space() - space;
        self.retries |= spill.stopped().is_some();
        if let Some(why) = spill.stopped().filter(|_| !spill.told_stopped) {
            let (vm, base, why) = (session.vm, session.base, why.to_owned());
            effects.push(Effect::Report(Report::SpillStopped { vm, base, why }));
            spill.told_stopped = true;
        }
        if spill.is_over(&session.to_client, self.tuning.session_buffer / 2) {
            self.end_spill(mem, id);
        }
        self.unblock_if_low(mem, id);
    }

    /// Everything is in memory again.
    fn end_spill<L: Leases>(&mut self, mem: &mut Memory<L>, id: SessionId) {
        self.effects.push(Effect::Spill(id, SpillOp::Close));
        self.dissolve_spill(mem, id);
        let Session { vm, base, .. } = self.sessions[id.0 as usize];
        self.effects.push(Effect::Report(Report::SpillEnded { vm, base }));
    }

    fn dissolve_spill<L: Leases>(&mut self, mem: &mut Memory<L>, id: SessionId) {
        let session = &mut self.sessions[id.0 as usize];
        let (Some(spill), Some(bounds)) = (session.spill.take(), &self.spill_bounds) else { return };
        self.totals.spilling -= 1;
        self.totals.spill_space -= spill.space();
        let newest = std::mem::take(&mut session.to_client);
        session.to_client = spill.dissolve(&mut self.arena, mem, newest, bounds);
        self.update_waiting(id);
        self.spill_where_space_came_back();
    }

    /// Forgets what a session has spilled.
    pub(super) fn drop_spill<L: Leases>(&mut self, mem: &mut Memory<L>, id: SessionId) {
        let session = &mut self.sessions[id.0 as usize];
        let (Some(spill), Some(bounds)) = (session.spill.take(), &self.spill_bounds) else { return };
        self.totals.spilling -= 1;
        self.totals.spill_space -= spill.space();
        spill.clear(&mut self.arena, mem, bounds);
        self.effects.push(Effect::Spill(id, SpillOp::Close));
        self.spill_where_space_came_back();
    }

    /// Lets those try again who could not write for want of space.
    fn spill_where_space_came_back(&mut self) {
        if self.totals.spilling == 0 {
            return;
        }
        for (index, session) in &mut self.sessions {
            let Some(spill) = session.spill.as_mut().filter(|spill| spill.stopped().is_some()) else { continue };
            spill.try_again();
            if !std::mem::replace(&mut session.dirty, true) {
                self.dirty_clients.push(session_id(index));
            }
        }
    }

    /// Whether [`Plane::retry_spills`] is to be called after a while: somebody could not write.
    pub fn wants_to_retry(&self) -> bool {
        self.retries
    }

    /// Time has passed: lets those try again who could not write, or had no file to write to.
    pub fn retry_spills(&mut self) {
        self.retries = false;
        self.spill_where_space_came_back();
        for (index, session) in &self.sessions {
            let has_no_file = session.spill.is_none() && session.slow_reader == SlowReader::Spill;
            if session.blocks && has_no_file && self.spill_bounds.is_some() {
                self.verdicts.push((session_id(index), Verdict::Spills));
            }
        }
    }

    /// An operation on a session's spill file ended.
    pub fn spilled<L: Leases>(&mut self, mem: &mut Memory<L>, id: SessionId, how: Spilled) {
        let sizes = Sizes::of(self.tuning.session_buffer);
        let Plane { sessions, arena, views, effects, spill_bounds, totals, .. } = self;
        let Some(session) = sessions.get_mut(id.0 as usize) else { return };
        let (Some(spill), Some(bounds)) = (&mut session.spill, spill_bounds) else { return };
        match &how {
            Spilled::Wrote(Ok(n)) => totals.spill_written += *n as u64,
            Spilled::Read(Ok(n)) => totals.spill_read += *n as u64,
            Spilled::Opened(Err(fault)) | Spilled::Wrote(Err(fault)) | Spilled::Read(Err(fault)) if !fault.full => {
                totals.spill_errors += 1;
            }
            _ => {}
        }
        let (space, is_shim) = (spill.space(), session.shim.is_some());
        let ended = spill.ended(arena, mem, views, how, (sizes, bounds, is_shim));
        let freed = space - spill.space();
        totals.spill_space -= freed;
        match ended {
            Ok(op) => effects.extend(op.map(|op| Effect::Spill(id, op))),
            Err(Outcome::Stopped { full }) => totals.spill_full += u64::from(full),
            Err(Outcome::Lost(why)) => return self.end_session(mem, id, Gone::Spill(why)),
            Err(Outcome::NoFile(why)) => return self.spill_has_no_file(mem, id, why),
        }
        if freed > 0 {
            self.spill_where_space_came_back();
        }
        self.advance_spill(mem, id);
        self.mark_client(id);
    }

    /// A spill file could not be made: the VM waits until its client has read.
    fn spill_has_no_file<L: Leases>(&mut self, mem: &mut Memory<L>, id: SessionId, why: String) {
        let session = &self.sessions[id.0 as usize];
        let (vm, base) = (session.vm, session.base);
        self.effects.push(Effect::Report(Report::SpillStopped { vm, base, why }));
        self.dissolve_spill(mem, id);
        self.retries = true;
        let session = &self.sessions[id.0 as usize];
        let out = &session.to_client;
        if out.ready() > 0 && out.bytes() >= self.tuning.session_buffer && !session.is_given_up() {
            self.hold_link(id);
        }
        self.mark_client(id);
    }
}

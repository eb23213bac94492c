//! The rules towards clients: frames of an agent found, routed, owed and sent.
//!
//! The asymmetry to know: a frame may arrive in pieces over many turns, but leaves whole; what waits for its end is
//! out of the receive buffers by the end of the turn.

use super::events::{Effect, Gone, LinkId, Peer, Sending, SessionId};
use super::frames::{Face, FrameRun, Step};
use super::link::{Current, What};
use super::plane::{Plane, after_send};
use super::shim::Role;
use crate::buf::{BufView, Leases, Memory};
use crate::limits::{COPY_MAX, FRAMES_PER_RECEIVE};
use crate::wire::admin::Flow;
use crate::wire::hyper::{FrameHeader, SEQ_LEN};

/// Longest frame that is copied rather than gathered, header included.
#[expect(clippy::cast_possible_truncation, reason = "512 bytes")]
const SHORT_FRAME: u32 = COPY_MAX as u32;

impl Plane {
    pub(super) fn agent_received<L: Leases>(&mut self, mem: &mut Memory<L>, id: LinkId, view: BufView) {
        let before = self.links[id.0 as usize].frames();
        self.take_frames(mem, id, view);
        // It may have ended meanwhile.
        let frames = self.links.get(id.0 as usize).map_or(0, |link| link.frames().saturating_sub(before));
        if frames > FRAMES_PER_RECEIVE {
            self.effects.push(Effect::ReceiveLess(Peer::Agent(id)));
        }
    }

    fn take_frames<L: Leases>(&mut self, mem: &mut Memory<L>, id: LinkId, view: BufView) {
        let mut rest = view;
        loop {
            rest = rest.skip(self.short_to_clients(mem, id, rest));
            if rest.len == 0 {
                return;
            }
            let link = &mut self.links[id.0 as usize];
            let taken = match link.reader.step::<FrameHeader>(mem.bytes(rest), self.tuning.stream_frame_max) {
                Ok(Step::Whole(header)) => self.whole_to_client(mem, id, header, rest),
                Ok(Step::Begin { header, taken }) => {
                    self.begin_to_client(mem, id, header);
                    taken
                }
                Ok(Step::Body { len }) => {
                    self.body_to_client(mem, id, rest.first(len));
                    len
                }
                Ok(Step::Skip { len }) => len,
                Ok(Step::Kept) => return,
                Err(fault) => return self.link_gone(mem, id, Gone::Fault(fault)),
            };
            rest = rest.skip(taken);
        }
    }

    /// Copies whole short frames behind those their clients are owed already: nearly all frames of busy sessions, at a
    /// fraction of what the general way costs. Returns the number of bytes taken; the frame behind them goes that way.
    fn short_to_clients<L: Leases>(&mut self, mem: &mut Memory<L>, id: LinkId, view: BufView) -> u32 {
        let link = &mut self.links[id.0 as usize];
        let Some((bytes, chunks)) = mem.lease_and_chunks(view) else { return 0 };
        if link.reader.is_mid_frame() {
            return 0;
        }
        let (mut at, mut all) = (0, Flow::default());
        while let Some((head, _)) = bytes[at..].split_first_chunk()
            && let Ok(header) = FrameHeader::decode(*head, SHORT_FRAME)
            && let Some(frame) = bytes.get(at..at + header.len as usize)
            && let Some(session_id) = self.route_cache.find(id, header.seq, &link.routes)
        {
            let session = &mut self.sessions[session_id.0 as usize];
            let Some(face) = session.face_of(header) else { break };
            let taken = match face {
                // Several of one session, one behind the other, need not be copied.
                Face::Hyper(_) if bytes[at + frame.len()..].starts_with(&head[..SEQ_LEN]) => false,
                Face::Hyper(_) => session.to_client.push_short(&mut self.arena, chunks, &[], frame),
                Face::Shim(_) => {
                    let head = face.header(header.payload_len());
                    session.to_client.push_short(&mut self.arena, chunks, &head, &frame[head.len()..])
                }
            };
            if !taken {
                break;
            }
            let flow = Flow { frames: 1, bytes: u64::from(header.len) };
            session.flow_to_client += flow;
            all += flow;
            if !session.dirty {
                session.dirty = true;
                self.dirty_clients.push(session_id);
            }
            at += frame.len();
        }
        link.flow_to_client += all;
        self.totals.to_client += all;
        u32::try_from(at).expect("within a view")
    }

    /// The session a frame is for; `None`, and counted, when nobody wants it.
    fn route(&mut self, id: LinkId, header: FrameHeader) -> Option<SessionId> {
        let link = &mut self.links[id.0 as usize];
        let session = self.route_cache.find(id, header.seq, &link.routes);
        if session.is_none() {
            link.skipped += 1;
            self.totals.skipped += 1;
        }
        session
    }

    /// Skips the whole frame at the front of `rest`, which nobody wants, and those that follow it and nobody wants
    /// either. Returns the number of bytes.
    fn skip_strays<L: Leases>(&mut self, mem: &Memory<L>, id: LinkId, first: FrameHeader, rest: BufView) -> u32 {
        let (link, bytes) = (&mut self.links[id.0 as usize], mem.bytes(rest));
        let (mut len, mut more) = (first.len, 0);
        while let Some((head, _)) = bytes[len as usize..].split_first_chunk()
            && let Ok(next) = FrameHeader::decode(*head, rest.len - len)
            && self.route_cache.find(id, next.seq, &link.routes).is_none()
        {
            len += next.len;
            more += 1;
        }
        link.skipped += more;
        self.totals.skipped += more;
        len
    }

    /// Counts frames for a session, and looks at it at the end of the turn.
    fn count_output(&mut self, id: LinkId, session: SessionId, run: FrameRun) {
        let flow = Flow { frames: run.frames, bytes: u64::from(run.bytes) };
        self.links[id.0 as usize].flow_to_client += flow;
        self.totals.to_client += flow;
        self.sessions[session.0 as usize].flow_to_client += flow;
        self.mark_client(session);
    }

    /// Looks at what a client is owed at the end of the turn.
    pub(super) fn mark_client(&mut self, id: SessionId) {
        let session = &mut self.sessions[id.0 as usize];
        if !session.dirty {
            session.dirty = true;
            self.dirty_clients.push(id);
        }
    }

    /// Takes the whole frame at the front of `rest`, and those of the same session that follow it. Returns the number
    /// of bytes taken.
    fn whole_to_client<L: Leases>(
        &mut self,
        mem: &mut Memory<L>,
        id: LinkId,
        header: FrameHeader,
        rest: BufView,
    ) -> u32 {
        let Some(session) = self.route(id, header) else { return self.skip_strays(mem, id, header, rest) };
        let owner = &mut self.sessions[session.0 as usize];
        let role = owner.role(header);
        let run = match role {
            Role::Output(face @ Face::Hyper(_)) => FrameRun::at_front(mem.bytes(rest), header, face.client_max()),
            _ => FrameRun::of(header),
        };
        self.count_output(id, session, run);
        let (frames, out) = (rest.first(run.bytes), &mut self.sessions[session.0 as usize].to_client);
        let payload = rest.first(header.len).skip(header.len - header.payload_len());
        match role {
            Role::Output(face) if header.len <= face.client_max() => {
                if matches!(face, Face::Shim(_)) {
                    let head = face.header(header.payload_len());
                    mem.bytes_mut(frames)[..head.len()].copy_from_slice(&head);
                }
                out.push(&mut self.arena, mem, frames, true);
            }
            Role::Output(face) => {
                let max = face.client_max();
                let mut cut = out.begin_frame(&mut self.arena, mem, face, header.payload_len(), max);
                out.continue_frame(&mut self.arena, mem, &mut cut, payload, max);
            }
            Role::End => self.tell_exit(mem, session),
            Role::Status => self.exit_status(mem, session, mem.bytes(payload)[0]),
        }
        run.bytes
    }

    fn begin_to_client<L: Leases>(&mut self, mem: &mut Memory<L>, id: LinkId, header: FrameHeader) {
        self.links[id.0 as usize].current = None;
        let Some(session) = self.route(id, header) else { return };
        self.count_output(id, session, FrameRun::of(header));
        let owner = &mut self.sessions[session.0 as usize];
        let what = match owner.role(header) {
            Role::Output(face) => {
                let (out, max) = (&mut owner.to_client, face.client_max());
                What::Payload(out.begin_frame(&mut self.arena, mem, face, header.payload_len(), max))
            }
            Role::End => return self.tell_exit(mem, session),
            Role::Status => What::Status,
        };
        if header.payload_len() > 0 {
            self.links[id.0 as usize].current = Some(Current { session, what });
        }
    }

    fn body_to_client<L: Leases>(&mut self, mem: &mut Memory<L>, id: LinkId, payload: BufView) {
        let Some(Current { session, what }) = self.links[id.0 as usize].current else { return };
        let goes_on = match what {
            What::Payload(mut cut) => {
                let out = &mut self.sessions[session.0 as usize].to_client;
                let max = cut.face().client_max();
                out.continue_frame(&mut self.arena, mem, &mut cut, payload, max);
                self.mark_client(session);
                (!cut.is_done()).then_some(What::Payload(cut))
            }
            What::Status => {
                self.exit_status(mem, session, mem.bytes(payload)[0]);
                None
            }
        };
        self.links[id.0 as usize].current = goes_on.map(|what| Current { session, what });
        if goes_on.is_none() {
            self.tell_exit(mem, session);
        }
    }

    /// Forgets what a client is owed, and its routes: nobody wants that output any more.
    pub(super) fn end_output<L: Leases>(&mut self, mem: &mut Memory<L>, id: SessionId) {
        self.unblock_link(id);
        self.drop_spill(mem, id);
        let session = &mut self.sessions[id.0 as usize];
        session.to_client.clear(&mut self.arena, mem);
        if let Some(shim) = &mut session.shim {
            shim.forget_replies(&mut self.arena, mem);
        }
        self.set_sending(id, Sending::Idle);
        self.remove_routes(id);
    }

    /// Skips a session's frames from now on.
    pub(super) fn remove_routes(&mut self, id: SessionId) {
        let session = &self.sessions[id.0 as usize];
        let Some(link_id) = session.link else { return };
        let link = &mut self.links[link_id.0 as usize];
        for seq in session.seqs() {
            link.routes.remove(seq);
            self.route_cache.forget(link_id, seq);
        }
        link.current = link.current.filter(|current| current.session != id);
    }

    pub(super) fn client_took<L: Leases>(&mut self, mem: &mut Memory<L>, id: SessionId, n: usize) {
        self.consume_output(mem, id, n);
        let session = &self.sessions[id.0 as usize];
        let sending = after_send(session.sending, n);
        let (owes, spills) = (session.owed() > 0, session.spill.is_some());
        if sending == Sending::Blocked {
            self.effects.push(Effect::WatchRoom(Peer::Client(id)));
        }
        self.set_sending(id, sending);
        if owes {
            self.mark_client(id);
        }
        if spills {
            self.advance_spill(mem, id);
        }
        self.unblock_if_low(mem, id);
        if self.is_released(id) {
            self.gone(mem, Peer::Client(id), Gone::Ordered);
        } else {
            if self.sessions[id.0 as usize].sends_replies() {
                self.resume_client(mem, id);
            }
            self.end_if_done(mem, id);
        }
    }

    /// Changes the state of the send to a session's client.
    pub(super) fn set_sending(&mut self, id: SessionId, sending: Sending) {
        self.sessions[id.0 as usize].sending = sending;
        self.update_waiting(id);
    }

    /// Counts a session among those whose clients are behind, or no more.
    pub(super) fn update_waiting(&mut self, id: SessionId) {
        let session = &mut self.sessions[id.0 as usize];
        let waits = session.is_behind();
        let waited = std::mem::replace(&mut session.waits, waits);
        let Some(link_id) = session.link.filter(|_| waited != waits) else { return };
        let link = &mut self.links[link_id.0 as usize];
        link.waiting = link.waiting + usize::from(waits) - usize::from(waited);
        self.update_reading(link_id);
    }

    /// Stops reading a link, or reads it again. It is not read while one of its sessions is owed too much, nor while
    /// the clients of all of them are behind: there is nobody then whom reading would serve.
    pub(super) fn update_reading(&mut self, id: LinkId) {
        let link = &mut self.links[id.0 as usize];
        let pause = link.blockers > 0 || (link.waiting > 0 && link.waiting == link.sessions.len());
        if std::mem::replace(&mut link.paused, pause) != pause {
            let peer = Peer::Agent(id);
            self.effects.push(if pause { Effect::Pause(peer) } else { Effect::Resume(peer) });
        }
    }

    pub(super) fn flush_client<L: Leases>(&mut self, mem: &mut Memory<L>, id: SessionId) {
        let Some(session) = self.sessions.get_mut(id.0 as usize).filter(|session| session.dirty) else { return };
        session.dirty = false;
        if session.retains() {
            session.to_client.settle(&mut self.arena, mem);
            self.advance_spill(mem, id);
            return self.bound_output(mem, id, None);
        }
        if !session.state.has_output() {
            return;
        }
        session.to_client.settle_open(&mut self.arena, mem);
        if session.spill.is_some() {
            self.advance_spill(mem, id);
        }
        let session = &mut self.sessions[id.0 as usize];
        match session.sending {
            Sending::Trying(_) => return,
            Sending::Blocked => {
                if session.to_client.has_leases() && !std::mem::replace(&mut session.pins_output, true) {
                    self.pinning_output.push_back(id);
                }
                return self.bound_output(mem, id, None);
            }
            Sending::Idle => {}
        }
        let begin = self.views.len();
        let bytes = self.plan_output(id);
        if bytes > 0 {
            let is_last = self.sessions[id.0 as usize].ends_with(bytes);
            self.effects.push(Effect::Send { peer: Peer::Client(id), views: begin..self.views.len(), is_last });
            self.set_sending(id, Sending::Trying(bytes));
        }
        let session = &self.sessions[id.0 as usize];
        let tried = if session.sends_replies() || session.spill.is_some() { 0 } else { bytes };
        self.bound_output(mem, id, Some(tried));
    }
}

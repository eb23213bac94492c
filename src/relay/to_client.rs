//! The rules towards clients: frames of an agent found, routed, owed and sent, and links held back for those that do
//! not read.
//!
//! The asymmetry to know: a frame may arrive in pieces over many turns, but leaves whole; what waits for its end is
//! out of the receive buffers by the end of the turn.

use super::events::{Effect, Gone, LinkId, Peer, Report, Sending, SessionId};
use super::frames::Step;
use super::plane::{Plane, after_send};
use crate::buf::{BufView, Leases, Memory};
use crate::limits::{CC1_FRAME_MAX, SEND_MAX};
use crate::wire::admin::Flow;
use crate::wire::hyper::FrameHeader;

impl Plane {
    pub(super) fn agent_received<L: Leases>(&mut self, mem: &mut Memory<L>, id: LinkId, view: BufView) {
        let mut rest = view;
        while rest.len > 0 {
            let link = &mut self.links[id.0 as usize];
            let taken = match link.reader.step(mem.bytes(rest), self.tuning.stream_frame_max) {
                Ok(Step::Whole(header)) => {
                    self.whole_to_client(mem, id, header, rest.first(header.len));
                    header.len
                }
                Ok(Step::Begin { header, taken }) => {
                    self.begin_to_client(mem, id, header);
                    taken
                }
                Ok(Step::Body { len }) => {
                    self.body_to_client(mem, id, rest.first(len));
                    len
                }
                Ok(Step::Kept) => return,
                Err(fault) => return self.link_gone(mem, id, Gone::Fault(fault)),
            };
            rest = rest.skip(taken);
        }
    }

    /// Counts a frame for a session and finds it; `None` when nobody wants it.
    fn route(&mut self, id: LinkId, header: FrameHeader) -> Option<SessionId> {
        let link = &mut self.links[id.0 as usize];
        let Some(session) = link.routes.find(header.seq) else {
            link.skipped += 1;
            self.totals.skipped += 1;
            return None;
        };
        let flow = Flow { frames: 1, bytes: u64::from(header.len) };
        link.flow_to_client += flow;
        self.totals.to_client += flow;
        let owner = &mut self.sessions[session.0 as usize];
        owner.flow_to_client += flow;
        if !owner.dirty {
            owner.dirty = true;
            self.dirty_clients.push(session);
        }
        Some(session)
    }

    fn whole_to_client<L: Leases>(&mut self, mem: &mut Memory<L>, id: LinkId, header: FrameHeader, frame: BufView) {
        let Some(session) = self.route(id, header) else { return };
        let out = &mut self.sessions[session.0 as usize].to_client;
        if header.len <= CC1_FRAME_MAX {
            out.push(&mut self.arena, mem, frame, true);
        } else {
            let mut cut = out.begin_frame(&mut self.arena, mem, header, CC1_FRAME_MAX);
            let payload = frame.skip(header.len - header.payload_len());
            out.continue_frame(&mut self.arena, mem, &mut cut, payload, CC1_FRAME_MAX);
        }
    }

    fn begin_to_client<L: Leases>(&mut self, mem: &mut Memory<L>, id: LinkId, header: FrameHeader) {
        let current = self.route(id, header).map(|session| {
            let out = &mut self.sessions[session.0 as usize].to_client;
            (session, out.begin_frame(&mut self.arena, mem, header, CC1_FRAME_MAX))
        });
        self.links[id.0 as usize].current = current.filter(|(_, cut)| !cut.is_done());
    }

    fn body_to_client<L: Leases>(&mut self, mem: &mut Memory<L>, id: LinkId, payload: BufView) {
        let Some((session, mut cut)) = self.links[id.0 as usize].current else { return };
        let owner = &mut self.sessions[session.0 as usize];
        owner.to_client.continue_frame(&mut self.arena, mem, &mut cut, payload, CC1_FRAME_MAX);
        if !owner.dirty {
            owner.dirty = true;
            self.dirty_clients.push(session);
        }
        self.links[id.0 as usize].current = (!cut.is_done()).then_some((session, cut));
    }

    /// Forgets what a client is owed, and its routes: nobody wants that output any more.
    pub(super) fn end_output<L: Leases>(&mut self, mem: &mut Memory<L>, id: SessionId) {
        self.unblock_link(id);
        let session = &mut self.sessions[id.0 as usize];
        session.to_client.clear(&mut self.arena, mem);
        session.sending = Sending::Idle;
        if let Some(link) = session.link {
            let link = &mut self.links[link.0 as usize];
            session.seqs().for_each(|seq| link.routes.remove(seq));
            link.current = link.current.filter(|&(owner, _)| owner != id);
        }
    }

    pub(super) fn client_took<L: Leases>(&mut self, mem: &mut Memory<L>, id: SessionId, n: usize) {
        let session = &mut self.sessions[id.0 as usize];
        session.to_client.consume(&mut self.arena, mem, n);
        session.sending = after_send(session.sending, n, session.to_client.ready());
        if !session.dirty && session.to_client.ready() > 0 {
            session.dirty = true;
            self.dirty_clients.push(id);
        }
        if session.blocks && self.is_low(mem, id) {
            self.unblock_link(id);
        }
        self.end_if_done(mem, id);
    }

    /// Whether a session owes its client little enough for its link to be read again. A frame that has not ended
    /// never holds it back: only reading can end it.
    fn is_low<L: Leases>(&self, mem: &Memory<L>, id: SessionId) -> bool {
        let out = &self.sessions[id.0 as usize].to_client;
        out.ready() == 0 || (out.bytes() <= self.tuning.session_buffer / 2 && !self.is_over_total(mem))
    }

    pub(super) fn unblock_link(&mut self, id: SessionId) {
        let session = &mut self.sessions[id.0 as usize];
        if !std::mem::take(&mut session.blocks) {
            return;
        }
        let Some(link_id) = session.link else { return };
        let link = &mut self.links[link_id.0 as usize];
        link.blockers -= 1;
        if link.blockers == 0 {
            self.effects.push(Effect::Resume(Peer::Agent(link_id)));
            self.effects.push(Effect::Report(Report::LinkUnblocked { vm: link.vm }));
        }
    }

    pub(super) fn flush_client<L: Leases>(&mut self, mem: &mut Memory<L>, id: SessionId) {
        let Some(session) = self.sessions.get_mut(id.0 as usize).filter(|session| session.dirty) else { return };
        session.dirty = false;
        if !session.state.has_output() {
            return;
        }
        session.to_client.settle_open(&mut self.arena, mem);
        let wait = match session.sending {
            Sending::Trying(_) => return,
            Sending::Waiting(_) => {
                session.to_client.settle(&mut self.arena, mem);
                return self.block_link(mem, id, None);
            }
            Sending::Idle => false,
            Sending::Blocked => {
                session.to_client.settle(&mut self.arena, mem);
                true
            }
        };
        let begin = self.views.len();
        let bytes = session.to_client.plan(&self.arena, SEND_MAX, &mut self.views);
        if bytes > 0 {
            session.sending = if wait { Sending::Waiting(bytes) } else { Sending::Trying(bytes) };
            self.effects.push(Effect::Send { peer: Peer::Client(id), views: begin..self.views.len(), wait });
        }
        self.block_link(mem, id, (!wait).then_some(bytes));
    }

    /// Stops reading a link when one of its clients is owed too much: behind the bytes just `tried`, so that a client
    /// that keeps up but gets less a turn than its agent sends is bounded too, or with those that wait.
    fn block_link<L: Leases>(&mut self, mem: &mut Memory<L>, id: SessionId, tried: Option<usize>) {
        let over = tried.is_none() && self.is_over_total(mem);
        let tried = tried.unwrap_or(0);
        let session = &mut self.sessions[id.0 as usize];
        let full = session.to_client.bytes() - tried >= self.tuning.session_buffer || over;
        let Some(link_id) = session.link else { return };
        if session.blocks || session.to_client.ready() == tried || !full {
            return;
        }
        session.blocks = true;
        let link = &mut self.links[link_id.0 as usize];
        link.blockers += 1;
        if link.blockers == 1 {
            self.totals.blocked += 1;
            self.effects.push(Effect::Pause(Peer::Agent(link_id)));
            self.effects.push(Effect::Report(Report::LinkBlocked { vm: link.vm, by: session.base }));
        }
    }
}

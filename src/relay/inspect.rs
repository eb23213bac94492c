//! A look at a plane from outside: what `status` shows, and the invariants in one function.
//!
//! Reads only. The asymmetry to know: [`Plane::check`] holds between turns, not in the middle of one.

use std::collections::BTreeMap;

use super::events::{LinkStatus, Sending, SessionId};
use super::plane::Plane;
use super::session::State;
use super::shim::Held;

impl Plane {
    /// What `status` shows of the VMs here, those whose sessions only drain included.
    pub fn status(&self) -> Vec<LinkStatus> {
        let mut found: BTreeMap<u64, LinkStatus> = BTreeMap::new();
        for (_, link) in &self.links {
            let (to_client, to_agent) = (link.flow_to_client, link.flow_to_agent);
            found.insert(link.vm, LinkStatus { vm: link.vm, to_client, to_agent, ..LinkStatus::default() });
        }
        for (_, session) in &self.sessions {
            let entry = found.entry(session.vm).or_insert_with(|| LinkStatus { vm: session.vm, ..Default::default() });
            if session.blocks && entry.blocked_by.is_none() {
                entry.blocked_by = Some(session.base.0);
            }
            entry.sessions.push(session.status());
        }
        found.values_mut().for_each(|link| link.sessions.sort_by_key(|session| session.io_base));
        found.into_values().collect()
    }

    /// Checks what must hold between turns, after [`Plane::flush`]: counts match lists, nobody is forgotten.
    ///
    /// # Panics
    /// When it does not hold; that is a fault of ours.
    pub fn check(&self) {
        let mut nodes = 0;
        let id = |index| SessionId(u32::try_from(index).expect("slabs are bounded"));
        for (index, session) in &self.sessions {
            nodes += session.to_client.check(&self.arena) + session.to_agent.check(&self.arena);
            nodes += session.shim.as_ref().map_or(0, |shim| shim.replies.check(&self.arena));
            let owes_agent = session.to_agent.ready() > 0;
            assert!(session.state != State::Done, "session {index} is done and still here");
            assert!(session.link.is_some() || !owes_agent, "session {index} owes an agent that is gone");
            let has_turn = owes_agent && session.may_write();
            assert_eq!(has_turn, session.queued, "session {index}: whole frames for the agent, and its turn");
            let spill = session.spill.as_ref();
            nodes += spill.map_or(0, |spill| spill.check(&self.arena));
            let comes = spill.is_some_and(|spill| spill.head.ready() == 0 && spill.is_under_way());
            let stuck = session.sending == Sending::Idle && session.owed() > 0 && session.state.has_output() && !comes;
            assert!(!stuck, "session {index} owes its client and sends nothing");
            let waits = session.sending == Sending::Blocked;
            assert!(!waits || session.owed() > 0, "session {index} waits for its client and owes it nothing");
            let is_held = matches!(session.held, Held::Lately | Held::Long);
            assert!(!is_held || self.held.contains(&id(index)), "session {index} is held and not looked after");
            let is_paused = session.paused && session.shim.is_some();
            assert!(!is_paused || session.held != Held::No, "session {index}: its shim is paused and not held");
            assert!(!session.pins_output || self.pinning_output.contains(&id(index)), "session {index}");
            assert!(!session.pins_input || self.pinning_input.contains(&id(index)), "session {index}");
        }
        let spilling = self.sessions.iter().filter(|(_, session)| session.spill.is_some()).count();
        assert_eq!(spilling as u64, self.totals.spilling, "sessions that spill");
        assert_eq!(nodes, self.arena.in_use(), "nodes that no outbox knows of");
        for (index, link) in &self.links {
            let blockers = link.sessions.iter().filter(|id| self.sessions[id.0 as usize].blocks).count();
            assert_eq!(blockers, link.blockers, "link {index}: sessions that block it");
            let waiting = link.sessions.iter().filter(|id| self.sessions[id.0 as usize].waits).count();
            assert_eq!(waiting, link.waiting, "link {index}: sessions whose clients are behind");
            let is_held = blockers > 0 || (waiting > 0 && waiting == link.sessions.len());
            assert_eq!(link.paused, is_held, "link {index}: whether it is read");
            let queued = link.sessions.iter().filter(|id| self.sessions[id.0 as usize].queued).count();
            assert_eq!(queued, link.queue.len() + link.in_flight.len(), "link {index}: sessions in turn");
            assert!(link.sending != Sending::Idle || link.queue.is_empty(), "link {index} owes and sends nothing");
        }
    }
}

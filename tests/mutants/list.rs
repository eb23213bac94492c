//! The faults: each a slip of the kind that programs like this one have had.
//!
//! `before` is text that makes the place unique and stays as it is. The asymmetry to know: what ends with a semicolon
//! or a brace is replaced as a statement, anything else as an expression.

/// One fault.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) name: &'static str,
    pub(crate) file: &'static str,
    pub(crate) before: &'static str,
    pub(crate) good: &'static str,
    pub(crate) bad: &'static str,
}

const CONTROL: &str = "src/coordinator/control.rs";
const FRAMES: &str = "src/relay/frames.rs";
const OUTBOX: &str = "src/relay/outbox.rs";
const PLANE: &str = "src/relay/plane.rs";
const SHIM: &str = "src/relay/shim.rs";
const SLOW: &str = "src/relay/slow.rs";
const TO_AGENT: &str = "src/relay/to_agent.rs";
const TO_CLIENT: &str = "src/relay/to_client.rs";

const fn fault(
    name: &'static str,
    file: &'static str,
    before: &'static str,
    good: &'static str,
    bad: &'static str,
) -> Fault {
    Fault { name, file, before, good, bad }
}

// tidy: table
pub(crate) const FAULTS: &[Fault] = &[
    // Wake-ups.
    fault(
        "lost wake-up: room for an agent",
        PLANE,
        "sending = Sending::Idle;\n                ",
        "self.mark_link(id);",
        "",
    ),
    fault(
        "lost wake-up: room for a client",
        PLANE,
        "self.set_sending(id, Sending::Idle);\n                ",
        "self.mark_client(id);",
        "",
    ),
    fault(
        "lost wake-up: a client is not read again",
        TO_AGENT,
        "            ",
        "self.effects.push(Effect::Resume(Peer::Client(id)));",
        "",
    ),
    fault(
        "lost wake-up: a link is not read again",
        SLOW,
        "LinkUnblocked { vm: link.vm }));\n        }\n        ",
        "self.update_reading(link_id);",
        "",
    ),
    fault(
        "lost wake-up: input of a process that starts",
        SHIM,
        "        ",
        "(shim.started, shim.exit.terminal) = (true, terminal);\n        self.mark_input(id);",
        "(shim.started, shim.exit.terminal) = (true, terminal);",
    ),
    fault("lost wake-up: starved receives stay so", PLANE, "", "out.settle(&mut self.arena, mem);", ""),
    // Buffers.
    fault(
        "double recycle of a sent piece",
        OUTBOX,
        "let Node { view, next, .. } = *arena.node(index);\n        ",
        "mem.release(view.source);\n        arena.free.push(index);\n        self.head = next;",
        "mem.release(view.source); mem.release(view.source); arena.free.push(index); self.head = next;",
    ),
    fault(
        "double use of a list's place",
        OUTBOX,
        "mem.release(view.source);\n            ",
        "arena.free.push(index);",
        "arena.free.push(index); arena.free.push(index);",
    ),
    fault("a copied piece keeps its buffer", OUTBOX, "        }\n        ", "mem.release(view.source);", ""),
    fault("a piece without a reference", OUTBOX, "return;\n        }\n        ", "mem.retain(view.source);", ""),
    fault(
        "an idle run is not given back",
        OUTBOX,
        "self.run.take()\n        {\n            ",
        "mem.chunks.release(run.chunk);",
        "let _ = run;",
    ),
    // Borders.
    fault(
        "off by one in a split header",
        FRAMES,
        "let taken = ",
        "FRAME_HEADER - u32::from(self.have)",
        "FRAME_HEADER - u32::from(self.have) - 1",
    ),
    fault("frames cut too long by a header", FRAMES, "", "self.left.min(max - FRAME_HEADER)", "self.left.min(max)"),
    fault("a run of frames longer than a send", FRAMES, "end as usize > ", "bytes.len().min(SEND_MAX)", "bytes.len()"),
    fault("a piece taken off by one", OUTBOX, "if ", "left < len", "left <= len"),
    fault(
        "pieces joined that do not touch",
        OUTBOX,
        "tail.view.source == view.source && ",
        "tail.view.end() == view.off",
        "true",
    ),
    fault("frames joined to more than a send", OUTBOX, "ends && ", "self.last_unit + view.len <= SEND_MAX_U32", "true"),
    // Ends.
    fault(
        "dropped EOF: a session outlives its VM",
        PLANE,
        "self.change(session_id, Happening::LinkGone);\n            ",
        "self.end_if_done(mem, session_id);",
        "",
    ),
    fault(
        "dropped EOF: a half-closed client is not watched",
        PLANE,
        "",
        "self.effects.push(Effect::WatchClose(id));",
        "",
    ),
    fault(
        "an unfinished frame is sent when its VM is gone",
        PLANE,
        "",
        "session.to_client.drop_open(&mut self.arena, mem);",
        "",
    ),
    fault(
        "a session that ended keeps its routes",
        TO_CLIENT,
        "link.routes.remove(seq);\n            ",
        "self.route_cache.forget(link_id, seq);",
        "",
    ),
    fault(
        "a session that ended is asked for its buffers",
        PLANE,
        "",
        "self.pinning_output.retain(|&other| other != id);",
        "",
    ),
    fault(
        "a socket closed twice",
        PLANE,
        "if ",
        "before.has_socket() && !session.state.has_socket()",
        "!session.state.has_socket()",
    ),
    // Order, bounds, turns.
    fault(
        "a torn frame is not continued first",
        TO_AGENT,
        "",
        "self.links[id.0 as usize].queue.push_front(share.session);",
        "self.links[id.0 as usize].queue.push_back(share.session);",
    ),
    fault("a session is not offered again", TO_AGENT, "session.queued = ", "session.to_agent.ready() > 0", "false"),
    fault(
        "no bound for a client that does not read",
        SLOW,
        "let full = ",
        "session.to_client.bytes() - tried >= self.tuning.session_buffer",
        "false",
    ),
    fault(
        "no bound for a client that floods",
        TO_AGENT,
        "let full = ",
        "session.to_agent.bytes() >= session.input_bound(sending) || over",
        "false",
    ),
    fault(
        "a link is read again too early",
        SLOW,
        "out.bytes() <= ",
        "self.tuning.session_buffer / 2",
        "self.tuning.session_buffer",
    ),
    fault(
        "an agent that refuses is sent more",
        TO_AGENT,
        "",
        "self.end_send(mem, id, 0);",
        "self.agent_took(mem, id, 0);",
    ),
    // Commands.
    fault(
        "a late answer is taken for another's",
        CONTROL,
        "if !self.up || ",
        "self.in_flight.is_some()",
        "self.in_flight.as_ref().is_some_and(|command| !command.overdue)",
    ),
    fault(
        "a command whose turn did not come is not answered",
        CONTROL,
        "",
        "actions.push(Action::Answer(pending.ticket, Err(error)));",
        "drop(error);",
    ),
    fault("an answer is no sign of life", CONTROL, "", "self.is_up(true);", ""),
    fault(
        "a deadline is forgotten",
        CONTROL,
        "let overdue = self.in_flight.iter().filter(|command| ",
        "command.ticket.is_some()",
        "false",
    ),
    // Tokens.
    fault(
        "an exit status between two frames of a long one",
        SHIM,
        "filter(|shim| !shim.ending && ",
        "!is_mid_frame",
        "true",
    ),
    fault(
        "an exit status that is not told",
        SHIM,
        "",
        "session.to_client.push_bytes(&mut self.arena, mem, &frame, true);",
        "",
    ),
    fault(
        "half a frame of a shim that left",
        SHIM,
        "(shim.unanswered, shim.current) = (0, Current::Stdin);\n        ",
        "session.to_agent.drop_open(&mut self.arena, mem);",
        "",
    ),
    fault(
        "answers of one connection go to the next",
        SHIM,
        "shim.maybe_unread += at_risk;\n        ",
        "shim.forget_replies(&mut self.arena, mem);",
        "",
    ),
    fault(
        "an answer to a connection that left",
        SHIM,
        "filter(|shim| shim.connection == Some(connection)) else { return };\n        shim.unanswered = ",
        "shim.unanswered.saturating_sub(1)",
        "shim.unanswered",
    ),
];

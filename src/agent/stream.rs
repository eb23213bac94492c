//! The stream channel: serves one connection after the other and hands input to the processes.
//!
//! Output does not pass here but through the outlet. The asymmetry to know: a process that does not read stops the
//! whole channel only when its own bound is full; and a host that went away meanwhile cannot send more, so what it
//! left is then taken beyond the bound, to let its successor in.

use std::rc::Rc;
use std::time::Duration;

use crate::limits::{AGENT_FRAME_CEILING, GUEST_STDIN_BUFFER, GUEST_STDIN_TOTAL};

use super::Agent;
use super::line::{Dock, Line};
use super::pod::Pod;
use super::stdin::{FrameReader, Taken};

/// How often a stopped channel is looked at for its host's going.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Serves the host's connections, for ever.
pub(super) async fn serve(agent: Rc<Agent>, dock: Rc<Dock>) {
    loop {
        let line = dock.next_line().await;
        tracing::debug!("the host connected to the stream channel");
        agent.stream.set_line(Some(Rc::clone(&line)));
        match take_input(&agent, &line).await {
            Ok(()) => tracing::debug!("the host left the stream channel"),
            Err(error) => tracing::warn!("stream channel connection dropped: {error:#}"),
        }
        line.hang_up();
        agent.stream.set_line(None);
    }
}

/// One connection, until its end.
async fn take_input(agent: &Agent, line: &Line) -> anyhow::Result<()> {
    let mut reader = FrameReader::new(AGENT_FRAME_CEILING);
    let mut has_waited = false;
    loop {
        let mut strays = false;
        while let Some((seq, payload)) = reader.next_frame()? {
            strays |= agent.pod.borrow_mut().take_frame(seq, payload) == Taken::Unknown;
        }
        if strays {
            agent.strays.notify_one();
        }
        if agent.pod.borrow().stdin.is_full() {
            if !std::mem::replace(&mut has_waited, true) {
                let held = agent.pod.borrow().stdin.held();
                tracing::warn!(held, "the stream channel waits now and then: a process is slow to read its stdin");
            }
            wait_for_room(agent, line).await;
        }
        let count = line.read(reader.space()).await?;
        if count == 0 {
            anyhow::ensure!(!reader.is_mid_frame(), "it ended in the middle of a frame");
            return Ok(());
        }
        reader.received(count);
    }
}

/// Waits while a process owes the reading of too much.
async fn wait_for_room(agent: &Agent, line: &Line) {
    while agent.pod.borrow().stdin.is_full() {
        if line.host_is_gone() && may_overrun(&agent.pod.borrow()) {
            return;
        }
        tokio::select! {
            () = agent.stdin_room.notified() => {}
            () = tokio::time::sleep(LOOK_AGAIN) => {}
        }
    }
}

/// Whether what a host left behind may be taken beyond the bound; a kernel holds far less than this per connection.
fn may_overrun(pod: &Pod) -> bool {
    pod.stdin.held() < GUEST_STDIN_TOTAL + 4 * GUEST_STDIN_BUFFER
}

/// Answers input for unknown sequences with EOF, for ever.
pub(super) async fn answer_strays(agent: Rc<Agent>) {
    loop {
        agent.strays.notified().await;
        let mut run = agent.stream.turn().await;
        while let Some(seq) = agent.next_stray() {
            run.push(seq, b"");
            agent.stream.flush(&mut run).await;
        }
    }
}

//! The way out to the host: one run of frames, or one notice, at a time, across connections that come and go.
//!
//! Output is taken from a process only by whoever has the turn, so what a slow or absent host does not take stays in
//! the processes' own pipes, and turns go round in the order they were asked for: that is the whole scheduling. The
//! asymmetry to know: an answer belongs to the connection its command came on and dies with it; frames and notices
//! belong to the host, and wait for its next connection.

use std::io;
use std::rc::Rc;

use tokio::sync::{Mutex, MutexGuard, watch};

use crate::wire::hyper::Message;

use super::line::Line;
use super::output::FrameRun;

/// The connection there is now, if any.
#[derive(Debug)]
struct Current(watch::Sender<Option<Rc<Line>>>);

impl Current {
    fn new() -> Current {
        Current(watch::Sender::new(None))
    }

    fn is_some(&self) -> bool {
        self.0.borrow().is_some()
    }

    fn set(&self, line: Option<Rc<Line>>) {
        self.0.send_replace(line);
    }
}

/// Waits until there is a connection.
async fn wait_for_line(lines: &mut watch::Receiver<Option<Rc<Line>>>) -> Option<Rc<Line>> {
    loop {
        let line = lines.borrow_and_update().clone();
        if line.is_some() {
            return line;
        }
        if lines.changed().await.is_err() {
            return None;
        }
    }
}

/// The stream channel's way out.
#[derive(Debug)]
pub(super) struct Outlet {
    current: Current,
    run: Mutex<FrameRun>,
}

impl Outlet {
    /// With frames of up to `frame_max` bytes.
    pub(super) fn new(frame_max: u32) -> Outlet {
        Outlet { current: Current::new(), run: Mutex::new(FrameRun::new(frame_max)) }
    }

    /// A connection begins, or there is none any more.
    pub(super) fn set_line(&self, line: Option<Rc<Line>>) {
        self.current.set(line);
    }

    /// Whether there is a connection.
    pub(super) fn has_line(&self) -> bool {
        self.current.is_some()
    }

    /// Waits for the turn. The run is empty.
    pub(super) async fn turn(&self) -> MutexGuard<'_, FrameRun> {
        self.run.lock().await
    }

    /// Sends the run, on as many connections as it takes; returns when it is empty.
    pub(super) async fn flush(&self, run: &mut FrameRun) {
        let mut lines = self.current.0.subscribe();
        while !run.is_empty() {
            let Some(line) = wait_for_line(&mut lines).await else { return };
            let written = tokio::select! {
                biased;
                _ = lines.changed() => {
                    run.rewind();
                    continue;
                }
                written = line.write(run.piece()) => written,
            };
            match written {
                Ok(count) => run.advance(count),
                Err(error) => {
                    tracing::debug!(%error, "the stream channel broke");
                    line.hang_up();
                    let _ = lines.changed().await;
                    run.rewind();
                }
            }
        }
    }
}

/// The control channel's way out.
#[derive(Debug)]
pub(super) struct Notices {
    current: Current,
    turn: Mutex<()>,
}

impl Notices {
    /// Without a connection.
    pub(super) fn new() -> Notices {
        Notices { current: Current::new(), turn: Mutex::new(()) }
    }

    /// A connection begins, or there is none any more.
    pub(super) fn set_line(&self, line: Option<Rc<Line>>) {
        self.current.set(line);
    }

    /// Whether there is a connection.
    pub(super) fn has_line(&self) -> bool {
        self.current.is_some()
    }

    /// Sends one message on this connection, in one write where the kernel takes it.
    pub(super) async fn say(&self, line: &Line, message: &Message) -> io::Result<()> {
        let _turn = self.turn.lock().await;
        line.write_all(&message.encode()).await
    }

    /// Sends one message on whatever connection there is, or comes; again from its start when one breaks.
    pub(super) async fn deliver(&self, message: &Message) {
        let mut lines = self.current.0.subscribe();
        while let Some(line) = wait_for_line(&mut lines).await {
            let said = tokio::select! {
                biased;
                _ = lines.changed() => continue,
                said = self.say(&line, message) => said,
            };
            match said {
                Ok(()) => return,
                Err(error) => {
                    tracing::debug!(%error, "the control channel broke");
                    line.hang_up();
                    let _ = lines.changed().await;
                }
            }
        }
    }
}

//! Timers of a shard: one looks whether it is at rest, one lets those try again who could not spill.
//!
//! A timer runs once, when it is asked for; at rest there is none. The asymmetry to know: one that runs is never
//! stopped, so its end may mean nothing any more.

use std::time::Duration;

use io_uring::{opcode, types};

use super::Reactor;
use super::op_tag::{OpKind, OpTag};
#[cfg(doc)]
use crate::limits::{REST_MS, SPILL_RETRY_MS};

/// A timer that runs when it is asked for, once.
#[derive(Debug)]
pub(super) struct Timer {
    time: Box<types::Timespec>,
    state: TimerState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TimerState {
    Off,
    Set,
    Ended,
}

impl Timer {
    pub(super) fn of(millis: u64) -> Timer {
        Timer { time: Box::new(Duration::from_millis(millis).into()), state: TimerState::Off }
    }

    /// Whether it has ended; `true` once.
    fn take(&mut self) -> bool {
        let has_ended = self.state == TimerState::Ended;
        if has_ended {
            self.state = TimerState::Off;
        }
        has_ended
    }
}

impl Reactor {
    /// Ends a wait some time ([`REST_MS`]) from now, once; nothing where that is under way.
    pub fn set_rest_timer(&mut self) {
        self.set_timer(OpKind::Rest);
    }

    /// Whether that time has passed; `true` once.
    pub fn take_rest_timer(&mut self) -> bool {
        self.rest_timer.take()
    }

    /// Ends a wait some time ([`SPILL_RETRY_MS`]) from now, once; nothing where that is under way.
    pub fn set_retry_timer(&mut self) {
        self.set_timer(OpKind::Retry);
    }

    /// Whether that time has passed; `true` once.
    pub fn take_retry_timer(&mut self) -> bool {
        self.retry_timer.take()
    }

    fn timer(&mut self, kind: OpKind) -> &mut Timer {
        if kind == OpKind::Retry { &mut self.retry_timer } else { &mut self.rest_timer }
    }

    fn set_timer(&mut self, kind: OpKind) {
        let timer = self.timer(kind);
        if timer.state == TimerState::Off {
            timer.state = TimerState::Set;
            let entry = opcode::Timeout::new(&raw const *timer.time).build();
            // SAFETY: the boxed time stays where it is until the ring is gone, and nobody writes it.
            unsafe { self.submit(entry, OpTag { kind, slot: 0, generation: 0 }) };
        }
    }

    /// Takes note of a completion.
    pub(super) fn timer_ended(&mut self, kind: OpKind) {
        self.timer(kind).state = TimerState::Ended;
    }
}

//! Proof that the simulator bites: one crime of the kernel or the driver per world, which must not go unnoticed.
//!
//! The asymmetry to know: the plane is innocent here; what is tested is the model and the checks.

use ringway::relay::Effect;

use crate::seeds::{Stats, run_seed};

/// What goes wrong, once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Crime {
    /// Received bytes are not reported.
    LoseReceived,
    /// The end of a send is not reported.
    LoseSent,
    /// A received byte changes.
    CorruptByte,
    /// Two sends of a turn go to each other's peer.
    SwapSends,
    /// The driver keeps its reference to a received view.
    KeepLease,
    /// The kernel keeps its references after a send.
    KeepSent,
    /// The driver releases a received view twice.
    ReleaseTwice,
    /// A peer is not received from again.
    LoseResume,
    /// Room is not reported.
    LoseRoom,
    /// A send whose end is waited for is called the last.
    CallSendLast,
}

/// Commits one crime, after a few chances to.
#[derive(Debug, Clone, Default)]
pub(crate) struct Saboteur {
    crime: Option<Crime>,
    patience: usize,
}

impl Saboteur {
    pub(crate) fn new(crime: Crime, patience: usize) -> Saboteur {
        Saboteur { crime: Some(crime), patience }
    }

    /// Whether now is the time.
    pub(crate) fn strikes(&mut self, crime: Crime) -> bool {
        if self.crime != Some(crime) {
            return false;
        }
        if self.patience > 0 {
            self.patience -= 1;
            return false;
        }
        self.crime = None;
        true
    }

    /// Swaps what the first two sends send.
    pub(crate) fn swap_sends(&mut self, effects: &mut [Effect]) {
        if self.crime != Some(Crime::SwapSends) {
            return;
        }
        let sends: Vec<usize> =
            (0..effects.len()).filter(|&index| matches!(effects[index], Effect::Send { .. })).collect();
        let [a, b, ..] = sends[..] else { return };
        if !self.strikes(Crime::SwapSends) {
            return;
        }
        let (front, back) = effects.split_at_mut(b);
        if let (Effect::Send { views: one, .. }, Effect::Send { views: other, .. }) = (&mut front[a], &mut back[0]) {
            std::mem::swap(one, other);
        }
    }
}

/// Runs seeds with a crime until one is noticed.
fn is_noticed(crime: Crime) {
    let mut stats = Stats::default();
    for seed in 0..200 {
        let patience = usize::try_from(seed % 7).expect("small");
        if run_seed(seed, Saboteur::new(crime, patience), &mut stats).is_err() {
            println!("{crime:?} noticed with seed {seed}");
            return;
        }
    }
    panic!("{crime:?} goes unnoticed");
}

#[test]
fn lost_completions_are_noticed() {
    is_noticed(Crime::LoseReceived);
    is_noticed(Crime::LoseSent);
}

#[test]
fn wrong_bytes_are_noticed() {
    is_noticed(Crime::CorruptByte);
    is_noticed(Crime::SwapSends);
}

#[test]
fn references_kept_or_dropped_are_noticed() {
    is_noticed(Crime::KeepLease);
    is_noticed(Crime::KeepSent);
    is_noticed(Crime::ReleaseTwice);
}

#[test]
fn lost_wake_ups_are_noticed() {
    is_noticed(Crime::LoseResume);
    is_noticed(Crime::LoseRoom);
    is_noticed(Crime::CallSendLast);
}

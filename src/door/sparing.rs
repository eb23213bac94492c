//! When the log may say again what a peer can cause as often as it likes.

use std::cell::Cell;
use std::time::{Duration, Instant};

use crate::limits::{PEER_LINES, PEER_LINES_SECS};

/// Lines of one kind in the log: so many in a time, then none until it has passed.
#[derive(Debug, Default)]
pub(super) struct Sparing {
    began: Cell<Option<Instant>>,
    said: Cell<u32>,
    unsaid: Cell<u64>,
}

impl Sparing {
    /// Whether to say it now; then with how many were left unsaid since the last line.
    pub(super) fn may_say(&self, now: Instant) -> Option<u64> {
        let is_over = self.began.get().is_none_or(|began| now - began >= Duration::from_secs(PEER_LINES_SECS));
        if is_over {
            self.began.set(Some(now));
            self.said.set(0);
        }
        if self.said.get() == PEER_LINES {
            self.unsaid.set(self.unsaid.get() + 1);
            return None;
        }
        self.said.set(self.said.get() + 1);
        Some(self.unsaid.take())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storm_is_a_few_lines_and_the_next_one_says_how_many_it_was() {
        let (sparing, now) = (Sparing::default(), Instant::now());
        let said = (0..1_000).filter(|_| sparing.may_say(now).is_some()).count();
        assert_eq!(said, PEER_LINES as usize);
        let later = now + Duration::from_secs(PEER_LINES_SECS);
        assert_eq!(sparing.may_say(later), Some(1_000 - u64::from(PEER_LINES)));
        assert_eq!(sparing.may_say(later), Some(0));
    }
}

//! Things to be dealt with one behind the other, by a task that lives while there are any: what is idle has none.
//!
//! The asymmetry to know: whoever adds the first thing starts the task, and a task that asks for the next thing and
//! gets none must end.

use std::cell::RefCell;
use std::collections::VecDeque;

/// What waits to be dealt with; `None` while nobody deals with it. One word beside its count of borrows: there is one
/// for each VM and each shim, and most never have anything.
#[expect(clippy::box_collection, reason = "one word instead of four while it is empty")]
#[derive(Debug)]
pub struct Backlog<T>(RefCell<Option<Box<VecDeque<T>>>>);

impl<T> Default for Backlog<T> {
    fn default() -> Backlog<T> {
        Backlog(RefCell::default())
    }
}

impl<T> Backlog<T> {
    /// Adds something. `true`: nobody deals with what waits, and the caller must see that somebody does.
    #[must_use]
    pub fn add(&self, thing: T) -> bool {
        let mut waiting = self.0.borrow_mut();
        let is_first = waiting.is_none();
        waiting.get_or_insert_default().push_back(thing);
        is_first
    }

    /// The next thing; with `None` whoever asks is done, and all memory is given back.
    pub fn next(&self) -> Option<T> {
        let mut waiting = self.0.borrow_mut();
        let next = waiting.as_mut()?.pop_front();
        if next.is_none() {
            *waiting = None;
        }
        next
    }

    /// How much waits.
    pub fn len(&self) -> usize {
        self.0.borrow().as_ref().map_or(0, |waiting| waiting.len())
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_deals_with_all_in_their_order() {
        let backlog = Backlog::default();
        assert!(backlog.add(1), "nobody is there yet");
        assert!(!backlog.add(2));
        assert_eq!(backlog.next(), Some(1));
        assert!(!backlog.add(3), "whoever took the first thing asks again");
        assert_eq!((backlog.next(), backlog.next(), backlog.next()), (Some(2), Some(3), None));
        assert!(backlog.is_empty() && backlog.0.borrow().is_none(), "it has no memory");
        assert!(backlog.add(4), "nobody is there any more");
    }
}

//! Things to be dealt with one behind the other, by a task that lives while there are any: what is idle has none.
//!
//! The asymmetry to know: whoever adds the first thing starts the task, and a task that asks for the next thing and
//! gets none must end.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

/// What waits to be dealt with.
#[derive(Debug)]
pub struct Backlog<T> {
    waiting: RefCell<VecDeque<T>>,
    /// Somebody deals with it.
    busy: Cell<bool>,
}

impl<T> Default for Backlog<T> {
    fn default() -> Backlog<T> {
        Backlog { waiting: RefCell::default(), busy: Cell::default() }
    }
}

impl<T> Backlog<T> {
    /// Adds something. `true`: nobody deals with what waits, and the caller must see that somebody does.
    #[must_use]
    pub fn add(&self, thing: T) -> bool {
        self.waiting.borrow_mut().push_back(thing);
        !self.busy.replace(true)
    }

    /// The next thing; with `None` whoever asks is done, and all memory is given back.
    pub fn next(&self) -> Option<T> {
        let mut waiting = self.waiting.borrow_mut();
        let next = waiting.pop_front();
        if next.is_none() {
            *waiting = VecDeque::new();
            self.busy.set(false);
        }
        next
    }

    /// How much waits.
    pub fn len(&self) -> usize {
        self.waiting.borrow().len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.borrow().is_empty()
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
        assert_eq!((backlog.is_empty(), backlog.waiting.borrow().capacity()), (true, 0));
        assert!(backlog.add(4), "nobody is there any more");
    }
}

//! The parts that threads share, under loom: each access is a step of its own, which others can come before or after.
//!
//! A [`Crime`] spoils one of them, to show that the checks notice. The asymmetry to know: loom runs all threads of a
//! model on one thread of the system, which is why a thread-local says what is spoilt.

use core::cell::Cell;
use core::sync::atomic::Ordering;

use loom::sync::{Condvar, Mutex};

use crate::collections::VecDeque;
use crate::io;

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Crime {
    /// The eventfd is not written.
    LoseRing,
    /// The sleeper does not look at the queues again once it has said that it sleeps.
    LookOnce,
    /// A flag is not raised.
    LowerFlag,
    /// The coordinator is not told of reports.
    LoseNotice,
    /// A full queue takes the place of its last message.
    Overwrite,
}

real::thread_local! {
    static CRIME: Cell<Option<Crime>> = const { Cell::new(None) };
}

/// Commits a crime in every model that follows on this thread.
pub(crate) fn commit(crime: Crime) {
    CRIME.set(Some(crime));
}

fn is(crime: Crime) -> bool {
    CRIME.get() == Some(crime)
}

/// `std::sync::atomic::AtomicBool`, as far as it is sequentially consistent: loom's own is not, whatever it is asked
/// for, so that a lock takes its place.
#[derive(Debug)]
pub struct AtomicBool(Mutex<bool>);

impl AtomicBool {
    pub fn new(value: bool) -> AtomicBool {
        AtomicBool(Mutex::new(value))
    }

    pub fn store(&self, value: bool, order: Ordering) {
        assert_eq!(order, Ordering::SeqCst, "what is checked here holds for no other order");
        if !(value && is(Crime::LowerFlag)) {
            *self.0.lock().unwrap() = value;
        }
    }

    pub fn swap(&self, value: bool, order: Ordering) -> bool {
        assert_eq!(order, Ordering::SeqCst, "what is checked here holds for no other order");
        core::mem::replace(&mut *self.0.lock().unwrap(), value)
    }
}

/// `crossbeam_queue::ArrayQueue`.
#[derive(Debug)]
pub struct ArrayQueue<T> {
    items: Mutex<VecDeque<T>>,
    most: usize,
}

impl<T> ArrayQueue<T> {
    pub fn new(most: usize) -> ArrayQueue<T> {
        ArrayQueue { items: Mutex::new(VecDeque::new()), most }
    }

    pub fn push(&self, item: T) -> Result<(), T> {
        let mut items = self.items.lock().unwrap();
        if items.len() < self.most {
            items.push_back(item);
        } else if is(Crime::Overwrite) {
            *items.back_mut().unwrap() = item;
        } else {
            return Err(item);
        }
        Ok(())
    }

    pub fn pop(&self) -> Option<T> {
        self.items.lock().unwrap().pop_front()
    }

    pub fn is_empty(&self) -> bool {
        is(Crime::LookOnce) || self.items.lock().unwrap().is_empty()
    }

    pub fn is_full(&self) -> bool {
        is(Crime::LookOnce) || self.items.lock().unwrap().len() == self.most
    }
}

/// Something that is waited for, and stays until then.
#[derive(Debug)]
struct Signal {
    raised: Mutex<bool>,
    changed: Condvar,
}

impl Signal {
    fn new() -> Signal {
        Signal { raised: Mutex::new(false), changed: Condvar::new() }
    }

    fn raise(&self) {
        *self.raised.lock().unwrap() = true;
        self.changed.notify_one();
    }

    fn wait(&self) {
        let mut raised = self.raised.lock().unwrap();
        while !*raised {
            raised = self.changed.wait(raised).unwrap();
        }
        *raised = false;
    }
}

/// `nix::sys::eventfd::EventFd`.
#[derive(Debug)]
pub struct EventFd(Signal);

/// `nix::sys::eventfd::EfdFlags`.
#[derive(Debug)]
pub struct EfdFlags;

impl EfdFlags {
    pub const EFD_CLOEXEC: EfdFlags = EfdFlags;
}

impl EventFd {
    pub fn from_flags(_: EfdFlags) -> io::Result<EventFd> {
        Ok(EventFd(Signal::new()))
    }

    pub fn write(&self, _: u64) -> io::Result<usize> {
        if !is(Crime::LoseRing) {
            self.0.raise();
        }
        Ok(8)
    }

    /// What the ring does with it.
    pub(crate) fn wait(&self) {
        self.0.wait();
    }
}

/// `tokio::sync::Notify`.
#[derive(Debug)]
pub struct Notify(Signal);

impl Notify {
    pub(crate) fn new() -> Notify {
        Notify(Signal::new())
    }

    pub fn notify_one(&self) {
        if !is(Crime::LoseNotice) {
            self.0.raise();
        }
    }

    /// What the coordinator does with it.
    pub(crate) fn wait(&self) {
        self.0.wait();
    }
}

/// `tokio::sync::oneshot`; nothing here answers anything.
pub mod oneshot {
    /// `tokio::sync::oneshot::Sender`.
    #[derive(Debug)]
    pub struct Sender<T>(core::marker::PhantomData<T>);
}

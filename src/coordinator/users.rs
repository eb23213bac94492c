//! What each user of the proxy socket has at once, and the most he may have: connections, sessions, bytes.
//!
//! A user and not a connection is counted, because a connection is easily made anew. Pure. The asymmetry to know: a
//! connection gives back what it holds when it is dropped, a session when its shard says that it has ended.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};

/// The most a user may have at once.
#[derive(Debug, Clone, Copy)]
pub struct UserLimits {
    /// Connections to the proxy socket.
    pub clients: usize,
    /// Sessions of both protocols, on all VMs.
    pub sessions: usize,
    /// Bytes of requests that are not whole and of responses that are not read.
    pub bytes: usize,
}

/// A limit that was reached: what the client is told, and what the log says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Excess {
    /// Of a user's connections.
    #[error("user {uid} has {most} connections, the most one may have (--max-clients-per-user)")]
    Clients {
        /// The user.
        uid: u32,
        /// The most.
        most: usize,
    },
    /// Of a user's sessions.
    #[error("user {uid} would have over {most} sessions, the most one may have (--max-sessions-per-user)")]
    Sessions {
        /// The user.
        uid: u32,
        /// The most.
        most: usize,
    },
    /// Of the bytes his connections hold.
    #[error("requests and responses of user {uid} would hold over {most} bytes (--user-buffer)")]
    Bytes {
        /// The user.
        uid: u32,
        /// The most.
        most: usize,
    },
    /// Of a VM's sessions, whoever has them.
    #[error("{id}: the VM would have over {most} sessions, the most one may have (--max-sessions-per-vm)")]
    OfVm {
        /// The VM's name.
        id: String,
        /// The most.
        most: usize,
    },
}

/// A user, for as long as anything of his is there.
#[derive(Debug)]
pub struct User {
    uid: u32,
    most: UserLimits,
    clients: Cell<usize>,
    sessions: Cell<usize>,
    bytes: Cell<usize>,
}

impl User {
    /// Takes a place for a connection.
    pub(super) fn connect(self: Rc<User>) -> Result<Presence, Excess> {
        let (uid, most) = (self.uid, self.most.clients);
        take(&self.clients, 1, most).ok_or(Excess::Clients { uid, most })?;
        Ok(Presence { user: self, bytes: Cell::new(0) })
    }

    /// Takes places for sessions.
    pub(super) fn take_sessions(&self, count: usize) -> Result<(), Excess> {
        let (uid, most) = (self.uid, self.most.sessions);
        take(&self.sessions, count, most).ok_or(Excess::Sessions { uid, most })
    }

    /// Gives places of sessions back.
    pub(super) fn give_sessions(&self, count: usize) {
        self.sessions.set(self.sessions.get().saturating_sub(count));
    }
}

/// Adds to a count unless it would be over `most` then.
fn take(count: &Cell<usize>, more: usize, most: usize) -> Option<()> {
    let sum = count.get().checked_add(more).filter(|&sum| sum <= most)?;
    count.set(sum);
    Some(())
}

/// A user's connection.
#[derive(Debug)]
pub struct Presence {
    user: Rc<User>,
    bytes: Cell<usize>,
}

impl Presence {
    /// Whose it is.
    pub fn user(&self) -> &Rc<User> {
        &self.user
    }

    /// The connection holds `bytes` from now on, more or less than before.
    ///
    /// # Errors
    /// The user would hold too many; it counts as before.
    pub fn holds(&self, bytes: usize) -> Result<(), Excess> {
        let (uid, most) = (self.user.uid, self.user.most.bytes);
        let (all, own) = (self.user.bytes.get(), self.bytes.get());
        let sum = (all - own).checked_add(bytes).filter(|&sum| bytes <= own || sum <= most);
        self.user.bytes.set(sum.ok_or(Excess::Bytes { uid, most })?);
        self.bytes.set(bytes);
        Ok(())
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.user.clients.set(self.user.clients.get() - 1);
        self.user.bytes.set(self.user.bytes.get() - self.bytes.get());
    }
}

/// All users that have anything.
#[derive(Debug)]
pub(super) struct Users {
    most: UserLimits,
    by_uid: RefCell<HashMap<u32, Weak<User>>>,
}

impl Users {
    pub(super) fn new(most: UserLimits) -> Users {
        Users { most, by_uid: RefCell::default() }
    }

    /// The user with this number.
    pub(super) fn of(&self, uid: u32) -> Rc<User> {
        let mut users = self.by_uid.borrow_mut();
        if let Some(user) = users.get(&uid).and_then(Weak::upgrade) {
            return user;
        }
        users.retain(|_, user| user.strong_count() > 0);
        let (clients, sessions, bytes) = Default::default();
        let user = Rc::new(User { uid, most: self.most, clients, sessions, bytes });
        users.insert(uid, Rc::downgrade(&user));
        user
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users() -> Users {
        Users::new(UserLimits { clients: 2, sessions: 3, bytes: 100 })
    }

    #[test]
    fn a_user_s_connections_are_bounded_and_another_s_are_his_own() {
        let users = users();
        let first = users.of(7).connect().unwrap();
        let _second = users.of(7).connect().unwrap();
        let full = users.of(7).connect().unwrap_err().to_string();
        assert_eq!(full, "user 7 has 2 connections, the most one may have (--max-clients-per-user)");
        users.of(8).connect().unwrap();
        drop(first);
        users.of(7).connect().unwrap();
    }

    #[test]
    fn sessions_are_counted_beyond_the_connection() {
        let users = users();
        let user = Rc::clone(users.of(7).connect().unwrap().user());
        user.take_sessions(2).unwrap();
        assert_eq!(user.take_sessions(2), Err(Excess::Sessions { uid: 7, most: 3 }));
        assert_eq!(users.of(7).sessions.get(), 2, "what was refused is not counted");
        user.give_sessions(1);
        user.take_sessions(2).unwrap();
    }

    #[test]
    fn bytes_of_all_connections_count_together_and_less_is_always_allowed() {
        let users = users();
        let (one, other) = (users.of(7).connect().unwrap(), users.of(7).connect().unwrap());
        one.holds(60).unwrap();
        other.holds(40).unwrap();
        assert_eq!(other.holds(41), Err(Excess::Bytes { uid: 7, most: 100 }));
        one.holds(59).unwrap();
        other.holds(41).unwrap();
        drop(one);
        other.holds(100).unwrap();
        drop(other);
        assert_eq!(users.of(7).bytes.get(), 0);
    }

    #[test]
    fn who_has_nothing_is_forgotten() {
        let users = users();
        drop(users.of(1));
        let kept = users.of(2);
        users.of(3);
        assert_eq!(users.by_uid.borrow().len(), 2, "2 and 3");
        drop(kept);
    }
}

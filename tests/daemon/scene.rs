//! A daemon with a VM that behaves, and the question every bad peer ends with: is everybody else still served, is
//! nothing left behind?

use super::client::{Client, Session};
use super::guest::Guest;
use super::harness::{Daemon, until};

/// A daemon and a well-behaved VM with one session.
pub(crate) struct Scene {
    pub(crate) daemon: Daemon,
    pub(crate) client: Client,
    pub(crate) guest: Guest,
    pub(crate) session: Session,
    before: Holdings,
}

/// What a daemon holds for others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Holdings {
    open_fds: u64,
    clients: u64,
    links: u64,
    sessions: u64,
}

impl Scene {
    pub(crate) fn set(flags: &[&str]) -> Scene {
        Scene::around(Daemon::start(flags))
    }

    pub(crate) fn around(daemon: Daemon) -> Scene {
        let mut client = daemon.client();
        let guest = Guest::boot(&daemon, &mut client, "witness");
        let session = client.allocate(2);
        let before = settled(&daemon);
        Scene { daemon, client, guest, session, before }
    }

    /// The others are served: a command, and bytes both ways.
    pub(crate) fn serves(&mut self) {
        self.guest.obeys(&mut self.client, "ping");
        self.session.send(b"are you there?");
        assert_eq!(self.guest.take_frame(), (self.session.base, b"are you there?".to_vec()));
        self.guest.send(self.session.base, b"I am");
        self.session.expect(b"I am");
        self.guest.send(self.session.base + 1, b"so am I");
        assert_eq!(self.session.next_frame(), Some((self.session.base + 1, b"so am I".to_vec())));
    }

    /// The others are served, and nothing is left of what has gone since the beginning.
    pub(crate) fn is_sound(&mut self) {
        self.serves();
        let mut last = None;
        until(&format!("what was held before, {:?}; now {last:?}", self.before), || {
            let now = holdings(&self.daemon);
            last = Some(now);
            let is_less = now.open_fds <= self.before.open_fds;
            (is_less && Holdings { open_fds: self.before.open_fds, ..now } == self.before).then_some(())
        });
        let status = self.daemon.status();
        assert!(status.shards.iter().all(|shard| shard.stale_completions == 0), "{status:?}");
        assert!(!self.daemon.log().contains("panicked"), "{}", self.daemon.log());
    }
}

fn holdings(daemon: &Daemon) -> Holdings {
    let status = daemon.status();
    let sum = |of: fn(&ringway::wire::admin::ShardStatus) -> u64| status.shards.iter().map(of).sum();
    let listed: usize = status.vms.iter().map(|vm| vm.sessions.len()).sum();
    let sessions: u64 = sum(|shard| shard.sessions);
    let (open_fds, clients, links) = (status.open_fds, status.clients, sum(|shard| shard.links));
    Holdings { open_fds, clients, links, sessions: sessions.max(listed as u64) }
}

/// What it holds once that does not change any more: connections to the admin socket take a moment to go.
fn settled(daemon: &Daemon) -> Holdings {
    let mut last = holdings(daemon);
    let mut same = 0;
    until("a daemon at rest", || {
        let now = holdings(daemon);
        same = if now == last { same + 1 } else { 0 };
        last = now;
        (same == 4).then_some(now)
    })
}

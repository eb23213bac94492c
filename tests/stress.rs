//! A coordinator and a shard on threads of the system, with queues of two: what `tests/races` plays, for real.
//!
//! `src/shard/mailbox.rs`, `src/shard/stats.rs` and `src/reactor/wake.rs` are compiled here once more, because a shard
//! of the library sleeps in a ring, which neither Miri nor ThreadSanitizer knows; here it sleeps in a read of the
//! eventfd. CONTRIBUTING.md says how to run this under either. The asymmetry to know: a wake-up that is lost shows as
//! a test that does not end.

#![expect(dead_code, unreachable_pub, reason = "of the program's files only a part is used")]

#[path = "../src/shard/mailbox.rs"]
mod mailbox;
#[path = "../src/shard/stats.rs"]
mod stats;
#[path = "../src/reactor/wake.rs"]
mod wake;

use std::sync::Arc;
use std::thread;

use ringway::{relay, wire};
use tokio::sync::Notify;

use crate::mailbox::{Mailbox, Order, Report, ShardMailbox, mailbox};
use crate::stats::ShardStats;
use crate::wake::Waker;
use crate::wire::admin::ShardStatus;

/// Short queues, so that they are full most of the time.
mod limits {
    pub(crate) const MAILBOX_LEN: usize = 2;
}

mod reactor {
    pub(crate) use crate::wake::Waker;
}

/// Orders each thread posts.
const ORDERS: u64 = if cfg!(miri) { 40 } else { 3_000 };
/// Threads that post.
const POSTERS: usize = 2;

/// Obeys until told to stop: reports each order three times, and counts them.
fn shard(mut mailbox: ShardMailbox, waker: &Waker, stats: &ShardStats) {
    let mut numbers = ShardStatus::default();
    loop {
        if mailbox.may_sleep() {
            waker.event().read().unwrap();
        }
        mailbox.awake();
        while let Some(order) = mailbox.next_order() {
            match order {
                Order::CloseLink { vm } => {
                    (0..3).for_each(|_| mailbox.report(Report::Relay(relay::Report::LinkUnblocked { vm })));
                    numbers.turns += 1;
                    numbers.links += 1;
                }
                Order::Stop => return,
                other => panic!("nobody ordered {other:?}"),
            }
        }
        mailbox.deliver();
        stats.store(&numbers);
    }
}

fn post(mailbox: &Mailbox, mut order: Order) {
    while let Err(back) = mailbox.post(order) {
        order = back;
        mailbox.wake();
        thread::yield_now();
    }
}

#[test]
fn every_order_is_obeyed_and_every_report_taken() {
    let (waker, notify, stats) = (Waker::new().unwrap(), Arc::new(Notify::new()), ShardStats::default());
    let (ours, theirs) = mailbox(waker.clone(), Arc::clone(&notify));
    let posters = POSTERS as u64;
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut next = [0; POSTERS];
    let (mut taken, mut seen) = (0, 0);
    thread::scope(|scope| {
        scope.spawn(|| shard(theirs, &waker, &stats));
        for poster in 0..posters {
            let ours = ours.clone();
            scope.spawn(move || (0..ORDERS).for_each(|n| post(&ours, Order::CloseLink { vm: n * posters + poster })));
        }
        while taken < 3 * ORDERS * posters {
            runtime.block_on(notify.notified());
            while let Some(report) = ours.next_report() {
                let Report::Relay(relay::Report::LinkUnblocked { vm }) = report else { panic!("not {report:?}") };
                let place = &mut next[usize::try_from(vm % posters).unwrap()];
                assert_eq!(vm / posters, *place / 3, "each poster's orders are obeyed once and in their order");
                *place += 1;
                taken += 1;
            }
            let turns = stats.status(0, None).turns;
            assert!(turns >= seen, "a counter of one writer never falls");
            seen = turns;
        }
        post(&ours, Order::Stop);
    });
    assert_eq!(next, [3 * ORDERS; POSTERS]);
}

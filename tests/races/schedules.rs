//! Every schedule of a coordinator and a shard: no message and no wake-up is lost, none comes twice or out of order.
//!
//! A lost wake-up is a deadlock, which loom finds by itself. The asymmetry to know: the shard's turn is `Shard::turn`
//! without its ring: sleep if there is nothing to do, obey, report, deliver.

use core::sync::atomic::{AtomicU64, Ordering};

use loom::thread;

use crate::collections::BTreeMap;
use crate::limits::MAILBOX_LEN;
use crate::mailbox::{Mailbox, Order, Report, ShardMailbox, mailbox};
use crate::played::{Crime, Notify, commit};
use crate::relay::Report as News;
use crate::sync::Arc;
use crate::wake::Waker;
use crate::wire::hyper::StreamSeq;

/// Of how many turns a thread is deprived in one schedule, unless `LOOM_MAX_PREEMPTIONS` says more.
const PREEMPTIONS: usize = 3;

struct Shard {
    mailbox: ShardMailbox,
    waker: Waker,
    obeyed: Vec<u64>,
}

impl Shard {
    /// One turn; `false` once it is told to stop.
    fn turn(&mut self) -> bool {
        if self.mailbox.may_sleep() {
            self.waker.event().wait();
        }
        self.mailbox.awake();
        while let Some(order) = self.mailbox.next_order() {
            match order {
                Order::CloseLink { vm } => self.obeyed.push(vm),
                Order::Stop => return false,
                other => panic!("nobody ordered {other:?}"),
            }
        }
        self.mailbox.deliver();
        true
    }

    /// Takes turns until it is told to stop. What it was told before.
    fn run(mut self) -> Vec<u64> {
        while self.turn() {}
        self.obeyed
    }
}

fn pair() -> (Mailbox, Shard, Arc<Notify>) {
    let (waker, notify) = (Waker::new().unwrap(), Arc::new(Notify::new()));
    let (ours, theirs) = mailbox(waker.clone(), Arc::clone(&notify));
    (ours, Shard { mailbox: theirs, waker, obeyed: Vec::new() }, notify)
}

/// Posts an order as the coordinator does, waiting for room.
fn post(mailbox: &Mailbox, mut order: Order) {
    while let Err(back) = mailbox.post(order) {
        order = back;
        mailbox.wake();
        thread::yield_now();
    }
}

/// Reports until there are `count`.
fn take(mailbox: &Mailbox, notify: &Notify, count: usize) -> Vec<Report> {
    let mut taken = Vec::new();
    while taken.len() < count {
        notify.wait();
        while let Some(report) = mailbox.next_report() {
            taken.push(report);
        }
    }
    taken
}

fn news(vm: u64) -> Report {
    Report::Relay(News::LinkUnblocked { vm })
}

fn vm_of(report: &Report) -> u64 {
    match report {
        Report::Relay(News::LinkUnblocked { vm }) => *vm,
        other => panic!("nobody reported {other:?}"),
    }
}

fn orders_of_one() {
    let (ours, shard, _) = pair();
    let shard = thread::spawn(|| shard.run());
    ours.queue(Order::CloseLink { vm: 1 }).unwrap();
    ours.wake();
    for vm in [2, 3] {
        post(&ours, Order::CloseLink { vm });
    }
    post(&ours, Order::Stop);
    assert_eq!(shard.join().unwrap(), [1, 2, 3]);
}

fn orders_of_two() {
    let (ours, mut shard, _) = pair();
    let theirs = ours.clone();
    let other = thread::spawn(move || theirs.post(Order::CloseLink { vm: 2 }).unwrap());
    let shard = thread::spawn(move || {
        while shard.obeyed.len() < 2 {
            shard.turn();
        }
        shard.obeyed
    });
    ours.post(Order::CloseLink { vm: 1 }).unwrap();
    other.join().unwrap();
    let mut obeyed = shard.join().unwrap();
    obeyed.sort_unstable();
    assert_eq!(obeyed, [1, 2]);
}

fn reports_over_the_bound() {
    let (ours, mut shard, notify) = pair();
    let count = MAILBOX_LEN as u64 + 2;
    let shard = thread::spawn(move || {
        (1..=count).for_each(|vm| shard.mailbox.report(news(vm)));
        shard.mailbox.deliver();
        shard.run()
    });
    let taken = take(&ours, &notify, MAILBOX_LEN + 2);
    post(&ours, Order::Stop);
    shard.join().unwrap();
    assert!(taken.iter().map(vm_of).eq(1..=count), "{taken:?}");
}

fn both_ways() {
    let (ours, mut shard, notify) = pair();
    let shard = thread::spawn(move || {
        while shard.turn() {
            for vm in core::mem::take(&mut shard.obeyed) {
                shard.mailbox.report(news(vm));
            }
            shard.mailbox.deliver();
        }
    });
    for vm in [1, 2] {
        post(&ours, Order::CloseLink { vm });
        let taken = take(&ours, &notify, 1);
        assert!(taken.iter().map(vm_of).eq([vm]), "{taken:?}");
    }
    post(&ours, Order::Stop);
    shard.join().unwrap();
}

/// A link that stops and goes while the queue is full: what the coordinator heard last is how it is.
fn blocked_and_read_again() {
    let (ours, mut shard, notify) = pair();
    let shard = thread::spawn(move || {
        let blocked = |vm| Report::Relay(News::LinkBlocked { vm, by: StreamSeq(1) });
        for report in [blocked(7), blocked(8), news(7), news(8), blocked(9)] {
            shard.mailbox.report(report);
            shard.mailbox.deliver();
        }
        shard.run()
    });
    let mut held = BTreeMap::new();
    while held.get(&9) != Some(&true) {
        notify.wait();
        while let Some(report) = ours.next_report() {
            match report {
                Report::Relay(News::LinkBlocked { vm, .. }) => held.insert(vm, true),
                Report::Relay(News::LinkUnblocked { vm }) => held.insert(vm, false),
                other => panic!("nobody reported {other:?}"),
            };
        }
    }
    post(&ours, Order::Stop);
    shard.join().unwrap();
    assert_eq!(held, BTreeMap::from([(7, false), (8, false), (9, true)]));
}

/// Takes one of these in turn, to the end.
const MODELS: [fn(); 5] = [orders_of_one, orders_of_two, reports_over_the_bound, both_ways, blocked_and_read_again];

/// Runs a model in every order with at most so many turns taken away from a thread that could go on.
fn check(model: fn()) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound.get_or_insert(PREEMPTIONS);
    let runs = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&runs);
    builder.check(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        model();
    });
    real::println!("{} schedules", runs.load(Ordering::Relaxed));
}

#[test]
fn no_order_is_lost() {
    check(orders_of_one);
}

#[test]
fn no_order_of_two_threads_is_lost() {
    check(orders_of_two);
}

#[test]
fn no_report_is_lost_when_the_queue_is_full() {
    check(reports_over_the_bound);
}

#[test]
fn orders_and_reports_meet() {
    check(both_ways);
}

#[test]
fn the_last_word_on_a_link_is_how_it_is() {
    check(blocked_and_read_again);
}

#[test]
fn every_crime_is_noticed() {
    for crime in [Crime::LoseRing, Crime::LookOnce, Crime::LowerFlag, Crime::LoseNotice, Crime::Overwrite] {
        let is_noticed = |model: fn()| {
            real::thread::spawn(move || {
                commit(crime);
                check(model);
            })
            .join()
            .is_err()
        };
        assert!(MODELS.into_iter().any(is_noticed), "{crime:?} goes unnoticed");
    }
}

//! What the mailbox does with one thread: order, bounds, and a backlog that does not grow.
//!
//! They are not in `mailbox.rs`, because `tests/races` compiles that file by itself.

use std::sync::Arc;

use tokio::sync::Notify;

use super::mailbox::{Order, Report, TokenOrder, mailbox};
use crate::limits::MAILBOX_LEN;
use crate::reactor::Waker;
use crate::relay;
use crate::wire::SlowReader;
use crate::wire::hyper::StreamSeq;

#[test]
fn orders_keep_their_order_and_full_means_full() {
    let (ours, theirs) = mailbox(Waker::new().unwrap(), Arc::new(Notify::new()));
    for vm in 0..MAILBOX_LEN as u64 {
        ours.post(Order::CloseLink { vm }).unwrap();
    }
    assert!(matches!(ours.post(Order::Drain), Err(Order::Drain)));
    assert!(!theirs.may_sleep());
    for vm in 0..MAILBOX_LEN as u64 {
        assert!(matches!(theirs.next_order(), Some(Order::CloseLink { vm: got }) if got == vm));
    }
    assert!(theirs.may_sleep());
}

#[test]
fn what_opens_something_can_wait_and_what_is_owed_cannot() {
    let token = |order| Order::Token(StreamSeq(1), order);
    let connect = |reply: &[u8]| {
        let fd = std::fs::File::open("/dev/null").unwrap().into();
        token(TokenOrder::Connect { connection: 1, fd, unparsed: Vec::new(), reply: reply.to_vec() })
    };
    assert!(Order::OpenToken { vm: 1, base: StreamSeq(1), slow_reader: SlowReader::Spill }.can_wait());
    assert!(token(TokenOrder::Started { terminal: false }).can_wait() && connect(b"").can_wait());
    assert!(!connect(b"response").can_wait() && !token(TokenOrder::Exited { status: 0 }).can_wait());
    assert!(!Order::CloseLink { vm: 1 }.can_wait());
}

#[test]
fn reports_that_do_not_fit_wait_and_none_is_lost() {
    let (ours, mut theirs) = mailbox(Waker::new().unwrap(), Arc::new(Notify::new()));
    let total = MAILBOX_LEN as u64 + 10;
    for vm in 0..total {
        theirs.report(Report::Relay(relay::Report::LinkUnblocked { vm }));
    }
    theirs.deliver();
    assert!(theirs.may_sleep(), "there is no room, so there is nothing to do");
    for want in 0..total {
        let got = ours.next_report().unwrap();
        assert!(matches!(got, Report::Relay(relay::Report::LinkUnblocked { vm }) if vm == want));
        assert!(theirs.backlog.is_empty() || !theirs.may_sleep(), "there is room again");
        theirs.deliver();
    }
    assert!(ours.next_report().is_none());
}

#[test]
fn links_that_stop_and_go_do_not_grow_the_backlog() {
    let (ours, mut theirs) = mailbox(Waker::new().unwrap(), Arc::new(Notify::new()));
    let by = StreamSeq(1);
    for _ in 0..10 * MAILBOX_LEN {
        for vm in [7, 8] {
            theirs.report(Report::Relay(relay::Report::LinkBlocked { vm, by }));
        }
        for vm in [7, 8] {
            theirs.report(Report::Relay(relay::Report::LinkUnblocked { vm }));
        }
        theirs.deliver();
    }
    theirs.report(Report::Relay(relay::Report::LinkBlocked { vm: 7, by }));
    assert!(theirs.backlog.len() <= 5, "{} reports wait", theirs.backlog.len());
    let mut held = std::collections::BTreeMap::new();
    loop {
        theirs.deliver();
        match ours.next_report() {
            Some(Report::Relay(relay::Report::LinkBlocked { vm, .. })) => held.insert(vm, true),
            Some(Report::Relay(relay::Report::LinkUnblocked { vm })) => held.insert(vm, false),
            None => break,
            other => panic!("{other:?}"),
        };
    }
    assert_eq!(held.into_iter().collect::<Vec<_>>(), [(7, true), (8, false)], "how they are in the end");
}

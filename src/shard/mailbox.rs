//! How the coordinator and a shard talk: orders one way, reports the other, both through bounded queues.
//!
//! Whoever finds a queue full keeps what it has and is woken when there is room; nothing is dropped. The asymmetry to
//! know: a shard never waits for the coordinator, so a full queue of reports goes into a backlog of its own. Its length
//! is bounded by the links and sessions there are: of a link that is held back and read again meanwhile, one pair.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_queue::ArrayQueue;
use tokio::sync::{Notify, oneshot};

use crate::limits::MAILBOX_LEN;
use crate::reactor::Waker;
use crate::relay::{self, LinkStatus};
use crate::wire::SlowReader;
use crate::wire::hyper::StreamSeq;

/// What the coordinator tells a shard.
#[derive(Debug)]
pub enum Order {
    /// Serve a VM's stream channel.
    OpenLink {
        /// The VM's number.
        vm: u64,
        /// Its socket.
        fd: OwnedFd,
    },
    /// End a VM: what its clients are owed goes to them, then EOF. Always answered with a report that the link ended.
    CloseLink {
        /// The VM's number.
        vm: u64,
    },
    /// End a VM that died: what its agent had written before goes to its clients too, then what they are owed, then
    /// EOF.
    FinishLink {
        /// The VM's number.
        vm: u64,
    },
    /// Serve a session.
    OpenSession {
        /// The VM's number.
        vm: u64,
        /// First sequence.
        base: StreamSeq,
        /// Number of sequences: 1 or 2.
        streams: u8,
        /// What is done when its client does not read.
        slow_reader: SlowReader,
        /// Our end of the client's socket.
        fd: OwnedFd,
    },
    /// Keep output for a token that no shim has claimed yet.
    OpenToken {
        /// The VM's number.
        vm: u64,
        /// First of its two sequences.
        base: StreamSeq,
        /// What is done when nobody reads its output.
        slow_reader: SlowReader,
    },
    /// Something about a session with a token, by its first sequence.
    Token(StreamSeq, TokenOrder),
    /// Say how the links and sessions are.
    Status(oneshot::Sender<Vec<LinkStatus>>),
    /// End every VM and report when every client that reads has what it is owed.
    Drain,
    /// End the thread.
    Stop,
}

impl Order {
    /// Whether nobody is held up when it is looked at a little later: it opens something. The shard looks before it
    /// touches any bytes, so what comes after it finds it done.
    pub fn can_wait(&self) -> bool {
        match self {
            Order::OpenLink { .. } | Order::OpenSession { .. } | Order::OpenToken { .. } => true,
            Order::Token(_, TokenOrder::Connect { unparsed, reply, .. }) => unparsed.is_empty() && reply.is_empty(),
            Order::Token(_, order) => matches!(order, TokenOrder::Started { .. }),
            Order::CloseLink { .. } | Order::FinishLink { .. } | Order::Status(_) | Order::Drain | Order::Stop => false,
        }
    }
}

/// What the coordinator tells about a session with a token.
#[derive(Debug)]
pub enum TokenOrder {
    /// A shim has claimed it; its connection moves here.
    Connect {
        /// The connection's number.
        connection: u64,
        /// Its socket.
        fd: OwnedFd,
        /// Bytes it sent that nobody has looked at.
        unparsed: Vec<u8>,
        /// Bytes it is owed.
        reply: Vec<u8>,
    },
    /// One of its messages has been dealt with.
    Answer {
        /// Which connection sent it.
        connection: u64,
        /// Whole frames to send; may be none.
        reply: Vec<u8>,
    },
    /// Its process runs.
    Started {
        /// It has a terminal, hence no stderr of its own.
        terminal: bool,
    },
    /// Its process ended, as the agent said on the control channel.
    Exited {
        /// The exit status.
        status: u8,
    },
    /// End this connection; the token is free again.
    Drop {
        /// Which connection.
        connection: u64,
        /// Why.
        why: relay::Gone,
    },
    /// The token is given up.
    Release {
        /// Whole frames to send before the connection ends.
        reply: Vec<u8>,
    },
}

/// What a shard tells the coordinator.
#[derive(Debug)]
pub enum Report {
    /// Something happened to a link or a session.
    Relay(relay::Report),
    /// Nothing is owed to any client any more.
    Drained,
    /// The ring failed; the shard's thread ends.
    Failed(std::io::Error),
}

/// The two queues between the coordinator and one shard.
#[derive(Debug)]
struct Queues {
    orders: ArrayQueue<Order>,
    reports: ArrayQueue<Report>,
    /// The shard has reports that did not fit.
    backlogged: AtomicBool,
}

/// The coordinator's end.
#[derive(Debug, Clone)]
pub struct Mailbox {
    queues: Arc<Queues>,
    waker: Waker,
}

/// The shard's end.
#[derive(Debug)]
pub struct ShardMailbox {
    queues: Arc<Queues>,
    waker: Waker,
    backlog: VecDeque<Report>,
    notify: Arc<Notify>,
}

/// Makes both ends. `notify` is told when there are reports; all shards share one.
pub fn mailbox(waker: Waker, notify: Arc<Notify>) -> (Mailbox, ShardMailbox) {
    let queues = Arc::new(Queues {
        orders: ArrayQueue::new(MAILBOX_LEN),
        reports: ArrayQueue::new(MAILBOX_LEN),
        backlogged: AtomicBool::new(false),
    });
    let ours = Mailbox { queues: Arc::clone(&queues), waker: waker.clone() };
    (ours, ShardMailbox { queues, waker, backlog: VecDeque::new(), notify })
}

impl Mailbox {
    /// Puts an order into the shard's queue and wakes it.
    ///
    /// # Errors
    /// Gives the order back when the queue is full.
    pub fn post(&self, order: Order) -> Result<(), Order> {
        self.queue(order)?;
        self.wake();
        Ok(())
    }

    /// Puts an order into the shard's queue, where its next turn finds it; [`Mailbox::wake`] brings that about.
    ///
    /// # Errors
    /// Gives the order back when the queue is full.
    pub fn queue(&self, order: Order) -> Result<(), Order> {
        self.queues.orders.push(order)
    }

    /// Wakes the shard if it sleeps.
    pub fn wake(&self) {
        self.waker.wake();
    }

    /// The next report.
    pub fn next_report(&self) -> Option<Report> {
        let report = self.queues.reports.pop();
        if self.queues.backlogged.swap(false, Ordering::SeqCst) {
            self.waker.wake();
        }
        report
    }
}

impl ShardMailbox {
    /// The next order.
    pub fn next_order(&self) -> Option<Order> {
        self.queues.orders.pop()
    }

    /// Queues a report and tells the coordinator. While the queue is full, a link that is read again takes the report
    /// that it is held back, if that still waits, out of the backlog: nobody needs to hear of either any more. The same
    /// goes for a session that begins to spill, and is done with it.
    pub fn report(&mut self, report: Report) {
        if self.queues.reports.is_full()
            && let Some(position) = self.backlog.iter().rposition(|waiting| is_undone(waiting, &report))
        {
            self.backlog.remove(position);
            return;
        }
        self.backlog.push_back(report);
    }

    /// Moves reports into the queue, as many as fit.
    pub fn deliver(&mut self) {
        if self.backlog.is_empty() {
            return;
        }
        while let Some(report) = self.backlog.pop_front() {
            if let Err(report) = self.queues.reports.push(report) {
                self.backlog.push_front(report);
                self.queues.backlogged.store(true, Ordering::SeqCst);
                break;
            }
        }
        self.notify.notify_one();
    }

    /// Announces that the shard will sleep; `false` when there is something to do first.
    pub fn may_sleep(&self) -> bool {
        self.waker.announce_sleep();
        let has_room = !self.backlog.is_empty() && !self.queues.reports.is_full();
        let may = self.queues.orders.is_empty() && !has_room;
        if !may {
            self.waker.awake();
        }
        may
    }

    /// The shard is awake.
    pub fn awake(&self) {
        self.waker.awake();
    }
}

/// Whether nobody needs to hear of `waiting` any more, nor of `report` that follows it.
fn is_undone(waiting: &Report, report: &Report) -> bool {
    use relay::Report as R;
    let (Report::Relay(waiting), Report::Relay(report)) = (waiting, report) else { return false };
    match (waiting, report) {
        (R::LinkBlocked { vm, .. }, R::LinkUnblocked { vm: of }) => vm == of,
        (R::SpillBegan { base, .. }, R::SpillEnded { base: of, .. }) => base == of,
        (R::SpillStopped { base, .. }, R::SpillStopped { base: of, .. }) => base == of,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}

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
    /// The shard sleeps, or is about to, and has reports that did not fit.
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
    pub(super) backlog: VecDeque<Report>,
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
                break;
            }
        }
        self.notify.notify_one();
    }

    /// Announces that the shard will sleep, and what for; `false` when there is something to do first.
    ///
    /// The backlog is announced last: the coordinator may have taken a report before the queue was full and look only
    /// now, and must then find the shard asleep.
    pub fn may_sleep(&self) -> bool {
        self.waker.announce_sleep();
        let waits_for_room = !self.backlog.is_empty();
        if waits_for_room {
            self.queues.backlogged.store(true, Ordering::SeqCst);
        }
        let has_room = waits_for_room && !self.queues.reports.is_full();
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

//! The load generator: one thread sends, one receives and compares, each over all the sockets of its side.
//!
//! Both sides are made of lanes. A lane is a socket and the sessions it carries: a VM's stream channel carries all of
//! its sessions, a client's socket one. So sending out of VMs and into them is the same code. It must cost much less
//! than what it measures: it sends batches of up to 64 KiB with the frames of a lane's sessions in turn, and reads up
//! to 256 KiB at once.
//!
//! A load ends well when every byte that was sent has arrived. Frames are never left half sent.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::measure::{Observed, Progress, Stall, Subject, Window, observe};
use crate::pattern::{Comparison, Dialect, Directory, Pattern, Position, READ_MAX, Scanner};

/// Bytes a batch has at most, unless one frame is longer.
const BATCH: usize = 64 * 1024;
/// Milliseconds between two looks at the flags.
const LOOK: u16 = 10;

/// A socket and the sessions it carries.
#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) socket: UnixStream,
    pub(crate) sessions: Range<usize>,
    pub(crate) dialect: Dialect,
    scanner: Scanner,
    batch: Vec<u8>,
    /// Bytes of the batch that have left.
    left: usize,
    /// Whose frame is next.
    turn: usize,
}

impl Lane {
    /// `seqs` are the sequences of the sessions.
    pub(crate) fn new(socket: UnixStream, sessions: Range<usize>, seqs: &[u64], dialect: Dialect) -> Result<Lane> {
        socket.set_nonblocking(true)?;
        let scanner = Scanner::new(dialect, Directory::new(seqs, sessions.start), sessions.start);
        Ok(Lane { socket, sessions, dialect, scanner, batch: Vec::new(), left: 0, turn: 0 })
    }

    /// Another lane on the same socket, to use it in both directions at once. Both must be between frames.
    pub(crate) fn twin(&self) -> Result<Lane> {
        let (socket, sessions, scanner) = (self.socket.try_clone()?, self.sessions.clone(), self.scanner.clone());
        Ok(Lane { socket, sessions, dialect: self.dialect, scanner, batch: Vec::new(), left: 0, turn: 0 })
    }

    /// Reads once into `buffer`; `None` when there is nothing.
    pub(crate) fn read<'a>(&mut self, buffer: &'a mut [u8]) -> Result<Option<&'a [u8]>> {
        match self.socket.read(buffer) {
            Ok(0) => bail!("the daemon closed a socket"),
            Ok(count) => Ok(Some(&buffer[..count])),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(None),
            Err(error) => Err(error).context("a socket failed"),
        }
    }

    /// Compares what was read; returns how much payload it was.
    pub(crate) fn scan(
        &mut self,
        bytes: &[u8],
        compare: &mut Comparison<'_>,
        payload: impl FnMut(usize, usize),
    ) -> Result<()> {
        self.scanner.scan(bytes, compare, payload)
    }

    /// Puts one frame at the end of the batch.
    pub(crate) fn frame(&mut self, session: usize, payload: usize, source: &mut Source<'_>) -> Result<()> {
        let header = self.dialect.header(source.seqs[session], u32::try_from(payload)?);
        self.batch.extend_from_slice(&header);
        self.batch.extend_from_slice(source.pattern.at(source.positions[session], payload));
        source.positions[session].advance(payload);
        Ok(())
    }

    /// Writes what is left of the batch, with one call; false when the socket takes no more now.
    pub(crate) fn flush(&mut self) -> Result<bool> {
        while self.left < self.batch.len() {
            match self.socket.write(&self.batch[self.left..]) {
                Ok(count) => self.left += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error).context("the daemon closed a socket"),
            }
        }
        self.batch.clear();
        self.left = 0;
        Ok(true)
    }
}

/// Where frames come from.
#[derive(Debug)]
pub(crate) struct Source<'a> {
    pub(crate) pattern: &'a Pattern,
    pub(crate) seqs: &'a [u64],
    pub(crate) positions: &'a mut [Position],
}

/// What to send.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    /// Bytes of payload in a frame.
    pub(crate) payload: usize,
    /// One frame in each write, as real agents and clients do.
    pub(crate) single: bool,
    /// Session 0 gets this much and no more, and its client reads nothing before the end.
    pub(crate) stuck: Option<u64>,
    /// Its threads give way to all others, so that what else is measured waits for the daemon and not for them.
    pub(crate) gives_way: bool,
}

impl Plan {
    /// Gives this thread the least priority where the plan wants it.
    fn give_way(&self) -> Result<()> {
        if self.gives_way { give_way() } else { Ok(()) }
    }
}

/// Gives this thread the least priority.
pub(crate) fn give_way() -> Result<()> {
    let thread = nix::unistd::gettid().to_string();
    let renice = Command::new("renice").args(["-n", "19", "-p", &thread]).stdout(Stdio::null()).status();
    ensure!(renice.context("renice")?.success(), "renice could not make a thread give way");
    Ok(())
}

/// One direction between two sides.
#[derive(Debug)]
pub(crate) struct Flow<'a> {
    pub(crate) pattern: &'a Pattern,
    pub(crate) seqs: &'a [u64],
    pub(crate) senders: &'a mut [Lane],
    pub(crate) receivers: &'a mut [Lane],
    pub(crate) sent: &'a mut [Position],
    pub(crate) received: &'a mut [Position],
}

/// Runs a load over a window, and until all of it has arrived.
pub(crate) fn transfer(subject: &Subject, flow: Flow<'_>, plan: Plan, window: &Window) -> Result<Observed> {
    run_beside([flow], plan, window.patience, |[progress]| observe(subject, window, progress))
}

/// Runs loads for as long as something else takes, and until all that was sent has arrived.
pub(crate) fn run_beside<const N: usize, T>(
    flows: [Flow<'_>; N],
    plan: Plan,
    patience: Duration,
    meanwhile: impl FnOnce(&[Progress; N]) -> Result<T>,
) -> Result<T> {
    let progress = [(); N].map(|()| Progress::default());
    thread::scope(|scope| {
        let mut threads = Vec::with_capacity(N);
        for (flow, progress) in flows.into_iter().zip(&progress) {
            let Flow { pattern, seqs, senders, receivers, sent, received } = flow;
            let source = Source { pattern, seqs, positions: sent };
            let compare = Comparison { pattern, positions: received };
            let sending = scope.spawn(move || {
                progress.run(|| {
                    plan.give_way()?;
                    send(senders, source, plan, progress)
                })
            });
            let receive = Receive { plan, progress, stall: Stall::new(patience) };
            let receiving = scope.spawn(move || {
                progress.run(|| {
                    plan.give_way()?;
                    receive.run(receivers, compare)
                })
            });
            threads.push((progress, sending, receiving));
        }
        let done = meanwhile(&progress);
        progress.iter().for_each(|progress| Progress::set(&progress.stop));
        let mut ends = Vec::with_capacity(N);
        for (progress, sending, receiving) in threads {
            let received = receiving.join().unwrap_or_else(|_| bail!("the receiver panicked"));
            Progress::set(&progress.abort);
            let sent = sending.join().unwrap_or_else(|_| bail!("the sender panicked"));
            // The sender's failure first: the receiver then only gave up.
            ends.push(sent.and(received));
        }
        ends.into_iter().collect::<Result<()>>()?;
        done
    })
}

fn send(lanes: &mut [Lane], mut source: Source<'_>, plan: Plan, progress: &Progress) -> Result<()> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    for (at, lane) in lanes.iter().enumerate() {
        epoll.add(&lane.socket, EpollEvent::new(EpollFlags::EPOLLOUT | EpollFlags::EPOLLET, at as u64))?;
    }
    let mut ready: VecDeque<usize> = (0..lanes.len()).collect();
    // Lanes that wait for room with a batch half sent, and the rest that are in `ready`.
    let mut blocked = 0;
    let (mut total, mut stuck) = (0, plan.stuck);
    let mut events = [EpollEvent::empty(); 64];
    loop {
        let stop = Progress::is(&progress.stop);
        while let Some(at) = ready.pop_front() {
            let lane = &mut lanes[at];
            if !lane.flush()? {
                blocked += 1;
                continue;
            }
            if stop || Progress::is(&progress.stop) {
                continue;
            }
            total += fill(lane, &mut source, plan, &mut stuck)? as u64;
            progress.sent.store(total, Ordering::Release);
            ready.push_back(at);
        }
        if Progress::is(&progress.abort) || (blocked == 0 && Progress::is(&progress.stop)) {
            Progress::set(&progress.sent_all);
            return Ok(());
        }
        for at in wait(&epoll, &mut events)? {
            // Edges also come for lanes that never blocked, before their first batch.
            if lanes[at].left < lanes[at].batch.len() {
                blocked -= 1;
                ready.push_back(at);
            }
        }
    }
}

/// Makes a lane's next batch; returns its payload.
fn fill(lane: &mut Lane, source: &mut Source<'_>, plan: Plan, stuck: &mut Option<u64>) -> Result<usize> {
    let frame = plan.payload + ringway::wire::hyper::FRAME_HEADER_LEN;
    let mut payload = 0;
    let mut passed_over = 0;
    while passed_over < lane.sessions.len() {
        let session = lane.sessions.start + lane.turn;
        lane.turn = (lane.turn + 1) % lane.sessions.len();
        if let (0, Some(left)) = (session, stuck.as_mut()) {
            if *left < plan.payload as u64 {
                passed_over += 1;
                continue;
            }
            *left -= plan.payload as u64;
        }
        passed_over = 0;
        lane.frame(session, plan.payload, source)?;
        payload += plan.payload;
        if plan.single || lane.batch.len() + frame > BATCH {
            break;
        }
    }
    Ok(payload)
}

/// The events' data; none after a while, so that flags are looked at.
pub(crate) fn wait(epoll: &Epoll, events: &mut [EpollEvent]) -> Result<Vec<usize>> {
    match epoll.wait(events, EpollTimeout::from(LOOK)) {
        Ok(count) => Ok(events[..count].iter().filter_map(|event| usize::try_from(event.data()).ok()).collect()),
        Err(Errno::EINTR) => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

struct Receive<'a> {
    plan: Plan,
    progress: &'a Progress,
    stall: Stall,
}

impl Receive<'_> {
    fn run(mut self, lanes: &mut [Lane], mut compare: Comparison<'_>) -> Result<()> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let mut is_stuck = self.plan.stuck.is_some();
        for (at, lane) in lanes.iter().enumerate().skip(usize::from(is_stuck)) {
            epoll.add(&lane.socket, EpollEvent::new(EpollFlags::EPOLLIN, at as u64))?;
        }
        let mut buffer = vec![0; READ_MAX];
        let mut events = [EpollEvent::empty(); 64];
        let mut total: u64 = 0;
        loop {
            for at in wait(&epoll, &mut events)? {
                let lane = &mut lanes[at];
                let Some(bytes) = lane.read(&mut buffer)? else { continue };
                lane.scan(bytes, &mut compare, |_, len| total += len as u64)?;
                self.progress.done.store(total, Ordering::Relaxed);
            }
            let stop = Progress::is(&self.progress.stop);
            if is_stuck && stop {
                is_stuck = false;
                epoll.add(&lanes[0].socket, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
            }
            if Progress::is(&self.progress.abort) {
                bail!("the load was given up");
            }
            // The flag first: what was sent does not grow after it.
            if Progress::is(&self.progress.sent_all) && total == self.progress.sent.load(Ordering::Acquire) {
                return Ok(());
            }
            if self.plan.stuck.is_none() || stop {
                let sent = self.progress.sent.load(Ordering::Acquire);
                self.stall.check(total).with_context(|| format!("{total} of {sent} bytes had arrived"))?;
            }
        }
    }
}

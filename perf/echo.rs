//! Round trips: clients send one frame for each session, agents send every byte back, clients wait for the whole
//! payload. Latency is what a client sees.
//!
//! Closed: a session's next frame leaves when the last one is back, so the daemon is as busy as it can be with one
//! frame for each session. Paced: frames fall due at a fixed rate, one session after the other, and a frame's time
//! runs from when it was due or, where the generator itself was late, from when it noticed; a frame whose session
//! still waits for the last one waits too, and its time runs.

use std::collections::VecDeque;
use std::io::Write;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use hdrhistogram::Histogram;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll, ppoll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::time::TimeSpec;

use crate::load::{Lane, Source, wait};
use crate::measure::{Observed, Progress, Stall, Subject, Window, observe};
use crate::pattern::{Comparison, Pattern, READ_MAX};
use crate::rig::{Ends, Rig};

/// Longest latency told apart, nanoseconds.
const LATENCY_MAX: u64 = 600_000_000_000;
/// Longest wait between two looks at the flags.
const LOOK: Duration = Duration::from_millis(10);

/// Round trips of one window.
#[derive(Debug)]
pub(crate) struct Trips {
    pub(crate) observed: Observed,
    /// Nanoseconds.
    pub(crate) latency: Histogram<u64>,
}

/// Who sends round trips, and who sends them back. The clients' lanes are those of the first sessions.
#[derive(Debug)]
pub(crate) struct Sides<'a> {
    pub(crate) subject: &'a Subject,
    pub(crate) agents: &'a mut [Lane],
    pub(crate) clients: &'a mut [Lane],
    pub(crate) seqs: &'a [u64],
    pub(crate) pattern: &'a Pattern,
    pub(crate) ends: &'a mut Ends,
}

/// Runs round trips of `payload` bytes over a window; `rate` paces them, in round trips per second of all sessions.
pub(crate) fn run(rig: &mut Rig, payload: usize, rate: Option<f64>, window: &Window) -> Result<Trips> {
    let Rig { subject, vms, clients, seqs, pattern, to_agent, .. } = rig;
    let sides = Sides { subject, agents: vms, clients, seqs, pattern, ends: to_agent };
    run_between(sides, payload, rate, window)
}

/// As [`run`], between some of a rig's VMs and clients.
pub(crate) fn run_between(sides: Sides<'_>, payload: usize, rate: Option<f64>, window: &Window) -> Result<Trips> {
    let progress = Progress::default();
    let Sides { subject, agents, clients, seqs, pattern, ends } = sides;
    thread::scope(|scope| {
        let echoing = scope.spawn(|| progress.run(|| agents_echo(agents, &progress)));
        // What comes back is what was sent, so it is at the positions of the direction it was sent in.
        let Ends { sent, received } = ends;
        let source = Source { pattern, seqs, positions: sent };
        let compare = Comparison { pattern, positions: received };
        let asking = Asking::new(clients, source, compare, Load { payload, rate });
        let (progress, patience) = (&progress, window.patience);
        let asking = scope.spawn(move || progress.run(|| asking?.run(progress, Stall::new(patience))));
        let observed = observe(subject, window, progress);
        let asked = asking.join().unwrap_or_else(|_| bail!("the clients panicked"));
        Progress::set(&progress.sent_all);
        let echoed = echoing.join().unwrap_or_else(|_| bail!("the agents panicked"));
        echoed?;
        Ok(Trips { latency: asked?, observed: observed? })
    })
}

/// Sends back every byte, whatever it is.
fn agents_echo(lanes: &mut [Lane], progress: &Progress) -> Result<()> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    for (at, lane) in lanes.iter().enumerate() {
        epoll.add(&lane.socket, EpollEvent::new(EpollFlags::EPOLLIN, at as u64))?;
    }
    let mut buffer = vec![0; READ_MAX];
    let mut events = [EpollEvent::empty(); 64];
    while !Progress::is(&progress.sent_all) && !Progress::is(&progress.abort) {
        for at in wait(&epoll, &mut events)? {
            let lane = &mut lanes[at];
            if let Some(bytes) = lane.read(&mut buffer)? {
                write_all(lane, bytes, progress)?;
            }
        }
    }
    Ok(())
}

fn write_all(lane: &mut Lane, mut bytes: &[u8], progress: &Progress) -> Result<()> {
    while !bytes.is_empty() && !Progress::is(&progress.abort) {
        match lane.socket.write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                poll(&mut [PollFd::new(lane.socket.as_fd(), PollFlags::POLLOUT)], PollTimeout::from(100_u8))?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// One session's round trip.
#[derive(Debug, Default)]
struct Trip {
    /// When its time began; `None` when nothing is under way.
    began: Option<Instant>,
    /// Bytes that are back.
    back: usize,
    /// Frames that wait for it, by when their time began.
    due: VecDeque<Instant>,
}

/// When the next frame is due.
#[derive(Debug)]
struct Pace {
    next: Instant,
    step: Duration,
    session: usize,
}

/// What is asked: bytes of payload, and round trips per second where they are paced.
#[derive(Debug, Clone, Copy)]
struct Load {
    payload: usize,
    rate: Option<f64>,
}

/// The clients' side.
#[derive(Debug)]
struct Asking<'a> {
    lanes: &'a mut [Lane],
    /// A floor that does not look at the bytes has one lane for several sessions.
    lane_of: Vec<usize>,
    source: Source<'a>,
    compare: Comparison<'a>,
    payload: usize,
    trips: Vec<Trip>,
    /// Sessions whose next frame may leave.
    startable: VecDeque<usize>,
    pace: Option<Pace>,
    under_way: usize,
    total: u64,
    latency: Histogram<u64>,
}

impl<'a> Asking<'a> {
    fn new(lanes: &'a mut [Lane], source: Source<'a>, compare: Comparison<'a>, load: Load) -> Result<Asking<'a>> {
        let now = Instant::now();
        let numbered = lanes.iter().enumerate();
        let lane_of: Vec<_> = numbered.flat_map(|(at, lane)| lane.sessions.clone().map(move |_| at)).collect();
        let sessions = lane_of.len();
        let step = load.rate.map(|rate| Duration::from_secs_f64(1.0 / rate.max(1.0)));
        let pace = step.map(|step| Pace { next: now, step, session: 0 });
        let due = || if pace.is_none() { VecDeque::from([now]) } else { VecDeque::new() };
        let trips = (0..sessions).map(|_| Trip { due: due(), ..Trip::default() }).collect();
        Ok(Asking {
            lanes,
            lane_of,
            source,
            compare,
            payload: load.payload,
            trips,
            startable: (0..sessions).collect(),
            pace,
            under_way: 0,
            total: 0,
            latency: Histogram::new_with_bounds(1, LATENCY_MAX, 3)?,
        })
    }

    fn run(mut self, progress: &Progress, mut stall: Stall) -> Result<Histogram<u64>> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        for (at, lane) in self.lanes.iter().enumerate() {
            epoll.add(&lane.socket, EpollEvent::new(EpollFlags::EPOLLIN, at as u64))?;
        }
        let mut buffer = vec![0; READ_MAX];
        let mut events = [EpollEvent::empty(); 64];
        loop {
            let stop = Progress::is(&progress.stop);
            if !stop {
                self.fall_due();
                self.start()?;
            } else if self.under_way == 0 {
                return Ok(self.latency);
            }
            if Progress::is(&progress.abort) {
                bail!("the load was given up");
            }
            if self.under_way > 0 {
                stall.check(self.total)?;
            }
            for at in pause(&epoll, self.pace.as_ref(), &mut events)? {
                let measuring = Progress::is(&progress.measuring);
                self.receive(at, &mut buffer, measuring)?;
            }
            progress.done.store(self.total, Ordering::Relaxed);
        }
    }

    /// Gives sessions what has fallen due. That the generator may be late is not the daemon's time.
    fn fall_due(&mut self) {
        let Some(pace) = &mut self.pace else { return };
        let now = Instant::now();
        while pace.next <= now {
            let trip = &mut self.trips[pace.session];
            trip.due.push_back(now);
            if trip.began.is_none() {
                self.startable.push_back(pace.session);
            }
            pace.session = (pace.session + 1) % self.trips.len();
            pace.next += pace.step;
        }
    }

    /// Sends what may leave.
    fn start(&mut self) -> Result<()> {
        while let Some(session) = self.startable.pop_front() {
            let trip = &mut self.trips[session];
            if trip.began.is_some() {
                continue;
            }
            let Some(due) = trip.due.pop_front() else { continue };
            (trip.began, trip.back) = (Some(due), 0);
            let lane = &mut self.lanes[self.lane_of[session]];
            lane.frame(session, self.payload, &mut self.source)?;
            // One frame for each session never fills a socket.
            if !lane.flush()? {
                bail!("the daemon does not read");
            }
            self.under_way += 1;
        }
        Ok(())
    }

    fn receive(&mut self, at: usize, buffer: &mut [u8], measuring: bool) -> Result<()> {
        let Asking { lanes, compare, trips, startable, latency, .. } = self;
        let lane = &mut lanes[at];
        let Some(bytes) = lane.read(buffer)? else { return Ok(()) };
        let (wanted, is_closed) = (self.payload, self.pace.is_none());
        let (under_way, total) = (&mut self.under_way, &mut self.total);
        lane.scan(bytes, compare, |session, len| {
            let trip = &mut trips[session];
            trip.back += len;
            let Some(began) = trip.began.filter(|_| trip.back >= wanted) else { return };
            let now = Instant::now();
            if measuring {
                latency.saturating_record(u64::try_from((now - began).as_nanos()).unwrap_or(u64::MAX));
            }
            trip.began = None;
            *under_way -= 1;
            *total += 1;
            if is_closed {
                trip.due.push_back(now);
            }
            startable.push_back(session);
        })
    }
}

/// Waits for something to read, or for the next frame to fall due.
fn pause(epoll: &Epoll, pace: Option<&Pace>, events: &mut [EpollEvent]) -> Result<Vec<usize>> {
    if let Some(pace) = pace {
        let left = pace.next.saturating_duration_since(Instant::now()).min(LOOK);
        let mut polled = [PollFd::new(epoll.0.as_fd(), PollFlags::POLLIN)];
        match ppoll(&mut polled, Some(TimeSpec::from_duration(left)), None) {
            Ok(0) | Err(nix::errno::Errno::EINTR) => return Ok(Vec::new()),
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
    }
    wait(epoll, events)
}

//! Peers that do what they should not, one kind after the other, and what that does to everybody else.
//!
//! The others are a rig's VMs and sessions, which make round trips as fast as they can: first alone, then beside each
//! hostile peer. That one has a VM and connections of its own (always with protocol 1), and its threads give way to
//! the rest of the generator: the round trips are to wait for the daemon. Last, one client says hello again and again,
//! first alone and then beside [`CONNECTIONS`] hostile connections. The asymmetry to know: what goes wrong for a
//! hostile peer is what it asked for, and no failure.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use ringway::client::Client;
use ringway::wire::hyper::{Code, Message};

use crate::echo::{self, Trips};
use crate::load::give_way;
use crate::measure::Window;
use crate::report::{Better, Sample};
use crate::rig::Rig;
use crate::workloads::per_second;

/// Bytes of payload in a hostile frame.
const FRAME: usize = 1024;
/// Bytes of a hostile batch.
const BATCH: usize = 64 * 1024;
/// Sequences no session has, in turn.
const SEQUENCES: u64 = 5_000;
/// Connections beside the client that says hello.
const CONNECTIONS: usize = 64;
/// Milliseconds the daemon has to do something for a hostile peer.
const PATIENCE: u16 = 5_000;
/// Between two looks at the flag of whoever waits or is slow.
const LOOK: Duration = Duration::from_millis(10);

/// What a hostile peer does until it is told to stop.
type Act = fn(&Stage<'_>) -> Result<()>;

/// The kinds: what each does, and how the others' rate and latency beside it are called.
const KINDS: [(Act, &str, &str); 13] = [
    (guest_floods, "trips/s, guest floods", "p99 µs, guest floods"),
    (guest_has_many_sequences, "trips/s, guest of many sequences", "p99 µs, guest of many sequences"),
    (guest_never_reads, "trips/s, guest never reads", "p99 µs, guest never reads"),
    (guest_reads_slowly, "trips/s, guest reads slowly", "p99 µs, guest reads slowly"),
    (guest_sends_garbage, "trips/s, guest sends garbage", "p99 µs, guest sends garbage"),
    (guest_dies, "trips/s, guest dies", "p99 µs, guest dies"),
    (client_floods, "trips/s, client floods", "p99 µs, client floods"),
    (client_has_many_sessions, "trips/s, client of many sessions", "p99 µs, client of many sessions"),
    (client_never_reads, "trips/s, client never reads", "p99 µs, client never reads"),
    (client_reads_slowly, "trips/s, client reads slowly", "p99 µs, client reads slowly"),
    (client_sends_garbage, "trips/s, client sends garbage", "p99 µs, client sends garbage"),
    (session_sends_garbage, "trips/s, session sends garbage", "p99 µs, session sends garbage"),
    (client_dies, "trips/s, client dies", "p99 µs, client dies"),
];

/// Where a hostile peer is.
#[derive(Debug, Clone, Copy)]
struct Stage<'a> {
    socket: &'a Path,
    dir: &'a Path,
    over: &'a AtomicBool,
}

/// Takes a sample.
pub(crate) fn run(rig: &mut Rig, payload: usize, window: &Window) -> Result<Sample> {
    let socket = rig.socket().context("floors have no hostile peers")?;
    let dir = tempfile::Builder::new().prefix("ringway-hostile-").tempdir()?;
    let over = AtomicBool::new(false);
    let stage = Stage { socket: &socket, dir: dir.path(), over: &over };
    let alone = echo::run(rig, payload, None, window)?;
    let mut sample = vec![("trips/s", Better::Neither, rate(&alone)), ("p99 µs", Better::Neither, p99(&alone.latency))];
    for (act, rate_name, p99_name) in KINDS {
        let beside = beside(stage, &[act], || echo::run(rig, payload, None, window))?;
        sample.push((rate_name, Better::More, rate(&beside)));
        sample.push((p99_name, Better::Less, p99(&beside.latency)));
    }
    let alone = hellos(stage, window)?;
    let acts: [Act; 4] = [half_a_request, byte_by_byte, unread_answers, many_send_garbage];
    let crowded = beside(stage, &acts, || hellos(stage, window))?;
    sample.push(("hello p99 µs", Better::Neither, p99(&alone)));
    sample.push(("hello p99 µs, 64 hostile", Better::Less, p99(&crowded)));
    Ok(sample)
}

fn rate(trips: &Trips) -> f64 {
    per_second(trips.observed.units, &trips.observed)
}

fn p99(latency: &Histogram<u64>) -> f64 {
    latency.value_at_quantile(0.99) as f64 / 1e3
}

/// Does something while others act.
fn beside<T>(stage: Stage<'_>, acts: &[Act], work: impl FnOnce() -> Result<T>) -> Result<T> {
    stage.over.store(false, Ordering::Release);
    thread::scope(|scope| {
        for act in acts {
            scope.spawn(move || {
                if give_way().is_err() {
                    return;
                }
                while !stage.is_over() {
                    if act(&stage).is_err() {
                        thread::sleep(LOOK);
                    }
                }
            });
        }
        let done = work();
        stage.over.store(true, Ordering::Release);
        done
    })
}

/// How long hello takes, one after the other, each followed by bye.
fn hellos(stage: Stage<'_>, window: &Window) -> Result<Histogram<u64>> {
    let mut latency = Histogram::new_with_bounds(1, 600_000_000_000, 3)?;
    let mut ports = Ports::open(stage.dir, "hello")?;
    let mut client = Client::connect(stage.socket)?;
    let begin = Instant::now();
    while begin.elapsed() < window.warmup + window.measured {
        let (took, _guest) = ports.register(&mut client)?;
        if begin.elapsed() >= window.warmup {
            latency.saturating_record(u64::try_from(took.as_nanos())?);
        }
        client.bye("hello")?;
    }
    ensure!(!latency.is_empty(), "no hello was answered in the measured time");
    Ok(latency)
}

impl Stage<'_> {
    fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    fn connect(&self) -> Result<UnixStream> {
        let stream = UnixStream::connect(self.socket)?;
        stream.set_read_timeout(Some(Duration::from_millis(PATIENCE.into())))?;
        stream.set_write_timeout(Some(Duration::from_millis(PATIENCE.into())))?;
        Ok(stream)
    }

    /// A VM of its own with one session. An earlier one of its name gives it up.
    fn boot(&self) -> Result<Bad> {
        let mut client = Client::connect(self.socket)?;
        let _ = client.bye("bad");
        let (_, guest) = Ports::open(self.dir, "bad")?.register(&mut client)?;
        let (seq, session) = client.allocate_io(2)?;
        let bad = Bad { client, guest, seq: seq.0, session: session.into() };
        bad.guest.stream.set_nonblocking(true)?;
        bad.session.set_nonblocking(true)?;
        Ok(bad)
    }
}

/// A VM's listening sockets.
#[derive(Debug)]
struct Ports {
    control: UnixListener,
    stream: UnixListener,
    id: String,
    paths: [PathBuf; 2],
}

impl Ports {
    fn open(dir: &Path, id: &str) -> Result<Ports> {
        let paths = [dir.join(format!("{id}.ctl")), dir.join(format!("{id}.io"))];
        for path in &paths {
            let _ = std::fs::remove_file(path);
        }
        let (control, stream) = (UnixListener::bind(&paths[0])?, UnixListener::bind(&paths[1])?);
        Ok(Ports { control, stream, id: id.to_owned(), paths })
    }

    /// Registers a VM there, whose agent says READY at once. Returns how long that took.
    fn register(&mut self, client: &mut Client) -> Result<(Duration, Guest)> {
        let Ports { control, stream, id, paths: [ctl, io] } = self;
        thread::scope(|scope| {
            let accepting = scope.spawn(|| -> Result<Guest> {
                let mut control = accept(control)?;
                control.write_all(&Message::new(Code::Ready, []).encode())?;
                Ok(Guest { _control: control, stream: accept(stream)? })
            });
            let begin = Instant::now();
            let said = client.hello(id, ctl, io);
            let took = begin.elapsed();
            let guest = accepting.join().map_err(|_| anyhow::anyhow!("an agent panicked"))?;
            said?;
            Ok((took, guest?))
        })
    }
}

fn accept(listener: &UnixListener) -> Result<UnixStream> {
    let mut polled = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    ensure!(poll(&mut polled, PollTimeout::from(PATIENCE))? > 0, "the daemon does not connect");
    Ok(listener.accept()?.0)
}

/// The agent's ends.
#[derive(Debug)]
struct Guest {
    _control: UnixStream,
    stream: UnixStream,
}

/// A hostile VM and its only client.
#[derive(Debug)]
struct Bad {
    client: Client,
    guest: Guest,
    seq: u64,
    session: UnixStream,
}

fn frame(seq: u64) -> Vec<u8> {
    let len = u32::try_from(FRAME + 12).unwrap_or_default();
    [&seq.to_be_bytes()[..], &len.to_be_bytes(), &[b'x'; FRAME]].concat()
}

fn batch(seqs: impl Iterator<Item = u64>) -> Vec<u8> {
    seqs.take(BATCH / FRAME).flat_map(frame).collect()
}

/// Writes the same whole frames again and again, and does `meanwhile` whenever the socket takes no more.
fn flood(stage: &Stage<'_>, mut to: &UnixStream, bytes: &[u8], mut meanwhile: impl FnMut()) -> Result<()> {
    let mut left = bytes;
    while !stage.is_over() {
        match to.write(left) {
            Ok(count) => left = &left[count..],
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                meanwhile();
                poll(&mut [PollFd::new(to.as_fd(), PollFlags::POLLOUT)], PollTimeout::from(1_u8))?;
            }
            Err(error) => return Err(error.into()),
        }
        if left.is_empty() {
            left = bytes;
        }
    }
    Ok(())
}

/// Floods one socket while another thread empties the other end.
fn flood_through(stage: &Stage<'_>, to: &UnixStream, bytes: &[u8], mut from: &UnixStream) -> Result<()> {
    thread::scope(|scope| {
        scope.spawn(move || {
            let _ = give_way();
            let mut buffer = vec![0; BATCH];
            while !stage.is_over() {
                let _ = poll(&mut [PollFd::new(from.as_fd(), PollFlags::POLLIN)], PollTimeout::from(10_u8));
                while from.read(&mut buffer).is_ok_and(|count| count > 0) && !stage.is_over() {}
            }
        });
        flood(stage, to, bytes, || ())
    })
}

/// Takes a byte from a socket once a second.
fn one_byte_a_second(mut from: &UnixStream) -> impl FnMut() {
    let mut last = Instant::now();
    move || {
        if last.elapsed() >= Duration::from_secs(1) {
            last = Instant::now();
            let _ = from.read(&mut [0]);
        }
    }
}

fn guest_floods(stage: &Stage<'_>) -> Result<()> {
    let bad = stage.boot()?;
    flood_through(stage, &bad.guest.stream, &batch(std::iter::repeat(bad.seq)), &bad.session)
}

fn guest_has_many_sequences(stage: &Stage<'_>) -> Result<()> {
    let bad = stage.boot()?;
    let seqs = (0..SEQUENCES).map(|seq| (1 << 40) + seq);
    let bytes: Vec<u8> = seqs.flat_map(|seq| frame(seq)[..12].to_vec()).collect();
    let empty: Vec<u8> = bytes.chunks(12).flat_map(|head| [&head[..8], &12_u32.to_be_bytes()].concat()).collect();
    flood(stage, &bad.guest.stream, &empty, || ())
}

fn guest_never_reads(stage: &Stage<'_>) -> Result<()> {
    let bad = stage.boot()?;
    flood(stage, &bad.session, &batch(std::iter::repeat(bad.seq)), || ())
}

fn guest_reads_slowly(stage: &Stage<'_>) -> Result<()> {
    let bad = stage.boot()?;
    flood(stage, &bad.session, &batch(std::iter::repeat(bad.seq)), one_byte_a_second(&bad.guest.stream))
}

fn guest_sends_garbage(stage: &Stage<'_>) -> Result<()> {
    let mut bad = stage.boot()?;
    bad.guest.stream.write_all(&[0xff; 64])?;
    ends(&bad.session)
}

fn guest_dies(stage: &Stage<'_>) -> Result<()> {
    for cut in 0..FRAME + 12 {
        if stage.is_over() {
            break;
        }
        let mut bad = stage.boot()?;
        bad.guest.stream.write_all(&frame(bad.seq)[..cut])?;
        drop(bad.guest);
        ends(&bad.session)?;
        bad.client.bye("bad")?;
    }
    Ok(())
}

fn client_floods(stage: &Stage<'_>) -> Result<()> {
    let bad = stage.boot()?;
    flood_through(stage, &bad.session, &batch(std::iter::repeat(bad.seq)), &bad.guest.stream)
}

fn client_has_many_sessions(stage: &Stage<'_>) -> Result<()> {
    let mut bad = stage.boot()?;
    let mut held = std::collections::VecDeque::new();
    while !stage.is_over() {
        held.push_back(bad.client.allocate_io(2)?);
        if held.len() > 1_000 {
            held.pop_front();
        }
    }
    Ok(())
}

fn client_never_reads(stage: &Stage<'_>) -> Result<()> {
    let bad = stage.boot()?;
    flood(stage, &bad.guest.stream, &batch(std::iter::repeat(bad.seq)), || ())
}

fn client_reads_slowly(stage: &Stage<'_>) -> Result<()> {
    let bad = stage.boot()?;
    flood(stage, &bad.guest.stream, &batch(std::iter::repeat(bad.seq)), one_byte_a_second(&bad.session))
}

fn client_sends_garbage(stage: &Stage<'_>) -> Result<()> {
    while !stage.is_over() {
        let mut client = stage.connect()?;
        client.write_all(&[0xff; 64])?;
        ends(&client)?;
    }
    Ok(())
}

fn session_sends_garbage(stage: &Stage<'_>) -> Result<()> {
    let mut bad = stage.boot()?;
    while !stage.is_over() {
        let (_, session) = bad.client.allocate_io(1)?;
        let mut session = UnixStream::from(session);
        session.write_all(&[0xff; 64])?;
        ends(&session)?;
    }
    Ok(())
}

fn client_dies(stage: &Stage<'_>) -> Result<()> {
    let request = request();
    for cut in (0..request.len()).cycle() {
        if stage.is_over() {
            break;
        }
        stage.connect()?.write_all(&request[..cut])?;
    }
    Ok(())
}

/// A request that fails and costs an answer.
fn request() -> Vec<u8> {
    let text = br#"{"id":"attach","data":{"containerId":"nobody"}}"#;
    [&u32::try_from(text.len()).unwrap_or_default().to_be_bytes()[..], &[0; 4], text].concat()
}

/// Waits until the daemon has closed a socket, whatever comes before.
fn ends(mut socket: &UnixStream) -> Result<()> {
    let mut buffer = [0; 4096];
    loop {
        let mut polled = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        ensure!(poll(&mut polled, PollTimeout::from(PATIENCE))? > 0, "the daemon does not end a hostile peer");
        if socket.read(&mut buffer)? == 0 {
            return Ok(());
        }
    }
}

/// A quarter of the hostile connections.
fn quarter(stage: &Stage<'_>) -> Result<Vec<UnixStream>> {
    (0..CONNECTIONS / 4).map(|_| stage.connect()).collect()
}

fn half_a_request(stage: &Stage<'_>) -> Result<()> {
    let mut clients = quarter(stage)?;
    let request = request();
    clients.iter_mut().try_for_each(|client| client.write_all(&request[..request.len() / 2]))?;
    while !stage.is_over() {
        thread::sleep(LOOK);
    }
    Ok(())
}

fn byte_by_byte(stage: &Stage<'_>) -> Result<()> {
    let mut clients = quarter(stage)?;
    for byte in request().iter().cycle() {
        for client in &mut clients {
            client.write_all(&[*byte])?;
            let _ = client.set_nonblocking(true);
            let _ = client.read(&mut [0; 4096]);
        }
        if stage.is_over() {
            break;
        }
        thread::sleep(LOOK);
    }
    Ok(())
}

fn unread_answers(stage: &Stage<'_>) -> Result<()> {
    let clients = quarter(stage)?;
    let requests = request().repeat(64);
    for client in &clients {
        client.set_nonblocking(true)?;
    }
    while !stage.is_over() {
        for mut client in &clients {
            let _ = client.write(&requests);
        }
        thread::sleep(LOOK);
    }
    Ok(())
}

fn many_send_garbage(stage: &Stage<'_>) -> Result<()> {
    while !stage.is_over() {
        let mut clients = quarter(stage)?;
        clients.iter_mut().try_for_each(|client| client.write_all(&[0xff; 64]))?;
        clients.iter().try_for_each(ends)?;
    }
    Ok(())
}

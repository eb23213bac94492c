//! What the same work costs without a daemon: threads of this process that copy between the same sockets, whose CPU
//! time is measured alone and whose system calls are counted.
//!
//! `floor-epoll` does what a daemon must do and nothing else: it finds the frames, gathers them for each session, and
//! writes once for each session and read. `floor-copy` does not look at the bytes at all, so that all sessions of a
//! VM share one client socket. Neither has a limit, a slow reader in mind, or anything to say when a peer is wrong.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use ringway::wire::hyper::{FRAME_HEADER_LEN, FrameHeader};

use crate::measure::Subject;
use crate::pattern::Directory;

/// Bytes read at once.
const READ: usize = 64 * 1024;
/// Longest frame.
const FRAME_MAX: u32 = 1024 * 1024;

/// Which floor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Frames are found and gathered.
    Epoll,
    /// Bytes are copied.
    Copy,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Epoll => "floor-epoll",
            Kind::Copy => "floor-copy",
        }
    }
}

/// One VM's sockets, the floor's ends.
#[derive(Debug)]
pub(crate) struct Wiring {
    pub(crate) vm: UnixStream,
    /// One for each session, in order; for `Kind::Copy` one for all.
    pub(crate) clients: Vec<UnixStream>,
    /// Number of the first session.
    pub(crate) first: usize,
}

/// A floor that runs; it ends when the sockets of its VMs close.
#[derive(Debug)]
pub(crate) struct Floor {
    pub(crate) subject: Subject,
    /// Joined by nobody: it ends after the rig, whose sockets keep it alive.
    _thread: JoinHandle<()>,
}

impl Floor {
    pub(crate) fn start(kind: Kind, wirings: Vec<Wiring>, directory: Directory) -> Result<Floor> {
        let syscalls = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&syscalls);
        let (telling, told) = mpsc::channel();
        let thread = thread::Builder::new().name(kind.name().into()).spawn(move || {
            let _ = telling.send(nix::unistd::gettid().as_raw());
            // It ends with an error when a socket closes: the end of its rig.
            let _ = Copier::new(kind, wirings, directory, counter).and_then(Copier::run);
        })?;
        let tid = told.recv().context("a floor did not start")?;
        Ok(Floor { subject: Subject::Thread(tid, syscalls), _thread: thread })
    }
}

#[derive(Debug)]
struct Copier {
    kind: Kind,
    epoll: Epoll,
    links: Vec<Link>,
    directory: Directory,
    buffer: Vec<u8>,
    calls: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Link {
    vm: UnixStream,
    first: usize,
    clients: Vec<Client>,
    header: Vec<u8>,
    /// Whose frame the next bytes belong to, and how many of them.
    inside: (usize, usize),
    /// Clients with something gathered.
    touched: Vec<usize>,
}

#[derive(Debug)]
struct Client {
    socket: UnixStream,
    gathered: Vec<u8>,
    /// The frame to the agent that has not arrived whole.
    partial: Vec<u8>,
}

impl Copier {
    fn new(kind: Kind, wirings: Vec<Wiring>, directory: Directory, calls: Arc<AtomicU64>) -> Result<Copier> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let mut links = Vec::new();
        for (at, wiring) in wirings.into_iter().enumerate() {
            // The event's number is the link and, one up, the client; 0 there is the VM.
            let number = (at as u64) << 32;
            wiring.vm.set_nonblocking(true)?;
            epoll.add(&wiring.vm, EpollEvent::new(EpollFlags::EPOLLIN, number))?;
            let mut clients = Vec::new();
            for (client, socket) in wiring.clients.into_iter().enumerate() {
                socket.set_nonblocking(true)?;
                epoll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, number + 1 + client as u64))?;
                clients.push(Client { socket, gathered: Vec::new(), partial: Vec::new() });
            }
            let (first, header, touched) = (wiring.first, Vec::new(), Vec::new());
            links.push(Link { vm: wiring.vm, first, clients, header, inside: (0, 0), touched });
        }
        Ok(Copier { kind, epoll, links, directory, buffer: vec![0; READ], calls })
    }

    fn run(mut self) -> Result<()> {
        let mut events = [EpollEvent::empty(); 64];
        loop {
            self.count();
            let count = self.epoll.wait(&mut events, EpollTimeout::NONE)?;
            for event in &events[..count] {
                let at = usize::try_from(event.data() >> 32)?;
                match usize::try_from(event.data() & 0xffff_ffff)?.checked_sub(1) {
                    None => self.serve_vm(at)?,
                    Some(client) => self.serve_client(at, client)?,
                }
            }
        }
    }

    fn count(&self) {
        self.calls.fetch_add(1, Ordering::Relaxed);
    }

    fn serve_vm(&mut self, at: usize) -> Result<()> {
        self.count();
        let link = &mut self.links[at];
        let read = read(&mut link.vm, &mut self.buffer)?;
        if self.kind == Kind::Copy {
            return write(&mut link.clients[0].socket, &self.buffer[..read], &self.calls);
        }
        link.gather(&self.buffer[..read], &self.directory)?;
        for client in link.touched.drain(..) {
            let client = &mut link.clients[client];
            write(&mut client.socket, &client.gathered, &self.calls)?;
            client.gathered.clear();
        }
        Ok(())
    }

    fn serve_client(&mut self, at: usize, client: usize) -> Result<()> {
        self.count();
        let link = &mut self.links[at];
        let client = &mut link.clients[client];
        let read = read(&mut client.socket, &mut self.buffer)?;
        let bytes = &self.buffer[..read];
        if self.kind == Kind::Copy {
            return write(&mut link.vm, bytes, &self.calls);
        }
        if client.partial.is_empty() {
            let whole = whole_frames(bytes)?;
            client.partial.extend_from_slice(&bytes[whole..]);
            return write(&mut link.vm, &bytes[..whole], &self.calls);
        }
        client.partial.extend_from_slice(bytes);
        let whole = whole_frames(&client.partial)?;
        write(&mut link.vm, &client.partial[..whole], &self.calls)?;
        client.partial.drain(..whole);
        Ok(())
    }
}

impl Link {
    /// Gives each session its bytes.
    fn gather(&mut self, mut bytes: &[u8], directory: &Directory) -> Result<()> {
        while !bytes.is_empty() {
            if self.inside.1 == 0 {
                let want = (FRAME_HEADER_LEN - self.header.len()).min(bytes.len());
                self.header.extend_from_slice(&bytes[..want]);
                bytes = &bytes[want..];
                let Ok(header) = <[u8; FRAME_HEADER_LEN]>::try_from(self.header.as_slice()) else { return Ok(()) };
                let frame = FrameHeader::decode(header, FRAME_MAX)?;
                let session = directory.session(frame.seq.0).context("a sequence nobody has")?;
                self.inside = (session - self.first, usize::try_from(frame.payload_len())?);
                self.header.clear();
                self.give(&header);
                continue;
            }
            let (piece, rest) = bytes.split_at(self.inside.1.min(bytes.len()));
            self.give(piece);
            (self.inside.1, bytes) = (self.inside.1 - piece.len(), rest);
        }
        Ok(())
    }

    fn give(&mut self, piece: &[u8]) {
        let client = &mut self.clients[self.inside.0];
        if client.gathered.is_empty() {
            self.touched.push(self.inside.0);
        }
        client.gathered.extend_from_slice(piece);
    }
}

/// Length of the whole frames at the start.
fn whole_frames(bytes: &[u8]) -> Result<usize> {
    let mut at = 0;
    while let Some((header, _)) = bytes[at..].split_first_chunk::<FRAME_HEADER_LEN>() {
        let len = usize::try_from(FrameHeader::decode(*header, FRAME_MAX)?.len)?;
        if bytes.len() - at < len {
            break;
        }
        at += len;
    }
    Ok(at)
}

fn read(socket: &mut UnixStream, buffer: &mut [u8]) -> Result<usize> {
    let read = socket.read(buffer)?;
    anyhow::ensure!(read > 0, "the end");
    Ok(read)
}

/// Writes everything, waiting for room where there is none.
fn write(socket: &mut UnixStream, mut bytes: &[u8], calls: &AtomicU64) -> Result<()> {
    while !bytes.is_empty() {
        calls.fetch_add(1, Ordering::Relaxed);
        match socket.write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                calls.fetch_add(1, Ordering::Relaxed);
                poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)], PollTimeout::NONE)?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

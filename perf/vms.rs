//! Mock VMs: listeners for their two channels, and one thread that plays all their agents on the control channels.
//!
//! An agent says READY to each connection and ACK to every command, each in one write. Stream channels are handed to
//! whoever wants them. What a command says about sequences is told on, since protocol 2 tells clients none.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use ringway::limits::CONTROL_MESSAGE_MAX;
use ringway::wire::hyper::{Code, ExecCmd, Message, MessageDecoder};

/// Time a daemon has to connect to a VM, or to forward a command.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often the thread looks whether it may end.
const LOOK: u16 = 50;

/// What an agent saw.
#[derive(Debug)]
pub(crate) enum Seen {
    /// A connection to VM number `.0`'s stream channel.
    Stream(usize, UnixStream),
    /// A process was started: its first argument, and its sequence.
    Started(String, u64),
}

/// All VMs of one daemon.
#[derive(Debug)]
pub(crate) struct Vms {
    dir: PathBuf,
    seen: Mutex<Receiver<Seen>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Vms {
    /// `count` VMs with their sockets in `dir`. VMs that are registered once give up their listeners then.
    pub(crate) fn start(dir: &Path, count: usize, once: bool) -> Result<Vms> {
        let (seeing, seen) = mpsc::channel();
        let stop = Arc::new(AtomicBool::new(false));
        let mut agents =
            Agents { epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?, peers: Vec::new(), seeing, once };
        for vm in 0..count {
            agents.add(Peer::ControlListener(UnixListener::bind(dir.join(format!("{vm}.ctl")))?))?;
            agents.add(Peer::StreamListener(vm, UnixListener::bind(dir.join(format!("{vm}.io")))?))?;
        }
        let flag = Arc::clone(&stop);
        let thread = Some(thread::Builder::new().name("agents".into()).spawn(move || agents.run(&flag))?);
        Ok(Vms { dir: dir.to_owned(), seen: Mutex::new(seen), stop, thread })
    }

    pub(crate) fn control_path(&self, vm: usize) -> PathBuf {
        self.dir.join(format!("{vm}.ctl"))
    }

    pub(crate) fn stream_path(&self, vm: usize) -> PathBuf {
        self.dir.join(format!("{vm}.io"))
    }

    /// The next thing an agent saw.
    pub(crate) fn next_seen(&self) -> Result<Seen> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.recv_timeout(PATIENCE).context("a VM waited for the daemon in vain")
    }

    /// The stream channel of VM `vm`, which the daemon must connect to now.
    pub(crate) fn stream(&self, vm: usize) -> Result<UnixStream> {
        match self.next_seen()? {
            Seen::Stream(number, stream) if number == vm => Ok(stream),
            other => bail!("{other:?} instead of a connection to VM {vm}"),
        }
    }

    /// The sequence of the process whose first argument is `name`, which the daemon has just been told to start.
    pub(crate) fn started(&self, name: &str) -> Result<u64> {
        match self.next_seen()? {
            Seen::Started(started, seq) if started == name => Ok(seq),
            other => bail!("{other:?} instead of the start of {name}"),
        }
    }

    /// Everything seen and not asked for.
    pub(crate) fn forget(&self) {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).try_iter().for_each(drop);
    }
}

impl Drop for Vms {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[derive(Debug)]
enum Peer {
    ControlListener(UnixListener),
    StreamListener(usize, UnixListener),
    Control(UnixStream, MessageDecoder),
}

#[derive(Debug)]
struct Agents {
    epoll: Epoll,
    peers: Vec<Option<Peer>>,
    seeing: Sender<Seen>,
    once: bool,
}

impl Agents {
    fn add(&mut self, peer: Peer) -> Result<()> {
        let at = self.peers.iter().rposition(Option::is_none).unwrap_or(self.peers.len());
        let event = EpollEvent::new(EpollFlags::EPOLLIN, at as u64);
        match &peer {
            Peer::ControlListener(listener) | Peer::StreamListener(_, listener) => self.epoll.add(listener, event)?,
            Peer::Control(stream, _) => self.epoll.add(stream, event)?,
        }
        if at == self.peers.len() {
            self.peers.push(None);
        }
        self.peers[at] = Some(peer);
        Ok(())
    }

    fn run(mut self, stop: &AtomicBool) -> Result<()> {
        let mut events = [EpollEvent::empty(); 64];
        while !stop.load(Ordering::Acquire) {
            let count = match self.epoll.wait(&mut events, EpollTimeout::from(LOOK)) {
                Ok(count) => count,
                Err(nix::errno::Errno::EINTR) => 0,
                Err(error) => return Err(error.into()),
            };
            for event in &events[..count] {
                self.serve(usize::try_from(event.data())?)?;
            }
        }
        Ok(())
    }

    /// Serves what is ready at a place. The peer goes back there unless it has ended.
    fn serve(&mut self, at: usize) -> Result<()> {
        let Some(mut peer) = self.peers.get_mut(at).and_then(Option::take) else { return Ok(()) };
        let stays = match &mut peer {
            Peer::ControlListener(listener) => {
                let (mut stream, _) = listener.accept()?;
                let is_up = stream.write_all(&Message::new(Code::Ready, []).encode()).is_ok();
                if is_up {
                    // Its own place is free for now, and must not be taken.
                    let again = std::mem::replace(&mut peer, Peer::Control(stream, MessageDecoder::new(CONTROL_MAX)));
                    if self.once {
                        drop(again);
                        return self.add(peer);
                    }
                    self.peers[at] = Some(again);
                    return self.add(peer);
                }
                true
            }
            Peer::StreamListener(vm, listener) => {
                let (stream, _) = listener.accept()?;
                let _ = self.seeing.send(Seen::Stream(*vm, stream));
                !self.once
            }
            Peer::Control(stream, decoder) => obey(stream, decoder, &self.seeing).unwrap_or(false),
        };
        if stays {
            self.peers[at] = Some(peer);
        }
        Ok(())
    }
}

/// Longest command taken.
const CONTROL_MAX: usize = 2 * CONTROL_MESSAGE_MAX;

/// Reads what is there and answers each command. False at the end.
fn obey(stream: &mut UnixStream, decoder: &mut MessageDecoder, seeing: &Sender<Seen>) -> Result<bool> {
    let mut buffer = [0; 16 * 1024];
    let read = stream.read(&mut buffer)?;
    decoder.push(&buffer[..read]);
    while let Some(message) = decoder.next_message()? {
        if message.code == Code::ExecCmd as u32 {
            let command: ExecCmd = serde_json::from_slice(&message.payload)?;
            let name = command.process.args.into_iter().next().unwrap_or_default();
            let _ = seeing.send(Seen::Started(name, command.process.stdio));
        }
        stream.write_all(&Message::new(Code::Ack, []).encode())?;
    }
    Ok(read > 0)
}

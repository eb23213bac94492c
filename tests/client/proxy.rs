//! A small proxy for tests: the server's side of protocol 1, with processes that are functions.
//!
//! Owns a socket in a temporary directory and threads that end with it; knows one VM at a time by name. The asymmetry
//! to know: what it checks about its clients it asserts, so a wrong request fails the test that made it.

use std::collections::{HashMap, HashSet};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use ringway::os::fds;
use ringway::wire::cc1;
use ringway::wire::hyper::{ExecCmd, FrameHeader, Process, SignalProcess, StreamSeq};

/// Longest frame the mock takes from a client: what agents take.
const FRAME_MAX: u32 = 4096;

/// A running mock.
pub(crate) struct Proxy {
    dir: tempfile::TempDir,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    vms: HashSet<String>,
    next: u64,
    sessions: HashMap<u64, UnixStream>,
    signals: HashMap<String, Sender<i32>>,
    commands: Vec<(String, String)>,
}

impl Proxy {
    /// A proxy that knows the VM `vm`.
    pub(crate) fn start() -> Proxy {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("proxy.sock")).unwrap();
        let state = State { next: 1, vms: HashSet::from(["vm".to_owned()]), ..State::default() };
        let state = Arc::new(Mutex::new(state));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for socket in listener.incoming() {
                let (socket, state) = (socket.unwrap(), Arc::clone(&shared));
                std::thread::spawn(move || Connection { socket, state, vm: None }.serve());
            }
        });
        Proxy { dir, state }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("proxy.sock")
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Hyperstart commands so far: name and JSON.
    pub(crate) fn commands(&self) -> Vec<(String, String)> {
        self.state.lock().unwrap().commands.clone()
    }
}

struct Connection {
    socket: UnixStream,
    state: Arc<Mutex<State>>,
    vm: Option<String>,
}

impl Connection {
    fn serve(mut self) {
        let mut decoder = cc1::Decoder::new(1 << 20);
        let mut buffer = [0; 4096];
        loop {
            let n = self.socket.read(&mut buffer).unwrap_or(0);
            if n == 0 {
                return;
            }
            decoder.push(&buffer[..n]);
            while let Some(request) = decoder.next_message::<cc1::Request>().unwrap() {
                if request.id == "hang-up" || !self.answer(&request) {
                    return;
                }
            }
        }
    }

    /// Answers one request; `false` closes the connection.
    fn answer(&mut self, request: &cc1::Request) -> bool {
        let data = request.data.as_ref().map_or("{}", |data| data.get());
        let container = || serde_json::from_str::<cc1::ContainerRef>(data).unwrap().container_id;
        let response = match request.id.as_str() {
            "hello" => {
                let hello: cc1::Hello = serde_json::from_str(data).unwrap();
                assert!(hello.ctl_serial.starts_with('/') && hello.io_serial.starts_with('/'), "{hello:?}");
                self.vm = Some(hello.container_id.clone());
                match self.state.lock().unwrap().vms.insert(hello.container_id.clone()) {
                    true => cc1::Response::ok(),
                    false => cc1::Response::fail(format!("{}: container already registered", hello.container_id)),
                }
            }
            "attach" if container() == "dead" => return false,
            "attach" if container() == "babbling" => {
                self.socket.write_all(b"\x7f\xff\xff\xff\0\0\0\0").unwrap();
                return false;
            }
            "attach" | "bye" => match self.state.lock().unwrap().vms.contains(&container()) {
                true => {
                    self.vm = Some(container());
                    cc1::Response::ok()
                }
                false => cc1::Response::fail(format!("unknown containerID: {}", container())),
            },
            "allocateIO" => {
                self.allocate(data);
                return true;
            }
            "hyper" => self.hyper(data),
            other => cc1::Response::fail(format!("no payload named '{other}'")),
        };
        self.send(&response);
        true
    }

    fn send(&mut self, response: &cc1::Response) {
        let _ = self.socket.write_all(&cc1::encode(response));
    }

    fn allocate(&mut self, data: &str) {
        assert!(self.vm.is_some());
        let wanted: cc1::AllocateIo = serde_json::from_str(data).unwrap();
        let Ok(streams @ 1..=2) = u64::try_from(wanted.n_streams) else {
            let n = wanted.n_streams;
            return self.send(&cc1::Response::fail(format!("asking for unexpected number of streams ({n})")));
        };
        let (ours, theirs) = fds::session_pair().unwrap();
        let base = {
            let mut state = self.state.lock().unwrap();
            let base = state.next;
            state.next += streams;
            state.sessions.insert(base, ours.into());
            base
        };
        self.send(&cc1::Response::io_base(base));
        fds::send_with_fd(self.socket.as_fd(), cc1::FD_BYTE, theirs.as_fd()).unwrap();
    }

    fn hyper(&mut self, data: &str) -> cc1::Response {
        let hyper: cc1::Hyper = serde_json::from_str(data).unwrap();
        let data = hyper.data.as_ref().map_or("", |data| data.get()).to_owned();
        let mut state = self.state.lock().unwrap();
        state.commands.push((hyper.hyper_name.clone(), data.clone()));
        match hyper.hyper_name.as_str() {
            "ping" | "winsize" => cc1::Response::ok(),
            "execcmd" => {
                let ExecCmd { process, .. } = serde_json::from_str(&data).unwrap();
                if process.args[0] == "missing" {
                    return cc1::Response::fail("missing: no such program");
                }
                let socket = state.sessions.remove(&process.stdio).expect("a sequence that was allocated");
                let (sender, signals) = channel();
                state.signals.insert(process.id.clone().expect("an id"), sender);
                std::thread::spawn(move || Program { socket, process, signals }.run());
                cc1::Response::ok()
            }
            "signalprocess" => {
                let signal: SignalProcess = serde_json::from_str(&data).unwrap();
                if signal.signal == nix::libc::SIGUSR2 {
                    return cc1::Response::fail("no such signal here");
                }
                state.signals[&signal.process].send(signal.signal).unwrap();
                cc1::Response::ok()
            }
            other => cc1::Response::fail(format!("unknown command '{other}'")),
        }
    }
}

/// A process of the mock: what it does is its first argument.
struct Program {
    socket: UnixStream,
    process: Process,
    signals: Receiver<i32>,
}

impl Program {
    fn run(mut self) {
        let text = self.process.args.get(1).cloned().unwrap_or_default();
        match self.process.args[0].as_str() {
            "cat" => {
                while let Some(bytes) = self.stdin() {
                    self.send(self.process.stdio, &bytes);
                }
                self.end(0);
            }
            "both" => {
                self.send(self.process.stdio, b"to stdout\n");
                self.send(self.process.stderr, b"to stderr\n");
                self.end(text.parse().unwrap());
            }
            "late-stderr" => {
                self.send(self.process.stdio, b"");
                self.send(self.process.stdio, &[4]);
                self.send(self.process.stderr, b"last words\n");
                self.send(self.process.stderr, b"");
                let _ = self.stdin();
            }
            "no-stderr-end" => {
                self.send(self.process.stdio, b"");
                self.send(self.process.stdio, &[5]);
                while self.stdin().is_some() {}
            }
            "yes" => while self.send(self.process.stdio, &[b'y'; 5000]) {},
            "await-signal" => {
                self.send(self.process.stdio, b"ready\n");
                let signal = self.signals.recv().unwrap();
                self.end(u8::try_from(signal).unwrap() + 100);
            }
            "terminal" => {
                assert!(self.process.terminal && self.process.stderr == 0);
                self.send(self.process.stdio, b"ready\r\n");
                let typed = self.stdin().unwrap_or_default();
                self.send(self.process.stdio, &typed);
                self.end(6);
            }
            "drop" => self.send(self.process.stdio, b"half").then_some(()).unwrap(),
            other => panic!("no program {other}"),
        }
    }

    /// The next frame of stdin; `None` at its end.
    fn stdin(&mut self) -> Option<Vec<u8>> {
        let mut header = [0; 12];
        self.socket.read_exact(&mut header).ok()?;
        let header = FrameHeader::decode(header, FRAME_MAX).unwrap();
        assert_eq!(header.seq.0, self.process.stdio);
        let mut payload = vec![0; usize::try_from(header.payload_len()).unwrap()];
        self.socket.read_exact(&mut payload).ok()?;
        (!payload.is_empty()).then_some(payload)
    }

    fn send(&self, seq: u64, payload: &[u8]) -> bool {
        let header = FrameHeader::for_payload(StreamSeq(seq), u32::try_from(payload.len()).unwrap());
        (&self.socket).write_all(&[&header.encode()[..], payload].concat()).is_ok()
    }

    fn end(&mut self, status: u8) {
        if self.process.stderr != 0 {
            self.send(self.process.stderr, b"");
        }
        self.send(self.process.stdio, b"");
        self.send(self.process.stdio, &[status]);
        // Stays open until the client has read all and goes away.
        let _ = self.socket.read(&mut [0]);
    }
}

//! A small proxy for tests: the server's side of protocol 2, with processes that are functions.
//!
//! Owns a socket in a temporary directory and threads that end with it; knows the VM `vm`. The asymmetry to know: what
//! it checks about its clients it asserts, so a wrong frame fails the test that made it by ending the connection.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use ringway::limits::SEND_MAX;
use ringway::wire::cc2::{self, Command, Kind, LogEntry, Signal, Stream};
use ringway::wire::hyper::{ExecCmd, Process, SignalProcess};

/// A running mock.
pub(crate) struct Proxy2 {
    dir: tempfile::TempDir,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    sessions: HashMap<String, Session>,
    tokens: u32,
    commands: Vec<(String, String)>,
    requests: Vec<(Command, String)>,
    log: Vec<LogEntry>,
}

struct Session {
    /// The shim, while one is connected.
    shim: Option<UnixStream>,
    to_process: Sender<Incoming>,
    /// What the process will read, until it is started.
    from_shim: Option<Receiver<Incoming>>,
    /// Name of the process.
    process: String,
    /// Claims so far.
    claims: usize,
    disconnected: bool,
}

/// What a shim sends to its process.
#[derive(Debug)]
enum Incoming {
    Stdin(Vec<u8>),
    Signal(i64),
}

impl Proxy2 {
    pub(crate) fn start() -> Proxy2 {
        let dir = tempfile::tempdir().unwrap();
        let shared = Arc::new(Shared::default());
        let proxy = Proxy2 { dir, shared };
        proxy.listen();
        proxy
    }

    fn listen(&self) {
        let listener = UnixListener::bind(self.socket()).unwrap();
        let shared = Arc::clone(&self.shared);
        std::thread::spawn(move || {
            for socket in listener.incoming() {
                let (socket, shared) = (socket.unwrap(), Arc::clone(&shared));
                std::thread::spawn(move || Connection { socket, shared, token: None, claim: 0 }.serve());
            }
        });
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("proxy.sock")
    }

    /// A token whose process, named by `args`, runs at once.
    pub(crate) fn token(&self, args: &[&str]) -> String {
        let token = self.shared.state().token();
        let args = args.iter().map(|&arg| arg.to_owned()).collect();
        Shared::spawn(&self.shared, &token, Process { args, ..Process::default() });
        token
    }

    /// Hyperstart commands so far: name and JSON.
    pub(crate) fn commands(&self) -> Vec<(String, String)> {
        self.shared.state().commands.clone()
    }

    /// JSON of the commands of one kind so far.
    pub(crate) fn requests(&self, command: Command) -> Vec<String> {
        let state = self.shared.state();
        state.requests.iter().filter(|(kind, _)| *kind == command).map(|(_, json)| json.clone()).collect()
    }

    pub(crate) fn log(&self) -> Vec<LogEntry> {
        self.shared.state().log.clone()
    }

    /// Waits until the state is as wanted.
    pub(crate) fn wait_until(&self, mut wanted: impl FnMut(&Proxy2) -> bool) {
        while !wanted(self) {
            std::thread::yield_now();
        }
    }

    /// How often the token was claimed, and whether it was given up.
    pub(crate) fn claims(&self, token: &str) -> (usize, bool) {
        let state = self.shared.state();
        let session = &state.sessions[token];
        (session.claims, session.disconnected)
    }
}

impl State {
    fn token(&mut self) -> String {
        self.tokens += 1;
        let token = format!("token-{}", self.tokens);
        let (to_process, from_shim) = channel();
        let (process, from_shim) = (String::new(), Some(from_shim));
        let session = Session { shim: None, to_process, from_shim, process, claims: 0, disconnected: false };
        self.sessions.insert(token.clone(), session);
        token
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn spawn(shared: &Arc<Shared>, token: &str, process: Process) {
        let mut state = shared.state();
        let session = state.sessions.get_mut(token).unwrap();
        session.process = process.id.clone().unwrap_or_default();
        let incoming = session.from_shim.take().expect("started once");
        drop(state);
        let (shared, token) = (Arc::clone(shared), token.to_owned());
        std::thread::spawn(move || Program { shared, token, process, incoming }.run());
    }
}

struct Connection {
    socket: UnixStream,
    shared: Arc<Shared>,
    token: Option<String>,
    /// Which claim of the token this is.
    claim: usize,
}

impl Connection {
    fn serve(mut self) {
        let mut decoder = cc2::Decoder::default();
        let mut buffer = [0; 4096];
        'connection: loop {
            let n = self.socket.read(&mut buffer).unwrap_or(0);
            decoder.push(&buffer[..n]);
            while let Some(frame) = decoder.next_frame().unwrap() {
                if !self.frame(frame.kind, &frame.payload) {
                    break 'connection;
                }
            }
            if n == 0 {
                break;
            }
        }
        if let Some(token) = self.token
            && let Some(session) = self.shared.state().sessions.get_mut(&token)
            // Not when the next connection has claimed it already.
            && session.claims == self.claim
        {
            session.shim = None;
        }
    }

    /// Acts on one frame; `false` closes the connection.
    fn frame(&mut self, kind: Kind, payload: &[u8]) -> bool {
        match kind {
            Kind::Stream(Stream::Stdin) => {
                assert!(payload.len() <= SEND_MAX, "{} bytes of stdin in a frame", payload.len());
                self.to_process(Incoming::Stdin(payload.to_vec()));
            }
            Kind::Stream(Stream::Log) => {
                let entry = serde_json::from_slice(payload).unwrap();
                self.shared.state().log.push(entry);
            }
            Kind::Command(command) => {
                let json = String::from_utf8(payload.to_vec()).unwrap();
                self.shared.state().requests.push((command, json.clone()));
                return self.command(command, &json);
            }
            other => panic!("{other:?}"),
        }
        true
    }

    fn command(&mut self, command: Command, json: &str) -> bool {
        let outcome = match command {
            Command::RegisterVm => {
                let register: cc2::RegisterVm = serde_json::from_str(json).unwrap();
                Ok(self.registered(register.num_io_streams))
            }
            Command::AttachVm | Command::UnregisterVm => {
                let attach: cc2::AttachVm = serde_json::from_str(json).unwrap();
                match attach.container_id.as_str() {
                    "dead" => return false,
                    "vm" if command == Command::AttachVm => Ok(self.registered(attach.num_io_streams)),
                    "vm" => Ok(Vec::new()),
                    other => Err(format!("unknown containerID: {other}")),
                }
            }
            Command::Hyper => self.hyper(json),
            Command::ConnectShim => match self.connect_shim(json) {
                // Answered already: nothing may come before the answer.
                Ok(()) => return true,
                Err(refused) => Err(refused),
            },
            Command::DisconnectShim => {
                assert_eq!(json, "");
                let token = self.token.take().expect("a shim");
                let mut state = self.shared.state();
                let session = state.sessions.get_mut(&token).unwrap();
                (session.shim, session.disconnected) = (None, true);
                return true;
            }
            Command::Signal => self.signal(json),
        };
        self.respond(command, outcome);
        true
    }

    fn respond(&self, command: Command, outcome: Result<Vec<u8>, String>) {
        let error = outcome.is_err();
        let payload = outcome.unwrap_or_else(|msg| serde_json::to_vec(&cc2::ErrorResponse { msg }).unwrap());
        let _ = (&self.socket).write_all(&cc2::encode(Kind::Response { command, error }, &payload));
    }

    fn registered(&self, streams: i64) -> Vec<u8> {
        let mut state = self.shared.state();
        let tokens: Vec<String> = (0..streams).map(|_| state.token()).collect();
        let io = cc2::IoBase { url: "unix:///the/socket".to_owned(), tokens: Some(tokens).filter(|t| !t.is_empty()) };
        serde_json::to_vec(&cc2::Registered { io }).unwrap()
    }

    fn hyper(&self, json: &str) -> Result<Vec<u8>, String> {
        let hyper: cc2::Hyper = serde_json::from_str(json).unwrap();
        let data = hyper.data.as_ref().map_or("", |data| data.get()).to_owned();
        self.shared.state().commands.push((hyper.hyper_name.clone(), data.clone()));
        match (hyper.hyper_name.as_str(), hyper.tokens.as_slice()) {
            ("ping", []) => Ok(Vec::new()),
            ("signalprocess", []) => {
                let named: SignalProcess = serde_json::from_str(&data).unwrap();
                // One nobody takes, and one that is only taken from a shim.
                if [nix::libc::SIGUSR2, nix::libc::SIGQUIT].contains(&named.signal) {
                    return Err("no such signal here".to_owned());
                }
                let state = self.shared.state();
                let process = state.sessions.values().find(|session| session.process == named.process);
                let _ = process.expect("a process").to_process.send(Incoming::Signal(named.signal.into()));
                Ok(Vec::new())
            }
            ("readfile", []) => Ok(vec![0xfe; 200_000]),
            ("execcmd", [token]) => {
                let ExecCmd { process, .. } = serde_json::from_str(&data).unwrap();
                assert_eq!((process.stdio, process.stderr), (0, 0), "the daemon chooses");
                if process.args[0] == "missing" {
                    return Err("missing: no such program".to_owned());
                }
                Shared::spawn(&self.shared, token, process);
                Ok(Vec::new())
            }
            (other, tokens) => Err(format!("{other} doesn't need tokens but {} token(s) were given", tokens.len())),
        }
    }

    fn connect_shim(&mut self, json: &str) -> Result<(), String> {
        let token = serde_json::from_str::<cc2::ConnectShim>(json).unwrap().token;
        let mut state = self.shared.state();
        let session = state.sessions.get_mut(&token).ok_or_else(|| format!("unknown token: {token}"))?;
        if session.shim.is_some() {
            return Err(format!("token already claimed: {token}"));
        }
        self.respond(Command::ConnectShim, Ok(Vec::new()));
        session.shim = Some(self.socket.try_clone().unwrap());
        session.claims += 1;
        self.claim = session.claims;
        self.token = Some(token);
        self.shared.changed.notify_all();
        Ok(())
    }

    fn signal(&self, json: &str) -> Result<Vec<u8>, String> {
        let signal: Signal = serde_json::from_str(json).unwrap();
        if signal.signal_number == i64::from(nix::libc::SIGUSR2) {
            return Err("no such signal here".to_owned());
        }
        self.to_process(Incoming::Signal(signal.signal_number));
        Ok(Vec::new())
    }

    fn to_process(&self, incoming: Incoming) {
        let token = self.token.as_ref().expect("a shim");
        // A process that has ended reads no more, and one whose VM is gone is not there at all.
        if let Some(session) = self.shared.state().sessions.get(token) {
            let _ = session.to_process.send(incoming);
        }
    }
}

/// A process of the mock: what it does is its first argument.
struct Program {
    shared: Arc<Shared>,
    token: String,
    process: Process,
    incoming: Receiver<Incoming>,
}

impl Program {
    fn run(self) {
        let text = self.process.args.get(1).cloned().unwrap_or_default();
        match self.process.args[0].as_str() {
            "cat" => {
                while let Some(bytes) = self.stdin() {
                    self.send(Stream::Stdout, &bytes);
                }
                self.end(0);
            }
            "both" => {
                self.send(Stream::Stdout, b"to stdout\n");
                self.send(Stream::Stderr, b"to stderr\n");
                self.end(text.parse().unwrap());
            }
            "yes" => while self.send(Stream::Stdout, &[b'y'; 5000]) {},
            "await-signal" => {
                self.send(Stream::Stdout, b"ready\n");
                self.end(u8::try_from(self.signal() + 100).unwrap());
            }
            "terminal" => {
                assert_eq!(self.signal(), 28, "the size comes first");
                self.send(Stream::Stdout, b"ready\r\n");
                let typed = self.stdin().unwrap_or_default();
                self.send(Stream::Stdout, &typed);
                self.end(6);
            }
            "gone" => {
                self.send(Stream::Stdout, b"half");
                self.hang_up(true);
            }
            "interrupted" => self.interrupted(),
            "deaf" => self.deaf(),
            other => panic!("no program {other}"),
        }
    }

    /// Says three things, and loses the connection in the middle of the second; then echoes stdin, over a connection
    /// that is lost once more.
    fn interrupted(&self) {
        self.send(Stream::Stdout, b"one\n");
        let second = cc2::encode(Kind::Stream(Stream::Stdout), b"two, all of it\n");
        self.write(&second[..second.len() - 8]);
        self.hang_up(false);
        self.write(&second);
        self.send(Stream::Stderr, b"three\n");
        let first = self.stdin().unwrap();
        self.send(Stream::Stdout, &first);
        self.hang_up(false);
        while let Some(bytes) = self.stdin() {
            self.send(Stream::Stdout, &bytes);
        }
        self.end(9);
    }

    /// Takes no stdin until it gets a signal, then counts what was sent.
    fn deaf(&self) {
        self.send(Stream::Stdout, b"ready\n");
        let mut count = 0;
        loop {
            match self.incoming.recv().unwrap() {
                Incoming::Stdin(bytes) if bytes.is_empty() => break,
                Incoming::Stdin(bytes) => count += bytes.len(),
                Incoming::Signal(number) => assert_eq!(number, 10),
            }
        }
        self.send(Stream::Stdout, format!("{count}\n").as_bytes());
        self.end(0);
    }

    /// The next frame of stdin; `None` at its end.
    fn stdin(&self) -> Option<Vec<u8>> {
        loop {
            match self.incoming.recv().ok()? {
                Incoming::Stdin(bytes) => return (!bytes.is_empty()).then_some(bytes),
                Incoming::Signal(_) => {}
            }
        }
    }

    fn signal(&self) -> i64 {
        loop {
            if let Incoming::Signal(number) = self.incoming.recv().unwrap() {
                return number;
            }
        }
    }

    fn send(&self, stream: Stream, payload: &[u8]) -> bool {
        self.write(&cc2::encode(Kind::Stream(stream), payload))
    }

    /// Writes to the shim, once there is one.
    fn write(&self, bytes: &[u8]) -> bool {
        let mut state = self.shared.state();
        let shim = loop {
            let Some(session) = state.sessions.get(&self.token) else { return false };
            if session.disconnected {
                return false;
            }
            match &session.shim {
                Some(shim) => break shim.try_clone().unwrap(),
                None => {
                    state = self.shared.changed.wait_timeout(state, std::time::Duration::from_millis(20)).unwrap().0
                }
            }
        };
        drop(state);
        (&shim).write_all(bytes).is_ok()
    }

    /// Closes the shim's connection; the token stays valid unless the session is `gone`.
    fn hang_up(&self, gone: bool) {
        let mut state = self.shared.state();
        let shim = state.sessions.get_mut(&self.token).unwrap().shim.take().expect("connected");
        if gone {
            state.sessions.remove(&self.token);
        }
        shim.shutdown(std::net::Shutdown::Both).unwrap();
    }

    fn end(&self, status: u8) {
        self.write(&cc2::encode(Kind::Notification(cc2::PROCESS_EXITED), &[status]));
    }
}

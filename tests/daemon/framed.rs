//! Protocol 2 as runtimes and shims speak it: frames built and read with the library's own wire module.
//!
//! The asymmetry to know: a header is read as the Go clients read it, with one call that must bring all of it; the
//! rest may arrive in pieces. Frames that come before a response are kept for later.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;

use ringway::wire::cc2::{self, Command, HEADER_LEN, Header, Kind, PROCESS_EXITED, Stream};
use ringway::wire::hyper::Code;
use serde_json::{Value, json};

use super::client::patient;
use super::guest::{Guest, Ports};
use super::harness::{Agent, Daemon, until};

/// A connection that speaks protocol 2.
pub(crate) struct Framed {
    pub(crate) socket: UnixStream,
    early: VecDeque<(Kind, Vec<u8>)>,
}

/// What a shim saw of its process.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) status: u8,
}

impl Framed {
    pub(crate) fn connect(daemon: &Daemon) -> Framed {
        Framed { socket: patient(UnixStream::connect(daemon.socket()).unwrap()), early: VecDeque::new() }
    }

    /// A runtime attached to a VM, and tokens.
    pub(crate) fn attached(daemon: &Daemon, id: &str, tokens: usize) -> (Framed, Vec<String>) {
        let mut runtime = Framed::connect(daemon);
        let tokens = runtime.attach(id, tokens);
        (runtime, tokens)
    }

    /// A shim that has its token.
    pub(crate) fn shim(daemon: &Daemon, token: &str) -> Framed {
        let mut shim = Framed::connect(daemon);
        assert_eq!(shim.claim(token), Ok(Vec::new()));
        shim
    }

    /// The same for a token whose last shim has just left, which the daemon may not know yet.
    pub(crate) fn next_shim(daemon: &Daemon, token: &str) -> Framed {
        until("a free token", || {
            let mut shim = Framed::connect(daemon);
            match shim.claim(token) {
                Ok(_) => Some(shim),
                Err(error) => {
                    assert_eq!(error, format!("token already claimed: {token}"));
                    None
                }
            }
        })
    }

    pub(crate) fn send_bytes(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).unwrap();
    }

    pub(crate) fn send(&mut self, kind: Kind, payload: &[u8]) {
        self.send_bytes(&cc2::encode(kind, payload));
    }

    pub(crate) fn stdin(&mut self, payload: &[u8]) {
        self.send(Kind::Stream(Stream::Stdin), payload);
    }

    pub(crate) fn command(&mut self, command: Command, payload: &Value) {
        self.send(Kind::Command(command), payload.to_string().as_bytes());
    }

    /// The next frame from the socket; `None` at the end.
    fn read(&mut self) -> Option<(Kind, Vec<u8>)> {
        let mut head = [0; HEADER_LEN];
        let n = match self.socket.read(&mut head) {
            Err(error) if error.kind() == ErrorKind::ConnectionReset => 0,
            n => n.expect("a frame or the end"),
        };
        if n == 0 {
            return None;
        }
        assert_eq!(n, HEADER_LEN, "a header in two pieces");
        let header = Header::decode(head).unwrap();
        let mut payload = vec![0; header.payload as usize];
        self.socket.read_exact(&mut payload).unwrap();
        Some((header.kind, payload))
    }

    pub(crate) fn next_frame(&mut self) -> Option<(Kind, Vec<u8>)> {
        self.early.pop_front().or_else(|| self.read())
    }

    pub(crate) fn expect(&mut self, kind: Kind, payload: &[u8]) {
        assert_eq!(self.next_frame(), Some((kind, payload.to_vec())));
    }

    pub(crate) fn expect_end(&mut self) {
        assert_eq!(self.next_frame(), None);
    }

    /// The response to a command.
    pub(crate) fn response(&mut self, command: Command) -> Result<Vec<u8>, String> {
        loop {
            match self.read().expect("a response") {
                (Kind::Response { command: answered, error }, payload) => {
                    assert_eq!(answered, command);
                    return if error { Err(message(&payload)) } else { Ok(payload) };
                }
                other => self.early.push_back(other),
            }
        }
    }

    pub(crate) fn ask(&mut self, command: Command, payload: &Value) -> Result<Vec<u8>, String> {
        self.command(command, payload);
        self.response(command)
    }

    pub(crate) fn attach(&mut self, id: &str, tokens: usize) -> Vec<String> {
        let payload = json!({ "containerId": id, "numIOStreams": tokens });
        tokens_of(&self.ask(Command::AttachVm, &payload).unwrap())
    }

    pub(crate) fn claim(&mut self, token: &str) -> Result<Vec<u8>, String> {
        self.ask(Command::ConnectShim, &json!({ "token": token }))
    }

    pub(crate) fn signal(&mut self, number: i64) -> Result<Vec<u8>, String> {
        self.ask(Command::Signal, &json!({ "signalNumber": number }))
    }

    pub(crate) fn send_hyper(&mut self, name: &str, tokens: &[&str], data: &Value) {
        self.command(Command::Hyper, &json!({ "hyperName": name, "tokens": tokens, "data": data }));
    }

    pub(crate) fn hyper(&mut self, name: &str, tokens: &[&str], data: &Value) -> Result<Vec<u8>, String> {
        self.send_hyper(name, tokens, data);
        self.response(Command::Hyper)
    }

    /// Starts a script as a process of this name, without waiting for the answer.
    pub(crate) fn run(&mut self, token: &str, id: &str, script: &str) {
        assert_eq!(self.hyper("execcmd", &[token], &exec(id, script)), Ok(Vec::new()));
    }

    /// Reads exactly this from stdout.
    pub(crate) fn take(&mut self, len: usize) -> Vec<u8> {
        let mut got = Vec::with_capacity(len);
        while got.len() < len {
            let (kind, payload) = self.next_frame().expect("more output");
            assert_eq!(kind, Kind::Stream(Stream::Stdout));
            got.extend_from_slice(&payload);
        }
        assert_eq!(got.len(), len);
        got
    }

    /// Everything up to the exit status.
    pub(crate) fn rest(&mut self) -> Seen {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        loop {
            match self.next_frame().expect("more output, or the exit status") {
                (Kind::Stream(Stream::Stdout), payload) => stdout.extend_from_slice(&payload),
                (Kind::Stream(Stream::Stderr), payload) => stderr.extend_from_slice(&payload),
                (Kind::Notification(PROCESS_EXITED), payload) => {
                    assert_eq!(payload.len(), 1);
                    return Seen { stdout, stderr, status: payload[0] };
                }
                other => panic!("{other:?}"),
            }
        }
    }

    pub(crate) fn exits(&mut self, stdout: &str, stderr: &str, status: u8) {
        let want = Seen { stdout: stdout.into(), stderr: stderr.into(), status };
        assert_eq!(self.rest(), want);
    }
}

pub(crate) fn message(payload: &[u8]) -> String {
    let error: cc2::ErrorResponse = serde_json::from_slice(payload).unwrap();
    error.msg
}

pub(crate) fn tokens_of(payload: &[u8]) -> Vec<String> {
    let registered: cc2::Registered = serde_json::from_slice(payload).unwrap();
    registered.io.tokens.unwrap_or_default()
}

/// The payload of an execcmd that runs a script outside of any container.
pub(crate) fn exec(id: &str, script: &str) -> Value {
    json!({ "container": "", "process": process(id, script) })
}

pub(crate) fn process(id: &str, script: &str) -> Value {
    let path = json!({ "env": "PATH", "value": std::env::var("PATH").unwrap() });
    json!({ "id": id, "args": ["sh", "-c", script], "envs": [path], "workdir": "/" })
}

/// The payload of RegisterVM for these sockets.
pub(crate) fn register(id: &str, ports: &Ports, tokens: i64) -> Value {
    json!({ "containerId": id, "ctlSerial": ports.ctl_path, "ioSerial": ports.io_path, "numIOStreams": tokens })
}

/// A VM whose agent is the test, registered over protocol 2.
pub(crate) fn boot(daemon: &Daemon, id: &str, tokens: i64) -> (Guest, Framed, Vec<String>) {
    let ports = Ports::open(daemon, id);
    let mut runtime = Framed::connect(daemon);
    runtime.command(Command::RegisterVm, &register(id, &ports, tokens));
    let mut guest = ports.accept();
    guest.say(Code::Ready, b"");
    let tokens = tokens_of(&runtime.response(Command::RegisterVm).unwrap());
    (guest, runtime, tokens)
}

/// A VM with an agent of its own, a runtime attached to it, and tokens.
pub(crate) fn vm(daemon: &Daemon, flags: &[&str], tokens: usize) -> (Agent, Framed, Vec<String>) {
    let agent = daemon.agent("vm", flags);
    let (runtime, tokens) = Framed::attached(daemon, "vm", tokens);
    (agent, runtime, tokens)
}

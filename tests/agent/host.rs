//! A host for the tests: starts an agent as a child process, connects to it, and keeps what each sequence said.
//!
//! It checks nothing by itself but that answers come. The asymmetry to know: every wait is bounded by [`PATIENCE`],
//! which only turns a hang into a failure and is never part of what is tested.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ringway::wire::hyper::{Code, FRAME_HEADER_LEN, FrameHeader, Message, MessageDecoder, StreamSeq};
use serde_json::{Value, json};

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// An agent in a process of its own; killed when dropped.
pub(crate) struct Guest {
    pub(crate) child: Child,
    dir: tempfile::TempDir,
}

impl Guest {
    pub(crate) fn start(options: &[&str]) -> Guest {
        let dir = tempfile::tempdir().unwrap();
        Guest { child: start_at(dir.path(), options), dir }
    }

    /// Starts another agent where one was killed.
    pub(crate) fn restart(&mut self) {
        self.child = start_at(self.dir.path(), &[]);
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn connect_to(&self, name: &str) -> UnixStream {
        connect_to(&self.path(name))
    }

    /// Connects both channels, without waiting for READY.
    pub(crate) fn connect(&self) -> Host {
        connect(self.dir.path())
    }

    pub(crate) fn terminate(&self) {
        let agent = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        nix::sys::signal::kill(agent, nix::sys::signal::Signal::SIGTERM).unwrap();
    }

    /// Waits for the agent to end by itself.
    pub(crate) fn wait(&mut self) -> Option<i32> {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(begin.elapsed() < PATIENCE, "the agent does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn start_at(dir: &Path, options: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringway"));
    command.arg("agent").arg("--ctl").arg(dir.join("ctl")).arg("--io").arg(dir.join("io"));
    command.args(options).stdin(Stdio::null()).spawn().unwrap()
}

/// Connects both channels of the agent in this directory.
pub(crate) fn connect(dir: &Path) -> Host {
    let (ctl, io) = (connect_to(&dir.join("ctl")), connect_to(&dir.join("io")));
    Host { ctl, io, decoder: MessageDecoder::new(64 << 20), seen: HashMap::new(), order: vec![], said: vec![] }
}

fn connect_to(path: &Path) -> UnixStream {
    let begin = Instant::now();
    loop {
        match UnixStream::connect(path) {
            Ok(socket) => {
                socket.set_read_timeout(Some(PATIENCE)).unwrap();
                socket.set_write_timeout(Some(PATIENCE)).unwrap();
                return socket;
            }
            Err(error) => assert!(begin.elapsed() < PATIENCE, "no agent: {error}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) fn write_frame(io: &mut UnixStream, seq: u64, payload: &[u8]) {
    let len = u32::try_from(payload.len()).unwrap();
    let mut frame = FrameHeader::for_payload(StreamSeq(seq), len).encode().to_vec();
    frame.extend_from_slice(payload);
    io.write_all(&frame).unwrap();
}

/// The host's end of a character device: the nonblocking master of a pseudo-terminal.
pub(crate) struct Device(pub(crate) File);

impl Device {
    pub(crate) fn take(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let mut have = 0;
        let begin = Instant::now();
        while have < len {
            match self.0.read(&mut bytes[have..]) {
                Ok(count) => have += count,
                Err(error) => assert!(begin.elapsed() < PATIENCE, "the device is silent: {error}"),
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        bytes
    }

    pub(crate) fn put(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // TERM, so that what its processes started goes too; KILL if it should not heed that.
        let begin = Instant::now();
        let mut is_running = matches!(self.child.try_wait(), Ok(None));
        if is_running {
            self.terminate();
        }
        while is_running && begin.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(2));
            is_running = matches!(self.child.try_wait(), Ok(None));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What one sequence said.
#[derive(Debug, Default, Clone)]
pub(crate) struct Seen {
    pub(crate) data: Vec<u8>,
    pub(crate) eofs: usize,
    /// The byte after EOF.
    pub(crate) status: Option<u8>,
}

impl Seen {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.data).into_owned()
    }
}

/// The two connections and what came on them.
pub(crate) struct Host {
    pub(crate) ctl: UnixStream,
    pub(crate) io: UnixStream,
    decoder: MessageDecoder,
    pub(crate) seen: HashMap<u64, Seen>,
    /// Every frame: sequence and payload length.
    pub(crate) order: Vec<(u64, usize)>,
    /// Codes that came between commands and answers.
    pub(crate) said: Vec<Message>,
}

impl Host {
    pub(crate) fn say(&mut self, code: Code, payload: impl Into<Vec<u8>>) {
        self.ctl.write_all(&Message::new(code, payload).encode()).unwrap();
    }

    pub(crate) fn next_message(&mut self) -> Message {
        loop {
            if let Some(message) = self.decoder.next_message().unwrap() {
                return message;
            }
            let mut buf = [0; 4096];
            let count = match self.ctl.read(&mut buf) {
                // An agent in a thread of the same process watches for SIGCHLD.
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                count => count.expect("a message from the agent"),
            };
            assert!(count > 0, "the agent closed the control channel");
            self.decoder.push(&buf[..count]);
        }
    }

    /// The next ACK or ERROR.
    pub(crate) fn answer(&mut self) -> Result<Vec<u8>, String> {
        loop {
            let message = self.next_message();
            match Code::from_u32(message.code) {
                Some(Code::Ack) => return Ok(message.payload),
                Some(Code::Error) => return Err(String::from_utf8(message.payload).unwrap()),
                _ => self.said.push(message),
            }
        }
    }

    pub(crate) fn ask(&mut self, code: Code, payload: impl Into<Vec<u8>>) -> Result<Vec<u8>, String> {
        self.say(code, payload);
        self.answer()
    }

    pub(crate) fn json(&mut self, code: Code, payload: Value) -> Result<Vec<u8>, String> {
        self.ask(code, payload.to_string())
    }

    /// Runs a program in the agent's own root, with separate stderr at `seq + 1`.
    pub(crate) fn exec(&mut self, seq: u64, args: &[&str]) {
        self.exec_with(seq, args, json!({}));
    }

    /// The same, with more fields of its `process`.
    pub(crate) fn exec_with(&mut self, seq: u64, args: &[&str], more: Value) {
        let mut process = json!({ "stdio": seq, "stderr": seq + 1, "args": args });
        for (key, value) in more.as_object().unwrap() {
            process[key] = value.clone();
        }
        self.json(Code::ExecCmd, json!({ "process": process })).unwrap();
    }

    pub(crate) fn sh(&mut self, seq: u64, script: &str) {
        self.exec(seq, &["sh", "-c", script]);
    }

    /// The same, for agents that want a name.
    pub(crate) fn sh_named(&mut self, seq: u64, id: &str, script: &str) {
        self.exec_with(seq, &["sh", "-c", script], json!({ "id": id }));
    }

    pub(crate) fn send(&mut self, seq: u64, data: &[u8]) {
        for payload in data.chunks(4_084) {
            self.send_frame(seq, payload);
        }
    }

    pub(crate) fn send_frame(&mut self, seq: u64, payload: &[u8]) {
        write_frame(&mut self.io, seq, payload);
    }

    pub(crate) fn send_eof(&mut self, seq: u64) {
        self.send_frame(seq, b"");
    }

    /// Takes one frame from the stream channel.
    pub(crate) fn take_frame(&mut self) -> u64 {
        let mut head = [0; FRAME_HEADER_LEN];
        self.io.read_exact(&mut head).expect("a frame from the agent");
        let header = FrameHeader::decode(head, 1 << 20).unwrap();
        let mut payload = vec![0; header.payload_len() as usize];
        self.io.read_exact(&mut payload).unwrap();
        let seq = header.seq.0;
        self.order.push((seq, payload.len()));
        let seen = self.seen.entry(seq).or_default();
        match payload.as_slice() {
            [] => seen.eofs += 1,
            [status] if seen.eofs > 0 => {
                assert_eq!(seen.status.replace(*status), None, "one status on {seq}");
            }
            data => {
                assert_eq!(seen.eofs, 0, "nothing but a status comes after EOF on {seq}: {data:?}");
                seen.data.extend_from_slice(data);
            }
        }
        seq
    }

    pub(crate) fn take_until(&mut self, seq: u64, is_so: impl Fn(&Seen) -> bool) -> Seen {
        while !self.seen.get(&seq).is_some_and(&is_so) {
            self.take_frame();
        }
        self.seen[&seq].clone()
    }

    /// Waits for a process's status.
    pub(crate) fn status(&mut self, seq: u64) -> u8 {
        self.take_until(seq, |seen| seen.status.is_some()).status.unwrap()
    }

    /// Waits until a sequence's output contains this text.
    pub(crate) fn expect(&mut self, seq: u64, text: &str) {
        self.take_until(seq, |seen| seen.text().contains(text));
    }

    /// Forgets what a sequence said, for another process with it.
    pub(crate) fn forget(&mut self, seq: u64) {
        self.seen.remove(&seq);
        self.seen.remove(&(seq + 1));
    }

    pub(crate) fn text(&self, seq: u64) -> String {
        self.seen.get(&seq).map(Seen::text).unwrap_or_default()
    }
}

pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Whether a process exists and is not just waiting to be reaped.
pub(crate) fn is_alive(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().next()).is_some_and(|state| state != "Z")
}

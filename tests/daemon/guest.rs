//! A VM whose agent is the test itself: two listening sockets, and what hyperstart says on them, word by word.
//!
//! The asymmetry to know: connecting needs no accept, so hello is sent, then accepted and answered, by one thread.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use ringway::wire::hyper::{Code, FRAME_HEADER_LEN, FrameHeader, MESSAGE_HEADER_LEN};
use serde_json::{Value, json};

use super::client::{Client, frame, patient};
use super::harness::Daemon;

/// A VM's two sockets, listened to.
pub(crate) struct Ports {
    pub(crate) ctl: UnixListener,
    pub(crate) io: UnixListener,
    pub(crate) ctl_path: PathBuf,
    pub(crate) io_path: PathBuf,
}

impl Ports {
    pub(crate) fn open(daemon: &Daemon, id: &str) -> Ports {
        let (ctl_path, io_path) = (daemon.path(&format!("{id}.ctl")), daemon.path(&format!("{id}.io")));
        let (ctl, io) = (UnixListener::bind(&ctl_path).unwrap(), UnixListener::bind(&io_path).unwrap());
        Ports { ctl, io, ctl_path, io_path }
    }

    pub(crate) fn send_hello(&self, client: &mut Client, id: &str) {
        client.send("hello", &json!({ "containerId": id, "ctlSerial": self.ctl_path, "ioSerial": self.io_path }));
    }

    pub(crate) fn accept(&self) -> Guest {
        let accept = |listener: &UnixListener| patient(listener.accept().unwrap().0);
        Guest { ctl: accept(&self.ctl), io: accept(&self.io) }
    }

    /// Hello, READY, success.
    pub(crate) fn boot(&self, client: &mut Client, id: &str) -> Guest {
        self.send_hello(client, id);
        let mut guest = self.accept();
        guest.say(Code::Ready, b"");
        client.response().unwrap();
        guest
    }
}

/// The agent's ends of both channels.
pub(crate) struct Guest {
    pub(crate) ctl: UnixStream,
    pub(crate) io: UnixStream,
}

impl Guest {
    /// A VM with sockets of its own, registered by `client`.
    pub(crate) fn boot(daemon: &Daemon, client: &mut Client, id: &str) -> Guest {
        Ports::open(daemon, id).boot(client, id)
    }

    pub(crate) fn say(&mut self, code: Code, payload: &[u8]) {
        let len = u32::try_from(MESSAGE_HEADER_LEN + payload.len()).unwrap();
        let message = [&(code as u32).to_be_bytes()[..], &len.to_be_bytes(), payload].concat();
        self.ctl.write_all(&message).unwrap();
    }

    /// The next command: its code and payload. It must arrive with one read, as the agents of the Go tests want it.
    pub(crate) fn next_command(&mut self) -> (Code, Vec<u8>) {
        let mut buffer = vec![0; 256 * 1024];
        let n = self.ctl.read(&mut buffer).expect("a command");
        assert!(n >= MESSAGE_HEADER_LEN, "{n} bytes of a command");
        let word = |at: usize| u32::from_be_bytes(buffer[at..at + 4].try_into().unwrap());
        assert_eq!(n, usize::try_from(word(4)).unwrap(), "a command in one piece, and nothing behind it");
        (Code::from_u32(word(0)).unwrap(), buffer[MESSAGE_HEADER_LEN..n].to_vec())
    }

    /// Takes a command that must be this one, and answers it.
    pub(crate) fn serve(&mut self, code: Code, answer: Code, text: &[u8]) -> Vec<u8> {
        let (got, payload) = self.next_command();
        assert_eq!(got, code);
        self.say(answer, text);
        payload
    }

    /// A client's command that the agent acknowledges.
    pub(crate) fn obeys(&mut self, client: &mut Client, name: &str) {
        client.send_hyper(name, &Value::Null);
        self.serve(Code::from_name(name).unwrap(), Code::Ack, b"");
        assert_eq!(client.response(), Ok(Value::Null));
    }

    pub(crate) fn send(&mut self, seq: u64, payload: &[u8]) {
        self.io.write_all(&frame(seq, payload)).unwrap();
    }

    /// The next frame from the daemon.
    pub(crate) fn take_frame(&mut self) -> (u64, Vec<u8>) {
        let mut head = [0; FRAME_HEADER_LEN];
        self.io.read_exact(&mut head).expect("a frame");
        let header = FrameHeader::decode(head, 10_240).unwrap();
        let mut payload = vec![0; header.payload_len() as usize];
        self.io.read_exact(&mut payload).unwrap();
        (header.seq.0, payload)
    }
}

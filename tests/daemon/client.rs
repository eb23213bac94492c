//! Protocol 1 spelled out byte by byte, as a client that knows nothing of the library's own would speak it.
//!
//! The asymmetry to know: a session is read as the Go clients read it, its header with one call that must bring all
//! of it; everything else may arrive in pieces.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use ringway::os::fds;
use serde_json::{Value, json};

use super::harness::{PATIENCE, until};

pub(crate) fn patient(socket: UnixStream) -> UnixStream {
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.set_write_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Whether the other end has closed; bytes before that are thrown away.
pub(crate) fn ends(mut socket: &UnixStream) -> bool {
    let mut buffer = [0; 4096];
    loop {
        match socket.read(&mut buffer) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return true,
            Err(_) => return false,
        }
    }
}

/// A message: length, a word of zeros, text.
pub(crate) fn message(json: &str) -> Vec<u8> {
    let len = u32::try_from(json.len()).unwrap();
    [&len.to_be_bytes()[..], &[0; 4], json.as_bytes()].concat()
}

/// A connection to the proxy socket.
pub(crate) struct Client {
    pub(crate) socket: UnixStream,
}

impl Client {
    pub(crate) fn connect(path: &Path) -> Client {
        Client { socket: patient(UnixStream::connect(path).unwrap()) }
    }

    pub(crate) fn send_bytes(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).unwrap();
    }

    pub(crate) fn send_text(&mut self, json: &str) {
        self.send_bytes(&message(json));
    }

    pub(crate) fn send(&mut self, id: &str, data: &Value) {
        self.send_text(&json!({ "id": id, "data": data }).to_string());
    }

    /// The next response as it is on the wire: header and text.
    pub(crate) fn response_bytes(&mut self) -> ([u8; 8], String) {
        let mut header = [0; 8];
        self.socket.read_exact(&mut header).expect("a response");
        let len = u32::from_be_bytes(header[..4].try_into().unwrap());
        let mut body = vec![0; usize::try_from(len).unwrap()];
        self.socket.read_exact(&mut body).unwrap();
        (header, String::from_utf8(body).unwrap())
    }

    pub(crate) fn response(&mut self) -> Result<Value, String> {
        let response: Value = serde_json::from_str(&self.response_bytes().1).unwrap();
        match response["success"].as_bool().unwrap() {
            true => Ok(response["data"].clone()),
            false => Err(response["error"].as_str().unwrap().to_owned()),
        }
    }

    pub(crate) fn ask(&mut self, id: &str, data: &Value) -> Result<Value, String> {
        self.send(id, data);
        self.response()
    }

    pub(crate) fn hello(&mut self, id: &str, ctl: &Path, io: &Path) -> Result<Value, String> {
        self.ask("hello", &json!({ "containerId": id, "ctlSerial": ctl, "ioSerial": io }))
    }

    pub(crate) fn attach(&mut self, id: &str) -> Result<Value, String> {
        self.ask("attach", &json!({ "containerId": id }))
    }

    pub(crate) fn bye(&mut self, id: &str) -> Result<Value, String> {
        self.ask("bye", &json!({ "containerId": id }))
    }

    pub(crate) fn send_hyper(&mut self, name: &str, data: &Value) {
        self.send("hyper", &json!({ "hyperName": name, "data": data }));
    }

    pub(crate) fn allocate(&mut self, streams: u8) -> Session {
        let data = self.ask("allocateIO", &json!({ "nStreams": streams })).unwrap();
        let (byte, fd) = fds::recv_with_fd(self.socket.as_fd()).unwrap();
        assert_eq!(byte, b'F');
        Session { base: data["ioBase"].as_u64().unwrap(), socket: patient(fd.into()) }
    }

    /// The daemon closes this connection without an answer.
    pub(crate) fn expect_end(&mut self) {
        let mut byte = [0];
        match self.socket.read(&mut byte) {
            Ok(0) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            other => panic!("not the end: {other:?}, {byte:?}"),
        }
    }

    /// A request that must be answered shows that the connection is sound and nothing is left over on it.
    pub(crate) fn is_in_step(&mut self) {
        assert_eq!(self.ask("in step?", &json!({})), Err("no payload named 'in step?'".to_owned()));
    }
}

/// One frame's bytes.
pub(crate) fn frame(seq: u64, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len() + 12).unwrap();
    [&seq.to_be_bytes()[..], &len.to_be_bytes(), payload].concat()
}

/// Bytes that tell where they belong: each block of eight has its own number and its sequence in it.
pub(crate) fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let blocks = (0..len.div_ceil(8) as u64).flat_map(|n| (n ^ (seed << 40)).to_be_bytes());
    blocks.take(len).collect()
}

/// The client's end of a session.
pub(crate) struct Session {
    pub(crate) base: u64,
    pub(crate) socket: UnixStream,
}

impl Session {
    pub(crate) fn send(&mut self, payload: &[u8]) {
        self.socket.write_all(&frame(self.base, payload)).unwrap();
    }

    /// The next frame; `None` at the end.
    pub(crate) fn next_frame(&mut self) -> Option<(u64, Vec<u8>)> {
        let mut header = [0; 12];
        let n = self.socket.read(&mut header).expect("a frame or the end");
        if n == 0 {
            return None;
        }
        assert_eq!(n, 12, "a header in two pieces");
        let (seq, len) = header.split_at(8);
        let (seq, len) = (u64::from_be_bytes(seq.try_into().unwrap()), u32::from_be_bytes(len.try_into().unwrap()));
        assert!((12..=10_240).contains(&len), "a frame of {len} bytes");
        let mut payload = vec![0; usize::try_from(len).unwrap() - 12];
        self.socket.read_exact(&mut payload).unwrap();
        Some((seq, payload))
    }

    pub(crate) fn expect(&mut self, payload: &[u8]) {
        let base = self.base;
        assert_eq!(self.next_frame().expect("a frame"), (base, payload.to_vec()));
    }

    /// Reads this many bytes of payload of the first sequence.
    pub(crate) fn take(&mut self, len: usize) -> Vec<u8> {
        let mut got = Vec::with_capacity(len);
        while got.len() < len {
            let (seq, payload) = self.next_frame().expect("more frames");
            assert_eq!(seq, self.base);
            got.extend_from_slice(&payload);
        }
        assert_eq!(got.len(), len);
        got
    }

    pub(crate) fn expect_end(&mut self) {
        assert_eq!(self.next_frame(), None, "session {}", self.base);
    }

    /// Sends whole frames until the socket takes no more for a while, and returns how many bytes of payload left.
    /// The last frame may be cut short: the rest of it is returned too.
    pub(crate) fn flood(&mut self, payload: &[u8], most: usize) -> (usize, Vec<u8>) {
        let bytes = frame(self.base, payload);
        let mut frames = 0;
        self.socket.set_nonblocking(true).unwrap();
        let mut rest: &[u8] = &bytes;
        let mut idle = 0;
        while frames < most && idle < 40 {
            match self.socket.write(rest) {
                Ok(n) => (rest, idle) = (&rest[n..], 0),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    idle += 1;
                    std::thread::sleep(std::time::Duration::from_millis(10));
                }
                Err(error) => panic!("{error}"),
            }
            if rest.is_empty() {
                frames += 1;
                rest = &bytes;
            }
        }
        self.socket.set_nonblocking(false).unwrap();
        let rest = if rest.len() == bytes.len() { Vec::new() } else { rest.to_vec() };
        (frames, rest)
    }

    /// Waits until the daemon has closed it, whatever comes before.
    pub(crate) fn ends(&self) -> bool {
        until("the end of a session", || ends(&self.socket).then_some(true))
    }
}

//! Clients of both protocols, as far as a session needs them: register a VM, open a session, let it go.
//!
//! Protocol 1: a session is the descriptor that allocateIO returns. Protocol 2: it is a shim's connection that has
//! claimed a token, with a process started for it. Everything here blocks, with a bound.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ringway::client::{Client, RuntimeClient};
use ringway::wire::cc2::{self, Command, Kind};
use ringway::wire::hyper::{ExecCmd, Process};

use crate::daemons::Protocol;
use crate::vms::Vms;

/// Time a daemon has to answer.
const PATIENCE: Option<Duration> = Some(Duration::from_secs(10));

/// One session: its sequence at the agent, and the client's socket.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) seq: u64,
    pub(crate) socket: UnixStream,
}

/// A runtime's connection, attached to one VM.
#[derive(Debug)]
pub(crate) enum Runtime {
    One(Client),
    Two(RuntimeClient),
}

impl Runtime {
    pub(crate) fn connect(protocol: Protocol, socket: &Path) -> Result<Runtime> {
        Ok(match protocol {
            Protocol::One => {
                let mut client = Client::connect(socket)?;
                client.set_timeout(PATIENCE)?;
                Runtime::One(client)
            }
            Protocol::Two => {
                let mut client = RuntimeClient::connect(socket)?;
                client.set_timeout(PATIENCE)?;
                Runtime::Two(client)
            }
        })
    }

    /// Registers a VM and attaches to it; returns as many tokens as are asked for, in protocol 2.
    pub(crate) fn register(&mut self, id: &str, vms: &Vms, vm: usize, tokens: usize) -> Result<Vec<String>> {
        let (control, stream) = (vms.control_path(vm), vms.stream_path(vm));
        match self {
            Runtime::One(client) => client.hello(id, &control, &stream)?,
            Runtime::Two(client) => {
                return Ok(client.register_vm(id, &control, &stream, None, u32::try_from(tokens)?)?.1);
            }
        }
        Ok(Vec::new())
    }

    /// Attaches to a registered VM; returns as many tokens as are asked for, in protocol 2.
    pub(crate) fn attach(&mut self, id: &str, tokens: usize) -> Result<Vec<String>> {
        match self {
            Runtime::One(client) => client.attach(id)?,
            Runtime::Two(client) => return Ok(client.attach_vm(id, u32::try_from(tokens)?)?.1),
        }
        Ok(Vec::new())
    }

    /// Asks the attached VM's agent for a sign of life.
    pub(crate) fn ping(&mut self) -> Result<()> {
        match self {
            Runtime::One(client) => client.hyper("ping", &())?,
            Runtime::Two(client) => drop(client.hyper("ping", &[], &())?),
        }
        Ok(())
    }

    pub(crate) fn unregister(&mut self, id: &str) -> Result<()> {
        match self {
            Runtime::One(client) => client.bye(id)?,
            Runtime::Two(client) => client.unregister_vm(id)?,
        }
        Ok(())
    }

    /// Opens a session at the attached VM `id` and, where a `start` is wanted, starts the process `name` for it.
    /// Returns its sequence where the client is told one.
    pub(crate) fn open(
        &mut self,
        id: &str,
        name: &str,
        token: Option<&String>,
        socket: &Path,
        start: bool,
    ) -> Result<(Option<u64>, UnixStream)> {
        match self {
            Runtime::One(client) => {
                let (base, fd) = client.allocate_io(2)?;
                if start {
                    let process = Process { stderr: base.0 + 1, ..process(name, base.0) };
                    client.hyper("execcmd", &ExecCmd { container: id.to_owned(), process })?;
                }
                Ok((Some(base.0), fd.into()))
            }
            Runtime::Two(client) => {
                let token = token.context("the daemon gave too few tokens")?;
                let shim = connect_shim(socket, token)?;
                let command = ExecCmd { container: id.to_owned(), process: process(name, 0) };
                client.hyper("execcmd", std::slice::from_ref(token), &command)?;
                Ok((None, shim))
            }
        }
    }
}

/// Lets a session go as its client would.
pub(crate) fn close(protocol: Protocol, mut session: UnixStream) -> Result<()> {
    if protocol == Protocol::Two {
        session.write_all(&cc2::encode(Kind::Command(Command::DisconnectShim), &[]))?;
    }
    Ok(())
}

fn process(name: &str, seq: u64) -> Process {
    Process {
        id: Some(name.to_owned()),
        stdio: seq,
        args: vec![name.to_owned()],
        workdir: "/".to_owned(),
        ..Process::default()
    }
}

/// A connection that has claimed a token.
fn connect_shim(socket: &Path, token: &str) -> Result<UnixStream> {
    let mut shim = UnixStream::connect(socket)?;
    shim.set_read_timeout(PATIENCE)?;
    let payload = serde_json::to_vec(&cc2::ConnectShim { token: token.to_owned() })?;
    shim.write_all(&cc2::encode(Kind::Command(Command::ConnectShim), &payload))?;
    let mut decoder = cc2::Decoder::default();
    let mut buffer = [0; 4096];
    loop {
        let read = shim.read(&mut buffer).context("the daemon did not answer a shim")?;
        if read == 0 {
            bail!("the daemon closed a shim's connection");
        }
        decoder.push(&buffer[..read]);
        let Some(frame) = decoder.next_frame()? else { continue };
        match frame.kind {
            Kind::Response { command: Command::ConnectShim, error: false } if decoder.rest().is_empty() => break,
            other => bail!("{other:?} as the answer to a shim: {}", String::from_utf8_lossy(&frame.payload)),
        }
    }
    shim.set_read_timeout(None)?;
    Ok(shim)
}

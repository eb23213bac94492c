//! One session of the demo: a command in a VM, what goes in, what comes out, and the checksums of both.
//!
//! Owns the session until its [`Outcome`] is dropped, so that it stays in the daemon's route table meanwhile. The
//! asymmetry to know: what goes in is made on the fly and never kept, what comes out is kept up to a bound.

use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use anyhow::{Context, bail};
use sha2::{Digest, Sha256};

use super::stage::Stage;
use crate::client::{Client, Event, Session, SessionReader, SessionWriter, Stream};
use crate::wire::hyper::{EnvVar, ExecCmd, Process, StreamSeq};

/// Time one read or write may take before the demo calls the daemon stuck.
const PATIENCE: Duration = Duration::from_secs(60);

/// Bytes made and written at once.
const PIECE: usize = 64 * 1024;

/// Bytes of output kept for showing.
const KEPT: usize = 16 * 1024;

/// What a command reads.
#[derive(Debug, Clone)]
pub(super) enum Input {
    /// This text.
    Text(&'static str),
    /// So many bytes that look random and are the same for the same seed.
    Random {
        /// Where the row of bytes starts.
        seed: u64,
        /// How many.
        len: u64,
    },
}

/// A command to run.
#[derive(Debug, Clone)]
pub(super) struct Task {
    /// Where.
    pub(super) vm: String,
    /// Program and arguments.
    pub(super) args: Vec<String>,
    /// Its stdin.
    pub(super) input: Input,
}

/// How many bytes, and their SHA-256.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sum {
    /// How many.
    pub(super) bytes: u64,
    /// Their checksum in hexadecimal.
    pub(super) sha256: String,
}

/// What a command did.
#[derive(Debug)]
pub(super) struct Outcome {
    /// The session's first sequence.
    pub(super) io_base: StreamSeq,
    /// What went in.
    pub(super) sent: Sum,
    /// What came out at stdout.
    pub(super) received: Sum,
    /// The beginning of stdout.
    pub(super) stdout: Vec<u8>,
    /// The beginning of stderr.
    pub(super) stderr: Vec<u8>,
    /// Its exit status.
    pub(super) status: u8,
    _session: (SessionReader, SessionWriter),
}

/// Counts and hashes.
#[derive(Debug, Default)]
struct Summing {
    bytes: u64,
    hash: Sha256,
}

impl Summing {
    fn add(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        self.hash.update(bytes);
    }

    fn finish(self) -> Sum {
        let sha256 = self.hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Sum { bytes: self.bytes, sha256 }
    }
}

impl Task {
    pub(super) fn new(vm: &str, args: &[&str], input: Input) -> Task {
        Task { vm: vm.to_owned(), args: args.iter().map(|&arg| arg.to_owned()).collect(), input }
    }

    /// Makes its session; nothing runs yet.
    pub(super) fn prepare(&self, stage: &Stage) -> anyhow::Result<Prepared<'_>> {
        let mut client = stage.client()?;
        client.attach(&self.vm)?;
        let (io_base, fd) = client.allocate_io(2)?;
        let (mut reader, mut writer) = Session::new(io_base, 2, fd).split();
        reader.set_timeout(Some(PATIENCE))?;
        writer.set_timeout(Some(PATIENCE))?;
        Ok(Prepared { task: self, client, io_base, reader, writer })
    }

    fn command(&self, io_base: StreamSeq) -> ExecCmd {
        let path = EnvVar { env: "PATH".to_owned(), value: "/usr/local/bin:/usr/bin:/bin".to_owned() };
        let process = Process {
            id: Some(format!("demo-{io_base}")),
            stdio: io_base.0,
            stderr: io_base.0.saturating_add(1),
            args: self.args.clone(),
            envs: vec![path],
            workdir: "/".to_owned(),
            ..Process::default()
        };
        ExecCmd { container: String::new(), process }
    }
}

/// A task that has its session.
#[derive(Debug)]
pub(super) struct Prepared<'a> {
    task: &'a Task,
    client: Client,
    io_base: StreamSeq,
    reader: SessionReader,
    writer: SessionWriter,
}

impl Prepared<'_> {
    /// Runs it to its end; `progress` hears of each piece of stdout.
    pub(super) fn run(self, mut progress: impl FnMut(u64)) -> anyhow::Result<Outcome> {
        let Prepared { task, mut client, io_base, mut reader, writer } = self;
        client.hyper("execcmd", &task.command(io_base)).with_context(|| format!("cannot run {}", task.args[0]))?;
        let sent = spawn_writer(task.input.clone(), writer);
        let mut output = Output::default();
        while !output.is_complete() {
            let batch = reader.read_batch().context("reading the session")?;
            let Some(batch) = batch else { bail!("the session of {} ended without an exit status", task.args[0]) };
            for event in batch {
                progress(output.take(event?));
            }
        }
        let (sent, writer) = sent.recv().context("the thread that writes stdin is gone")?;
        Ok(Outcome {
            io_base,
            sent,
            received: output.sum.finish(),
            stdout: output.stdout,
            stderr: output.stderr,
            status: output.status.unwrap_or_default(),
            _session: (reader, writer),
        })
    }
}

/// What has come out so far.
#[derive(Debug, Default)]
struct Output {
    sum: Summing,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    stderr_ended: bool,
    status: Option<u8>,
}

impl Output {
    fn is_complete(&self) -> bool {
        self.status.is_some() && self.stderr_ended
    }

    /// Takes an event; returns the bytes of stdout in it.
    fn take(&mut self, event: Event<'_>) -> u64 {
        match event {
            Event::Stdout(bytes) => {
                self.sum.add(bytes);
                keep(&mut self.stdout, bytes);
                return bytes.len() as u64;
            }
            Event::Stderr(bytes) => keep(&mut self.stderr, bytes),
            Event::Ended(stream) => self.stderr_ended |= stream == Stream::Stderr,
            Event::ExitStatus(status) => self.status = Some(status),
        }
        0
    }
}

fn keep(kept: &mut Vec<u8>, bytes: &[u8]) {
    let room = KEPT - kept.len().min(KEPT);
    kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
}

/// Writes the input and its end; gives back what was sent, and the writer so that the session stays whole.
fn spawn_writer(input: Input, mut writer: SessionWriter) -> Receiver<(Sum, SessionWriter)> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut sum = Summing::default();
        // A session that broke is reported by its reader, and a sum that falls short by whoever compares.
        let _ = write_input(&input, &mut writer, &mut sum).and_then(|()| writer.end_stdin());
        let _ = sender.send((sum.finish(), writer));
    });
    receiver
}

fn write_input(input: &Input, writer: &mut SessionWriter, sum: &mut Summing) -> crate::client::Result<()> {
    match *input {
        Input::Text(text) => {
            sum.add(text.as_bytes());
            writer.write_stdin(text.as_bytes())
        }
        Input::Random { seed, len } => {
            let mut row = Row(seed);
            let mut piece = vec![0; PIECE];
            let mut left = len;
            while left > 0 {
                let size = usize::try_from(left).map_or(PIECE, |left| left.min(PIECE));
                row.fill(&mut piece[..size]);
                sum.add(&piece[..size]);
                writer.write_stdin(&piece[..size])?;
                left -= size as u64;
            }
            Ok(())
        }
    }
}

/// SplitMix64: cheap, and no two sessions' bytes are alike, so that a frame in the wrong session shows.
#[derive(Debug)]
struct Row(u64);

impl Row {
    fn fill(&mut self, out: &mut [u8]) {
        for piece in out.chunks_mut(8) {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut mixed = self.0;
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            piece.copy_from_slice(&(mixed ^ (mixed >> 31)).to_le_bytes()[..piece.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_repeat_and_differ() {
        let row = |seed| {
            let mut bytes = [0; 21];
            Row(seed).fill(&mut bytes);
            bytes
        };
        assert_eq!(row(1), row(1));
        assert_ne!(row(1), row(2));
    }

    #[test]
    fn sums_do_not_depend_on_pieces() {
        let (mut one, mut two) = (Summing::default(), Summing::default());
        one.add(b"abc");
        two.add(b"a");
        two.add(b"bc");
        let sum = one.finish();
        assert_eq!(sum, two.finish());
        assert_eq!(sum.sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn output_is_complete_with_its_status_and_stderr_s_end() {
        let mut output = Output::default();
        assert_eq!(output.take(Event::Stdout(&[0; KEPT])), KEPT as u64);
        assert_eq!(output.take(Event::Stdout(b"more")), 4);
        assert_eq!((output.stdout.len(), output.sum.bytes), (KEPT, KEPT as u64 + 4));
        output.take(Event::ExitStatus(1));
        assert!(!output.is_complete());
        output.take(Event::Ended(Stream::Stderr));
        assert!(output.is_complete());
    }
}

//! Control channel messages as typed commands. Bytes are checked here once; what comes out needs no second look.
//!
//! Nothing here acts. The asymmetry to know: a message that is well framed but wrong inside is the sender's mistake
//! about one command and gets an ERROR; only broken framing ends a connection.

use std::fmt;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::wire::hyper::{
    Code, ExecCmd, FileCommand, KillContainer, Message, NewContainer, Process, RemoveContainer, SignalProcess,
    StreamSeq, WinSize,
};

/// Payload of `startpod`, as far as this agent uses it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct StartPod {
    /// Name for the guest.
    pub(super) hostname: String,
    /// Directory that relative root directories start at.
    pub(super) share_dir: String,
    /// Containers to start at once.
    pub(super) containers: Vec<NewContainer>,
}

/// Which process a command means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    /// The one with this `stdio` sequence (0.7).
    Seq(StreamSeq),
    /// The container's process with this id (1.x); an empty id is the container's first process.
    Named {
        /// Container, empty for the agent's own root.
        container: String,
        /// The process's `id`.
        process: String,
    },
}

/// One command, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Command {
    Version,
    Ping,
    StartPod(StartPod),
    DestroyPod,
    Exec(Box<ExecCmd>),
    NewContainer(Box<NewContainer>),
    KillContainer(KillContainer),
    RemoveContainer(RemoveContainer),
    SignalProcess { target: Target, signal: i32 },
    WinSize { target: Target, rows: u16, columns: u16 },
    WriteFile { file: FileCommand, data: Vec<u8> },
    ReadFile(FileCommand),
    OnlineCpuMem,
}

/// Why a command gets an ERROR; the text is its payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal(pub(super) String);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A refusal with this text.
pub(super) fn refuse<T>(text: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal(text.into()))
}

impl Command {
    /// Checks one message.
    pub(super) fn parse(message: Message) -> Result<Command, Refusal> {
        let Some(code) = Code::from_u32(message.code) else {
            return refuse(format!("unknown command {}", message.code));
        };
        let payload = message.payload;
        match code {
            Code::Version => Ok(Command::Version),
            Code::Ping => Ok(Command::Ping),
            Code::StartPod => start_pod(&payload),
            Code::DestroyPod => Ok(Command::DestroyPod),
            Code::ExecCmd => exec(&payload),
            Code::NewContainer => {
                json(code, &payload).and_then(|new| checked_container(new).map(Command::NewContainer))
            }
            Code::KillContainer => kill(&payload),
            Code::RemoveContainer => json(code, &payload).map(Command::RemoveContainer),
            Code::SignalProcess => signal(&payload),
            Code::WinSize => winsize(&payload),
            Code::WriteFile => write_file(&payload),
            Code::ReadFile => json(code, &payload).and_then(|file| checked_file(file).map(Command::ReadFile)),
            Code::OnlineCpuMem => Ok(Command::OnlineCpuMem),
            Code::SetupInterface | Code::SetupRoute | Code::DeleteInterface => {
                refuse(format!("{} is not supported by this agent: it leaves the network as it is", code.name()))
            }
            Code::GetPod | Code::StopPod | Code::RestartContainer | Code::FinishCmd | Code::FinishPod => {
                refuse(format!("{} is deprecated and not supported by this agent", code.name()))
            }
            Code::Ready | Code::Ack | Code::Error | Code::Next | Code::ProcessAsyncEvent => {
                refuse(format!("{} is not a command", code.name()))
            }
        }
    }
}

fn json<T: DeserializeOwned>(code: Code, payload: &[u8]) -> Result<T, Refusal> {
    // C hosts send the string's terminating zero along.
    let payload = payload.strip_suffix(&[0]).unwrap_or(payload);
    serde_json::from_slice(payload).map_err(|error| Refusal(format!("{}: invalid payload: {error}", code.name())))
}

fn start_pod(payload: &[u8]) -> Result<Command, Refusal> {
    let mut pod: StartPod = json(Code::StartPod, payload)?;
    for container in std::mem::take(&mut pod.containers) {
        pod.containers.push(*checked_container(container)?);
    }
    Ok(Command::StartPod(pod))
}

fn exec(payload: &[u8]) -> Result<Command, Refusal> {
    let exec: ExecCmd = json(Code::ExecCmd, payload)?;
    check_process(&exec.process)?;
    Ok(Command::Exec(Box::new(exec)))
}

fn kill(payload: &[u8]) -> Result<Command, Refusal> {
    let kill: KillContainer = json(Code::KillContainer, payload)?;
    check_signal(kill.signal)?;
    Ok(Command::KillContainer(kill))
}

fn signal(payload: &[u8]) -> Result<Command, Refusal> {
    let SignalProcess { container, process, signal } = json(Code::SignalProcess, payload)?;
    check_signal(signal)?;
    Ok(Command::SignalProcess { target: Target::Named { container, process }, signal })
}

fn winsize(payload: &[u8]) -> Result<Command, Refusal> {
    let size: WinSize = json(Code::WinSize, payload)?;
    let target = match size.seq {
        0 => Target::Named { container: size.container, process: size.process },
        seq => Target::Seq(StreamSeq(seq)),
    };
    Ok(Command::WinSize { target, rows: size.row, columns: size.column })
}

fn write_file(payload: &[u8]) -> Result<Command, Refusal> {
    let mut values = serde_json::Deserializer::from_slice(payload).into_iter::<FileCommand>();
    let file = match values.next() {
        Some(Ok(file)) => checked_file(file)?,
        Some(Err(error)) => return refuse(format!("writefile: invalid payload: {error}")),
        None => return refuse("writefile: invalid payload: empty"),
    };
    let data = payload.get(values.byte_offset()..).unwrap_or_default().to_vec();
    Ok(Command::WriteFile { file, data })
}

fn check_signal(signal: i32) -> Result<(), Refusal> {
    if (1..=64).contains(&signal) { Ok(()) } else { refuse(format!("{signal} is not a signal number (1 to 64)")) }
}

fn checked_file(file: FileCommand) -> Result<FileCommand, Refusal> {
    check_text("file", &file.file)?;
    if file.file.is_empty() { refuse("the file has no name") } else { Ok(file) }
}

fn checked_container(new: NewContainer) -> Result<Box<NewContainer>, Refusal> {
    if new.id.is_empty() {
        return refuse("the container has no id");
    }
    check_text("rootfs", &new.rootfs)?;
    check_process(&new.process)?;
    Ok(Box::new(new))
}

/// What no kernel call could take, and what the protocol forbids.
fn check_process(process: &Process) -> Result<(), Refusal> {
    if process.args.first().is_none_or(String::is_empty) {
        return refuse("the process has no args: nothing to run");
    }
    if process.terminal && process.stderr != 0 {
        return refuse("a process with a terminal has no stderr of its own: leave it out or set it to 0");
    }
    if process.stdio != 0 && process.stdio == process.stderr {
        return refuse("stdio and stderr need different sequences");
    }
    for arg in &process.args {
        check_text("args", arg)?;
    }
    for var in &process.envs {
        check_text("env", &var.env)?;
        check_text("env", &var.value)?;
        if var.env.is_empty() || var.env.contains('=') {
            return refuse(format!("'{}' cannot be the name of an environment variable", var.env));
        }
    }
    check_text("workdir", &process.workdir)
}

fn check_text(what: &str, text: &str) -> Result<(), Refusal> {
    if text.contains('\0') { refuse(format!("{what} contains a zero byte")) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(code: Code, payload: &str) -> Result<Command, Refusal> {
        Command::parse(Message::new(code, payload))
    }

    #[test]
    fn plain_commands() {
        assert_eq!(parse(Code::Ping, ""), Ok(Command::Ping));
        assert_eq!(parse(Code::Version, ""), Ok(Command::Version));
        assert_eq!(parse(Code::DestroyPod, ""), Ok(Command::DestroyPod));
        let pod = parse(Code::StartPod, r#"{"hostname":"guest","shareDir":"/share","interfaces":[]}"#).unwrap();
        let Command::StartPod(pod) = pod else { panic!("{pod:?}") };
        assert_eq!((pod.hostname.as_str(), pod.share_dir.as_str()), ("guest", "/share"));
    }

    #[test]
    fn unknown_deprecated_and_unsupported_codes_say_so() {
        assert!(Command::parse(Message { code: 99, payload: vec![] }).unwrap_err().0.contains("unknown command 99"));
        assert!(parse(Code::StopPod, "").unwrap_err().0.contains("deprecated"));
        assert!(parse(Code::SetupRoute, "{}").unwrap_err().0.contains("not supported by this agent"));
        assert!(parse(Code::Ack, "").unwrap_err().0.contains("not a command"));
    }

    #[test]
    fn winsize_has_two_ways_to_name_its_process() {
        let by_seq = parse(Code::WinSize, r#"{"seq":7,"row":2,"column":3}"#).unwrap();
        assert_eq!(by_seq, Command::WinSize { target: Target::Seq(StreamSeq(7)), rows: 2, columns: 3 });
        let by_name = parse(Code::WinSize, r#"{"container":"c","process":"p","row":2,"column":3}"#).unwrap();
        let target = Target::Named { container: "c".into(), process: "p".into() };
        assert_eq!(by_name, Command::WinSize { target, rows: 2, columns: 3 });
    }

    #[test]
    fn writefile_takes_the_raw_bytes_after_its_json() {
        let mut payload = br#"{"container":"c","file":"/f"}"#.to_vec();
        payload.extend_from_slice(b"{\0\xff raw");
        let parsed = Command::parse(Message::new(Code::WriteFile, payload)).unwrap();
        let file = FileCommand { container: "c".into(), file: "/f".into() };
        assert_eq!(parsed, Command::WriteFile { file, data: b"{\0\xff raw".to_vec() });
        assert!(parse(Code::WriteFile, "").is_err());
        assert!(parse(Code::WriteFile, "raw").is_err());
    }

    #[test]
    fn processes_that_cannot_be_are_refused() {
        let bad = [
            r#"{"process":{"args":[]}}"#,
            r#"{"process":{"args":[""]}}"#,
            r#"{"process":{"args":["a\u0000b"]}}"#,
            r#"{"process":{"args":["a"],"terminal":true,"stdio":1,"stderr":2}}"#,
            r#"{"process":{"args":["a"],"stdio":1,"stderr":1}}"#,
            r#"{"process":{"args":["a"],"envs":[{"env":"A=B","value":""}]}}"#,
            r#"{"process":{"args":["a"],"workdir":"\u0000"}}"#,
            r#"{"process":{"args":"a"}}"#,
            "{",
            "",
        ];
        for payload in bad {
            assert!(parse(Code::ExecCmd, payload).is_err(), "{payload}");
        }
        assert!(parse(Code::ExecCmd, "{\"process\":{\"args\":[\"a\"]}}\0").is_ok());
    }

    #[test]
    fn signal_numbers_are_checked() {
        for signal in [0, -1, 65] {
            assert!(parse(Code::KillContainer, &format!(r#"{{"container":"c","signal":{signal}}}"#)).is_err());
        }
        assert!(parse(Code::KillContainer, r#"{"container":"c","signal":64}"#).is_ok());
    }
}

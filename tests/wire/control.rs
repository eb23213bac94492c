//! The control channel: golden messages of every kind, in every cut, at every bound, and the payloads' JSON.

use proptest::collection::vec;
use proptest::prelude::*;
use ringway::limits;
use ringway::wire::DecodeError;
use ringway::wire::hyper::{
    Code, EnvVar, ExecCmd, FileCommand, KillContainer, Message, MessageDecoder, NewContainer, Process, RemoveContainer,
    SignalProcess, WinSize,
};

use crate::{cuts, golden};

/// One message of each kind: its code, the name clients use, its bytes.
const MESSAGES: [(Code, &str, &str); 26] = [
    (Code::Version, "version", "00000000 00000008 |"),
    (Code::StartPod, "startpod", r#"00000001 0000003e |{"hostname":"pod","shareDir":"rootfs","containers":[]}"#),
    (Code::GetPod, "getpod", "00000002 00000008 |"),
    (Code::StopPod, "stoppod", "00000003 00000008 |"),
    (Code::DestroyPod, "destroypod", "00000004 00000008 |"),
    (Code::RestartContainer, "restartcontainer", r#"00000005 0000001a |{"container":"c1"}"#),
    (
        Code::ExecCmd,
        "execcmd",
        "00000006 000000a5 |{\"container\":\"c1\",\
        \"process\":{\"id\":\"p1\",\"terminal\":false,\"stdio\":1,\"stderr\":2,\
        \"args\":[\"/bin/echo\",\"hi\"],\"envs\":[{\"env\":\"PATH\",\"value\":\"/bin\"}],\"workdir\":\"/\"}}",
    ),
    (Code::FinishCmd, "finishcmd", "00000007 00000008 |"),
    (Code::Ready, "ready", "00000008 00000008 |"),
    (Code::Ack, "ack", "00000009 00000008 |"),
    (Code::Error, "error", "0000000a 00000019 |no such container"),
    (Code::WinSize, "winsize", r#"0000000b 00000026 |{"seq":1,"row":24,"column":80}"#),
    (Code::Ping, "ping", "0000000c 00000008 |"),
    (Code::FinishPod, "finishpod", "0000000d 00000008 |"),
    (Code::Next, "next", "0000000e 0000000c |\0\0\0\x08"),
    (
        Code::WriteFile,
        "writefile",
        "0000000f 00000042 |{\"container\":\"c1\",\"file\":\"/etc/hosts\"}\
        127.0.0.1 localhost\n",
    ),
    (Code::ReadFile, "readfile", r#"00000010 0000002e |{"container":"c1","file":"/etc/hosts"}"#),
    (
        Code::NewContainer,
        "newcontainer",
        "00000011 000000e6 |{\"id\":\"c1\",\"rootfs\":\"rootfs\",\"image\":\"\",\
        \"process\":{\"id\":\"p1\",\"terminal\":false,\"stdio\":1,\"stderr\":2,\
        \"args\":[\"/bin/echo\",\"hi\"],\"envs\":[{\"env\":\"PATH\",\"value\":\"/bin\"}],\"workdir\":\"/\"},\
        \"restartPolicy\":\"never\",\"initialize\":false}",
    ),
    (Code::KillContainer, "killcontainer", r#"00000012 00000026 |{"container":"c1","signal":15}"#),
    (Code::OnlineCpuMem, "onlinecpumem", "00000013 00000008 |"),
    (Code::SetupInterface, "setupinterface", r#"00000014 00000019 |{"device":"eth0"}"#),
    (Code::SetupRoute, "setuproute", r#"00000015 00000015 |{"routes":[]}"#),
    (Code::RemoveContainer, "removecontainer", r#"00000016 0000001a |{"container":"c1"}"#),
    (
        Code::ProcessAsyncEvent,
        "processasyncevent",
        "00000017 00000047 |{\"container\":\"c1\",\"process\":\"p1\",\
        \"event\":\"finished\",\"status\":3}",
    ),
    (Code::SignalProcess, "signalprocess", r#"00000018 00000034 |{"container":"c1","process":"p1","signal":2}"#),
    (Code::DeleteInterface, "deleteinterface", r#"00000019 00000019 |{"device":"eth0"}"#),
];

fn process() -> Process {
    Process {
        id: Some("p1".to_owned()),
        stdio: 1,
        stderr: 2,
        args: vec!["/bin/echo".to_owned(), "hi".to_owned()],
        envs: vec![EnvVar { env: "PATH".to_owned(), value: "/bin".to_owned() }],
        workdir: "/".to_owned(),
        ..Process::default()
    }
}

fn json<T: serde::Serialize>(payload: &T) -> Vec<u8> {
    serde_json::to_vec(payload).expect("plain data serializes")
}

/// Messages `decoder` has whole.
fn all(decoder: &mut MessageDecoder) -> Result<Vec<Message>, DecodeError> {
    std::iter::from_fn(|| decoder.next_message().transpose()).collect()
}

#[test]
fn every_kind_has_its_bytes_and_its_name() {
    for (number, (code, name, written)) in (0..).zip(MESSAGES) {
        let bytes = golden(written);
        let message = Message::new(code, &bytes[8..]);
        assert_eq!(message.encode(), bytes, "{name}");
        assert_eq!((message.code, code.name()), (number, name));
        assert_eq!((Code::from_u32(number), Code::from_name(name)), (Some(code), Some(code)));
    }
    assert_eq!(Code::from_u32(26), None);
    assert_eq!(Code::from_u32(u32::MAX), None);
    for unknown in ["", "getversion", "Version", "psContainer", "ping "] {
        assert_eq!(Code::from_name(unknown), None, "{unknown}");
    }
}

#[test]
fn payloads_are_written_as_the_golden_bytes_have_them() {
    let written = |code: Code| golden(MESSAGES[code as usize].2)[8..].to_vec();
    let container = || "c1".to_owned();
    let exec = ExecCmd { container: container(), process: process() };
    let new = NewContainer {
        id: container(),
        rootfs: "rootfs".to_owned(),
        image: String::new(),
        process: process(),
        restart_policy: "never".to_owned(),
        initialize: false,
    };
    let file = FileCommand { container: container(), file: "/etc/hosts".to_owned() };
    assert_eq!(json(&exec), written(Code::ExecCmd));
    assert_eq!(json(&new), written(Code::NewContainer));
    assert_eq!(json(&KillContainer { container: container(), signal: 15 }), written(Code::KillContainer));
    assert_eq!(json(&RemoveContainer { container: container() }), written(Code::RemoveContainer));
    assert_eq!(json(&WinSize { seq: 1, row: 24, column: 80, ..WinSize::default() }), written(Code::WinSize));
    assert_eq!(json(&file), written(Code::ReadFile));
    assert!(written(Code::WriteFile).starts_with(&json(&file)));
    let signal = SignalProcess { container: container(), process: "p1".to_owned(), signal: 2 };
    assert_eq!(json(&signal), written(Code::SignalProcess));
    assert_eq!(serde_json::from_slice::<ExecCmd>(&json(&exec)).expect("reads back"), exec);
    assert_eq!(serde_json::from_slice::<NewContainer>(&json(&new)).expect("reads back"), new);
}

#[test]
fn newer_agents_are_told_the_size_by_process() {
    let size = WinSize { container: "c1".into(), process: "p1".into(), row: 24, column: 80, ..WinSize::default() };
    assert_eq!(json(&size), br#"{"container":"c1","process":"p1","row":24,"column":80}"#);
}

#[test]
fn a_terminal_has_no_stderr_and_absent_members_stay_absent() {
    let shell = Process { terminal: true, stdio: 7, args: vec!["sh".to_owned()], ..Process::default() };
    assert_eq!(json(&shell), br#"{"terminal":true,"stdio":7,"args":["sh"],"envs":[],"workdir":""}"#);
}

#[test]
fn payloads_are_read_leniently() {
    let read = |text: &str| serde_json::from_str::<ExecCmd>(text);
    let nulls = r#"{"container":null,"process":{"id":null,"terminal":null,"stdio":4,"stderr":null,"args":null,
        "envs":null,"workdir":null,"user":null,"group":null,"additionalGroups":null,"noNewPrivs":true},"more":[]}"#;
    let expected = ExecCmd { container: String::new(), process: Process { stdio: 4, ..Process::default() } };
    assert_eq!(read(nulls).expect("null is absent, unknown members are skipped"), expected);
    assert_eq!(read(r#"{"process":{"stdio":4}}"#).expect("absent members have defaults"), expected);
    for wrong in [
        "",
        "null",
        "{}",
        r#"{"process":null}"#,
        r#"{"process":{"stdio":"4"}}"#,
        r#"{"process":{"stdio":-1}}"#,
        r#"{"process":{"args":"sh"}}"#,
        r#"{"process":{"envs":[{"value":"no name"}]}}"#,
        r#"{"process":{"terminal":1}}"#,
        r#"{"container":1,"process":{}}"#,
        r#"{"process":{}} trailing"#,
    ] {
        assert!(read(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn every_cut_gives_the_same_messages() {
    let bytes: Vec<u8> = MESSAGES.iter().flat_map(|(_, _, written)| golden(written)).collect();
    let expected: Vec<_> = MESSAGES.iter().map(|&(code, _, text)| Message::new(code, &golden(text)[8..])).collect();
    for pieces in cuts(&bytes) {
        let mut decoder = MessageDecoder::new(limits::CONTROL_MESSAGE_MAX);
        let mut found = Vec::new();
        for piece in pieces {
            decoder.push(piece);
            found.extend(all(&mut decoder).expect("golden"));
        }
        assert_eq!(found, expected);
        assert!(!decoder.is_mid_message());
    }
}

#[test]
fn a_message_that_has_begun_is_seen() {
    let bytes = golden("00000009 0000000c |4242");
    let mut decoder = MessageDecoder::new(limits::CONTROL_REPLY_MAX);
    assert!(!decoder.is_mid_message());
    for &byte in &bytes[..bytes.len() - 1] {
        decoder.push(&[byte]);
        assert_eq!(decoder.next_message(), Ok(None));
        assert!(decoder.is_mid_message());
    }
    decoder.push(&bytes[bytes.len() - 1..]);
    assert_eq!(decoder.next_message(), Ok(Some(Message::new(Code::Ack, "4242"))));
    assert!(!decoder.is_mid_message());
}

#[test]
fn lengths_are_checked_before_the_payload_comes() {
    let first = |head: &str, max| {
        let mut decoder = MessageDecoder::new(max);
        decoder.push(&golden(head));
        decoder.next_message()
    };
    let max = limits::CONTROL_MESSAGE_MAX;
    for (head, len) in [("00000009 00000000 |", 0), ("00000009 00000007 |", 7)] {
        assert_eq!(first(head, max), Err(DecodeError::TooShort { len, header: 8 }));
    }
    assert_eq!(first("00000009 00000008 |", max), Ok(Some(Message::new(Code::Ack, ""))));
    assert_eq!(first("00000009 00002800 |", max), Ok(None));
    assert_eq!(first("00000009 00002801 |", max), Err(DecodeError::TooLong { len: 10_241, max: 10_240 }));
    let longest = Err(DecodeError::TooLong { len: u64::from(u32::MAX), max: 10_240 });
    assert_eq!(first("00000009 ffffffff |", max), longest);
    assert_eq!(first("00000009 ffffff |", max), Ok(None));
}

#[test]
fn a_message_of_exactly_the_bound_is_taken() {
    let message = Message::new(Code::Ack, vec![b'a'; limits::CONTROL_MESSAGE_MAX - 8]);
    let bytes = message.encode();
    assert_eq!(bytes.len(), limits::CONTROL_MESSAGE_MAX);
    let mut decoder = MessageDecoder::new(limits::CONTROL_MESSAGE_MAX);
    decoder.push(&bytes);
    assert_eq!(decoder.next_message(), Ok(Some(message)));
}

#[test]
fn good_messages_before_a_bad_length_are_delivered() {
    let mut decoder = MessageDecoder::new(64);
    decoder.push(&golden("00000008 00000008 0000000e 0000000c 00000008 00000009 00000001 |"));
    assert_eq!(decoder.next_message(), Ok(Some(Message::new(Code::Ready, ""))));
    assert_eq!(decoder.next_message(), Ok(Some(Message::new(Code::Next, [0, 0, 0, 8]))));
    assert_eq!(decoder.next_message(), Err(DecodeError::TooShort { len: 1, header: 8 }));
    assert_eq!(decoder.next_message(), Err(DecodeError::TooShort { len: 1, header: 8 }), "the error stays");
}

proptest! {
    #[test]
    fn messages_survive_any_pieces(
        messages in vec((any::<u32>(), vec(any::<u8>(), 0..64)), 0..8),
        lengths in vec(0_usize..20, 1..16),
    ) {
        let messages: Vec<_> = messages.into_iter().map(|(code, payload)| Message { code, payload }).collect();
        let bytes: Vec<u8> = messages.iter().flat_map(Message::encode).collect();
        let (mut rest, mut found, mut decoder) = (&bytes[..], Vec::new(), MessageDecoder::new(72));
        for len in lengths.into_iter().cycle().chain([1]).take(bytes.len()).chain([bytes.len()]) {
            let (piece, after) = rest.split_at(len.min(rest.len()));
            decoder.push(piece);
            found.extend(all(&mut decoder).expect("encoded by us"));
            rest = after;
        }
        prop_assert_eq!(found, messages);
        prop_assert!(!decoder.is_mid_message());
    }
}

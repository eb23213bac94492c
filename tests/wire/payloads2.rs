//! Protocol 2's payloads: golden JSON of all commands and answers, read as Go's decoder reads it; tokens.

use proptest::prelude::*;
use ringway::wire::SlowReader;
use ringway::wire::cc1::AllocateIo;
use ringway::wire::cc2::{
    AttachVm, ConnectShim, ErrorResponse, Hyper, IoBase, LogEntry, RegisterVm, Registered, SessionToken, Signal,
    TOKEN_LEN,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

/// The text of the token whose bytes are 0, 1, 2, …
const TOKEN: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

fn read<T: DeserializeOwned>(json: &str) -> T {
    serde_json::from_str(json).unwrap_or_else(|error| panic!("{json}: {error}"))
}

/// A value has this JSON, and the JSON this value.
fn golden<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(value: &T, json: &str) {
    assert_eq!(serde_json::to_string(value).expect("plain data"), json);
    assert_eq!(read::<T>(json), *value, "{json}");
}

fn register(console: &str, streams: i64) -> RegisterVm {
    RegisterVm {
        container_id: "756535dc".into(),
        ctl_serial: "/run/ctl.sock".into(),
        io_serial: "/run/io.sock".into(),
        console: console.into(),
        num_io_streams: streams,
        slow_reader: None,
    }
}

#[test]
fn commands_have_their_json() {
    let bare = r#"{"containerId":"756535dc","ctlSerial":"/run/ctl.sock","ioSerial":"/run/io.sock"}"#;
    golden(&register("", 0), bare);
    let full = r#","console":"/run/console.sock","numIOStreams":2}"#;
    golden(&register("/run/console.sock", 2), &bare.replace('}', full));
    golden(
        &AttachVm { container_id: "c".into(), num_io_streams: 1, ..AttachVm::default() },
        r#"{"containerId":"c","numIOStreams":1}"#,
    );
    golden(&AttachVm { container_id: "c".into(), num_io_streams: 0, ..AttachVm::default() }, r#"{"containerId":"c"}"#);
    let blocks = AttachVm { slow_reader: Some(SlowReader::Block), ..AttachVm::default() };
    golden(&blocks, r#"{"containerId":"","slowReader":"block"}"#);
    let spills = AllocateIo { n_streams: 1, slow_reader: Some(SlowReader::Spill) };
    golden(&spills, r#"{"nStreams":1,"slowReader":"spill"}"#);
    golden(&ConnectShim { token: TOKEN.into() }, &format!(r#"{{"token":"{TOKEN}"}}"#));
    golden(&Signal { signal_number: 15, columns: 0, rows: 0 }, r#"{"signalNumber":15}"#);
    golden(&Signal { signal_number: 28, columns: 80, rows: 24 }, r#"{"signalNumber":28,"columns":80,"rows":24}"#);
}

#[test]
fn answers_have_their_json() {
    let registered = |tokens| Registered { io: IoBase { url: "unix:///run/proxy.sock".into(), tokens } };
    golden(&registered(None), r#"{"io":{"URL":"unix:///run/proxy.sock","tokens":null}}"#);
    let two = Some(vec!["a".to_owned(), "b".to_owned()]);
    golden(&registered(two), r#"{"io":{"URL":"unix:///run/proxy.sock","tokens":["a","b"]}}"#);
    golden(&registered(Some(vec![])), r#"{"io":{"URL":"unix:///run/proxy.sock","tokens":[]}}"#);
    golden(&ErrorResponse { msg: "say \"no\"\n".into() }, r#"{"msg":"say \"no\"\n"}"#);
}

#[test]
fn log_entries_have_their_json() {
    let entry = |container: &str| LogEntry {
        source: "shim".into(),
        container_id: container.into(),
        level: "debug".into(),
        msg: "hi".into(),
    };
    golden(&entry("c"), r#"{"source":"shim","containerId":"c","level":"debug","msg":"hi"}"#);
    golden(&entry(""), r#"{"source":"shim","level":"debug","msg":"hi"}"#);
}

#[test]
fn hyper_keeps_its_data_byte_for_byte() {
    let data = r#"{ "container":"c", "process" : {"args":["\u0026"],"n":1.50} }"#;
    let json = format!(r#"{{"hyperName":"execcmd","tokens":["{TOKEN}"],"data":{data}}}"#);
    let hyper: Hyper = read(&json);
    assert_eq!((hyper.hyper_name.as_str(), hyper.tokens.as_slice()), ("execcmd", &[TOKEN.to_owned()][..]));
    assert_eq!(hyper.data.as_deref().map(RawValue::get), Some(data));
    assert_eq!(serde_json::to_string(&hyper).expect("plain data"), json);
    let ping = Hyper { hyper_name: "ping".into(), ..Hyper::default() };
    assert_eq!(serde_json::to_string(&ping).expect("plain data"), r#"{"hyperName":"ping"}"#);
}

#[test]
fn absent_null_and_unknown_members_are_harmless() {
    for json in ["{}", "null", r#"{"other":[{"token":1}],"9":null}"#] {
        assert_eq!(read::<RegisterVm>(json), RegisterVm::default());
        assert_eq!(read::<AttachVm>(json), AttachVm::default());
        assert_eq!(read::<ConnectShim>(json), ConnectShim::default());
        assert_eq!(read::<Signal>(json), Signal::default());
        assert_eq!(read::<LogEntry>(json), LogEntry::default());
        assert_eq!(read::<ErrorResponse>(json), ErrorResponse::default());
        assert_eq!(read::<Registered>(json), Registered::default());
        let hyper: Hyper = read(json);
        assert!(hyper.hyper_name.is_empty() && hyper.tokens.is_empty() && hyper.data.is_none(), "{json}");
    }
    assert_eq!(read::<RegisterVm>(r#"{"console":null,"numIOStreams":null}"#), RegisterVm::default());
    let hyper: Hyper = read(r#"{"hyperName":"ping","tokens":null,"data":null}"#);
    assert!(hyper.tokens.is_empty() && hyper.data.is_none());
    assert_eq!(read::<Registered>(r#"{"io":{"URL":"u"}}"#).io.tokens, None);
}

#[test]
fn names_match_in_any_case_and_the_last_counts() {
    let read_back: RegisterVm = read(r#"{"CONTAINERID":"a","containerId":"b","CtlSerial":"c","numiostreams":3}"#);
    let expected =
        RegisterVm { container_id: "b".into(), ctl_serial: "c".into(), num_io_streams: 3, ..RegisterVm::default() };
    assert_eq!(read_back, expected);
    assert_eq!(read::<ConnectShim>(r#"{"Token":"a","token":null}"#).token, "a");
    assert_eq!(read::<Signal>(r#"{"SignalNumber":9,"Rows":1}"#).rows, 1);
    assert_eq!(read::<Registered>(r#"{"IO":{"url":"u","Tokens":["t"]}}"#).io.url, "u");
}

#[test]
fn wrong_types_are_errors() {
    fn refused<T: DeserializeOwned>(json: &str) -> bool {
        serde_json::from_str::<T>(json).is_err()
    }
    for json in ["[]", "1", "\"x\"", "true", "", "{", "{\"containerId\":1}", "{\"numIOStreams\":\"1\"}", "{}{}"] {
        assert!(refused::<RegisterVm>(json), "{json}");
    }
    assert!(refused::<AttachVm>(r#"{"numIOStreams":1.5}"#));
    assert!(refused::<ConnectShim>(r#"{"token":["x"]}"#));
    assert!(refused::<Signal>(r#"{"signalNumber":"TERM"}"#));
    assert!(refused::<Signal>(r#"{"signalNumber":99999999999999999999}"#));
    assert!(refused::<Hyper>(r#"{"tokens":"x"}"#));
    assert!(refused::<LogEntry>(r#"{"msg":{}}"#));
}

#[test]
fn numbers_out_of_range_are_read_for_the_error_to_name_them() {
    for n in [-1, i64::MIN, i64::MAX] {
        assert_eq!(read::<AttachVm>(&format!(r#"{{"numIOStreams":{n}}}"#)).num_io_streams, n);
        assert_eq!(read::<Signal>(&format!(r#"{{"signalNumber":{n}}}"#)).signal_number, n);
    }
}

#[test]
fn a_token_has_one_text() {
    let bytes: [u8; TOKEN_LEN] = std::array::from_fn(|n| u8::try_from(n).expect("short"));
    let token = SessionToken::new(bytes);
    assert_eq!(token.to_string(), TOKEN);
    assert_eq!(SessionToken::parse(TOKEN), Some(token));
    let high = SessionToken::new([0xfb; TOKEN_LEN]);
    assert_eq!(high.to_string(), "-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_s=", "URL-safe");
}

#[test]
fn garbage_is_no_token() {
    let unpadded = TOKEN.trim_end_matches('=');
    let mut texts = vec![String::new(), "=".into(), unpadded.into(), format!("{TOKEN}="), format!("{TOKEN}\n")];
    texts.extend([format!(" {TOKEN}"), format!("{TOKEN}{TOKEN}"), TOKEN[4..].to_owned(), "null".into()]);
    // 31 and 33 bytes; the other alphabet; bits behind the last byte; no ASCII.
    texts.extend(["A".repeat(40) + "AA==", "A".repeat(44), "+/".repeat(21) + "8=", "A".repeat(42) + "B="]);
    texts.extend(["é".repeat(22), "A".repeat(1 << 20)]);
    for text in texts {
        assert_eq!(SessionToken::parse(&text), None, "{text:.60}");
    }
}

#[test]
fn debug_hides_a_token() {
    let token = SessionToken::parse(TOKEN).expect("a token");
    for shown in [format!("{token:?}"), format!("{token:#?}"), format!("{:?}", Some(token))] {
        assert!(shown.contains("SessionToken(…)") && !shown.contains("AAEC"), "{shown}");
    }
}

proptest! {
    #[test]
    fn tokens_survive_a_round_trip(bytes in any::<[u8; TOKEN_LEN]>()) {
        let text = SessionToken::new(bytes).to_string();
        prop_assert_eq!(text.len(), 44);
        prop_assert_eq!(SessionToken::parse(&text), Some(SessionToken::new(bytes)));
    }

    #[test]
    fn payloads_survive_a_round_trip(texts in any::<[String; 4]>(), n in any::<[i64; 3]>()) {
        let [a, b, c, d] = texts;
        let register = RegisterVm {
            container_id: a.clone(),
            ctl_serial: b.clone(),
            io_serial: c.clone(),
            console: d.clone(),
            num_io_streams: n[0],
            slow_reader: None,
        };
        prop_assert_eq!(read::<RegisterVm>(&serde_json::to_string(&register).expect("plain data")), register);
        let signal = Signal { signal_number: n[0], columns: n[1], rows: n[2] };
        prop_assert_eq!(read::<Signal>(&serde_json::to_string(&signal).expect("plain data")), signal);
        let entry = LogEntry { source: a, container_id: b, level: c, msg: d };
        prop_assert_eq!(read::<LogEntry>(&serde_json::to_string(&entry).expect("plain data")), entry);
    }
}

//! How protocol 1's JSON is read: as Go's decoder does where clients may depend on it, and raw data as it is.

use proptest::prelude::*;
use ringway::wire::DecodeError;
use ringway::wire::cc1::{AllocateIo, ContainerRef, Decoder, Hello, Hyper, Request, Response, encode};

/// Reads a request from its JSON.
fn request(json: &[u8]) -> Result<Request, DecodeError> {
    let mut decoder = Decoder::new(64 * 1024);
    decoder.push(&u32::try_from(json.len()).expect("short").to_be_bytes());
    decoder.push(&[0; 4]);
    decoder.push(json);
    decoder.next_message().map(|message| message.expect("a whole message"))
}

/// A request's name and the text of its data.
fn parts(json: &str) -> (String, Option<String>) {
    let request = request(json.as_bytes()).unwrap_or_else(|error| panic!("{json}: {error}"));
    (request.id, request.data.map(|data| data.get().to_owned()))
}

fn hello(json: &str) -> serde_json::Result<Hello> {
    serde_json::from_str(json)
}

#[test]
fn unknown_members_are_skipped() {
    let (id, data) = parts(r#"{"token":[1,{"id":"x"}],"id":"bye","version":null,"data":{"containerId":"a"},"z":1e99}"#);
    assert_eq!((id.as_str(), data.as_deref()), ("bye", Some(r#"{"containerId":"a"}"#)));
    let read = hello(r#"{"console":"c","containerId":"a","more":{"ctlSerial":"x"},"ctlSerial":"b","ioSerial":"d"}"#);
    let expected = Hello { container_id: "a".into(), ctl_serial: "b".into(), io_serial: "d".into() };
    assert_eq!(read.expect("an object"), expected);
}

#[test]
fn absent_and_null_are_the_same() {
    let nothing = (String::new(), None);
    for json in ["{}", "null", r#"{"id":null}"#, r#"{"data":null}"#, r#"{"id":null,"data":null}"#, r#"{"id":""}"#] {
        assert_eq!(parts(json), nothing, "{json}");
    }
    assert_eq!(parts(r#"{"id":"bye","data": null }"#), ("bye".to_owned(), None));
    for json in ["{}", "null", r#"{"containerId":null,"ctlSerial":null,"ioSerial":null}"#] {
        assert_eq!(hello(json).expect("null is absent"), Hello::default());
        assert_eq!(serde_json::from_str::<ContainerRef>(json).expect("null is absent"), ContainerRef::default());
    }
    assert_eq!(serde_json::from_str::<AllocateIo>(r#"{"nStreams":null}"#).expect("null is absent").n_streams, 0);
    let hyper: Hyper = serde_json::from_str(r#"{"hyperName":null,"data":null}"#).expect("null is absent");
    assert_eq!((hyper.hyper_name.as_str(), hyper.data.is_none()), ("", true));
    let response: Response = serde_json::from_str(r#"{"success":true,"error":null,"data":null}"#).expect("likewise");
    assert_eq!(response, Response::ok());
    assert_eq!(serde_json::from_str::<Response>("{}").expect("likewise"), Response::fail(""));
}

#[test]
fn the_text_null_is_a_name_like_any_other() {
    assert_eq!(parts(r#"{"id":"null","data":"null"}"#), ("null".to_owned(), Some(r#""null""#.to_owned())));
}

#[test]
fn names_match_in_any_case() {
    let (id, data) = parts(r#"{"ID":"hello","Data":{}}"#);
    assert_eq!((id.as_str(), data.as_deref()), ("hello", Some("{}")));
    let read = hello(r#"{"containerID":"a","CTLSERIAL":"b","ioserial":"c"}"#).expect("an object");
    assert_eq!(read, Hello { container_id: "a".into(), ctl_serial: "b".into(), io_serial: "c".into() });
    assert_eq!(hello(r#"{"container_id":"a","containerId ":"b"}"#).expect("an object"), Hello::default());
}

#[test]
fn the_last_of_two_members_counts() {
    assert_eq!(parts(r#"{"id":"hello","id":"bye","ID":null}"#).0, "bye");
    assert_eq!(hello(r#"{"containerId":"a","containerId":"b"}"#).expect("an object").container_id, "b");
}

#[test]
fn wrong_types_are_errors() {
    for json in [
        "",
        " ",
        "{",
        "[]",
        "[\"bye\"]",
        "1",
        "true",
        "\"bye\"",
        "{}{}",
        "{} x",
        "nul",
        "{\"id\":1}",
        "{\"id\":[]}",
        "{\"id\":{}}",
        "{\"id\":true}",
        "{\"id\":\"bye\"",
        "{\"id\":\"bye\",}",
        "{id:\"bye\"}",
        "{'id':'bye'}",
        "{\"id\":\"a\nb\"}",
        "{\"data\":}",
        "{\"data\":nul}",
        "{\"data\":{]}",
        "{\"x\":01}",
    ] {
        assert!(matches!(request(json.as_bytes()), Err(DecodeError::Json(_))), "{json}");
    }
    assert!(request(b"{\"id\":\"\xff\"}").is_err(), "not UTF-8");
    assert!(request(b"{\"data\":\"\xff\"}").is_err(), "not UTF-8");
    for json in [r#"{"containerId":1}"#, r#"{"ctlSerial":["a"]}"#, r#"{"ioSerial":{}}"#, "[]", "\"a\"", "1"] {
        assert!(hello(json).is_err(), "{json}");
    }
    for json in [r#"{"nStreams":"2"}"#, r#"{"nStreams":1.5}"#, r#"{"nStreams":1e30}"#, r#"{"nStreams":true}"#] {
        assert!(serde_json::from_str::<AllocateIo>(json).is_err(), "{json}");
    }
    assert!(serde_json::from_str::<Hyper>(r#"{"hyperName":7}"#).is_err());
    assert!(serde_json::from_str::<Response>(r#"{"success":"true"}"#).is_err());
}

#[test]
fn errors_name_the_member() {
    let error = request(br#"{"id":7}"#).expect_err("a number is no name").to_string();
    assert!(error.contains("member id") && error.contains("expected a string"), "{error}");
}

#[test]
fn stream_counts_out_of_range_are_read_for_the_error_to_name_them() {
    for n in [0, -1, 3, i64::MIN, i64::MAX] {
        let read: AllocateIo = serde_json::from_str(&format!(r#"{{"nStreams":{n}}}"#)).expect("an integer");
        assert_eq!(read.n_streams, n);
    }
}

#[test]
fn escapes_of_go_are_read_and_kept() {
    let json = r#"{"id":"hyper","data":{"hyperName":"execcmd","data":{"args":["a \u0026\u0026 b","\u003c\/>"]}}}"#;
    let (_, data) = parts(json);
    let hyper: Hyper = serde_json::from_str(&data.expect("sent")).expect("an object");
    assert_eq!(hyper.data.expect("sent").get(), r#"{"args":["a \u0026\u0026 b","\u003c\/>"]}"#);
    assert_eq!(hello(r#"{"containerId":"a\u0026\ud83d\ude00"}"#).expect("an object").container_id, "a&\u{1f600}");
}

#[test]
fn raw_data_is_kept_byte_for_byte() {
    for text in [
        "{}",
        "{ \"b\" : 1,\n\t\"a\":1.50,  \"a\":2 }",
        r#"{"stdio":18446744073709551616,"x":1e400,"y":-0.0,"z":1E+2}"#,
        r#""text""#,
        "[1 , 2]",
        "false",
        "0.10",
        "{\"é\":\"\u{1f600}\",\"\\u00e9\":\"\\ud800\"}",
        "{\"process\":{\"stdio\":1},\"unknown\":{\"deep\":[[[null]]]}}",
    ] {
        let json = format!(r#"{{"id":"hyper","data": {{"hyperName":"execcmd", "data":  {text}  }} }}"#);
        let (_, data) = parts(&json);
        let hyper: Hyper = serde_json::from_str(&data.expect("sent")).expect("an object");
        assert_eq!(hyper.data.as_ref().expect("sent").get(), text);
        let again = String::from_utf8(encode(&hyper)).expect("JSON");
        assert!(again.ends_with(&format!("\"data\":{text}}}")), "{again}");
    }
}

#[test]
fn deep_nesting_is_no_danger() {
    let deep = format!("{}{}", "[".repeat(30_000), "]".repeat(30_000));
    let (_, data) = parts(&format!(r#"{{"other":{deep},"id":"hyper"}}"#));
    assert_eq!(data, None);
    let (_, data) = parts(&format!(r#"{{"id":"hyper","data":{deep}}}"#));
    assert_eq!(data.expect("sent").len(), deep.len());
}

proptest! {
    #[test]
    fn any_value_is_kept_as_written(numbers in any::<Vec<f64>>(), text in any::<String>(), pretty in any::<bool>()) {
        let value = serde_json::json!({ "numbers": numbers, "text": text });
        let write = if pretty { serde_json::to_string_pretty } else { serde_json::to_string };
        let written = write(&value).expect("plain data serializes");
        let (_, data) = parts(&format!(r#"{{"data":{written},"id":"hyper"}}"#));
        prop_assert_eq!(data, Some(written));
    }
}

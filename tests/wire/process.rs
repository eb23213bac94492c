//! Sequences put into a command's process: where they go, and that everything else stays as it came.

use proptest::prelude::*;
use ringway::wire::process::{ProcessError, StartCommand, assign};
use serde_json::value::RawValue;

fn put(json: &str) -> Result<StartCommand, ProcessError> {
    assign(Some(&RawValue::from_string(json.to_owned()).expect("JSON")), 5)
}

/// The payload the agent gets.
fn payload(json: &str) -> String {
    let command = put(json).unwrap_or_else(|error| panic!("{json}: {error}"));
    String::from_utf8(command.payload).expect("JSON")
}

#[test]
fn other_members_keep_every_byte() {
    let values = [
        "{ \"b\" : 1,\n\t\"a\":1.50,  \"a\":2 }",
        r#"[18446744073709551616, 1e400, -0.0, 1E+2, "\u0026\ud83d\ude00\/"]"#,
        r#""\ud800 alone""#,
        "null",
        "{}",
        "\"é\u{1f600}\"",
    ];
    for value in values {
        let json = format!(r#"{{"x":{value},"process":{{"y":{value},"stdio":0,"z":{value}}},"w":{value}}}"#);
        let process = format!(r#"{{"y":{value},"stdio":5,"z":{value},"stderr":6}}"#);
        assert_eq!(payload(&json), format!(r#"{{"x":{value},"process":{process},"w":{value}}}"#));
    }
}

#[test]
fn the_agent_s_names_are_written() {
    assert_eq!(payload(r#"{"Process":{"STDIO":0,"StdErr":0,"a":1}}"#), r#"{"process":{"stdio":5,"stderr":6,"a":1}}"#);
    assert_eq!(payload(r#"{"pro\u0063ess":{"st\u0064io":0}}"#), r#"{"process":{"stdio":5,"stderr":6}}"#);
}

#[test]
fn one_of_two_members_is_left() {
    let twice = r#"{"process":{"stdio":0,"a":1,"Stdio":0,"a":2,"stderr":null,"STDERR":0}}"#;
    assert_eq!(payload(twice), r#"{"process":{"stdio":5,"a":1,"a":2,"stderr":6}}"#);
    let twice = r#"{"process":{"a":1},"b":0,"process":{"a":2},"PROCESS":null}"#;
    assert_eq!(payload(twice), r#"{"process":{"a":2,"stdio":5,"stderr":6},"b":0}"#);
}

#[test]
fn null_is_absent() {
    assert_eq!(payload(r#"{"process":{"stdio":null,"stderr":null}}"#), r#"{"process":{"stdio":5,"stderr":6}}"#);
    let chosen = put(r#"{"process":{"stdio":7,"stdio":null}}"#).unwrap_err();
    assert_eq!(chosen.to_string(), "expected process.Stdio to be 0, got 7", "null overrides nothing");
    let command = put(r#"{"id":null,"container":"c","process":{"id":null,"terminal":null}}"#).expect("a process");
    assert_eq!((command.container.as_str(), command.process.as_str(), command.terminal), ("c", "", false));
}

#[test]
fn a_terminal_has_one_sequence() {
    for stderr in ["", r#","stderr":0"#, r#","Stderr":null,"stderr":0"#] {
        let json = format!(r#"{{"process":{{"Terminal":true{stderr},"stdio":0,"args":[]}}}}"#);
        assert_eq!(payload(&json), r#"{"process":{"Terminal":true,"stdio":5,"args":[]}}"#);
    }
    assert!(put(r#"{"process":{"terminal":false,"terminal":true}}"#).expect("a process").terminal);
    assert!(!put(r#"{"process":{"terminal":true,"terminal":false}}"#).expect("a process").terminal);
}

#[test]
fn only_zero_is_zero() {
    for value in ["1", "-1", "0.0", "-0", "0e1", "\"0\"", "[]", "{}", "true", "18446744073709551616"] {
        for (member, name) in [("stdio", "Stdio"), ("stderr", "Stderr"), ("STDIO", "Stdio")] {
            let refused = put(&format!(r#"{{"process":{{"{member}":{value}}}}}"#)).unwrap_err();
            assert_eq!(refused.to_string(), format!("expected process.{name} to be 0, got {value}"));
        }
    }
}

#[test]
fn whose_process_it_is() {
    let names = |json: &str| {
        let command = put(json).expect("a process");
        (command.new_container, command.container, command.process)
    };
    let three = |new: &str, old: &str, process: &str| (new.to_owned(), old.to_owned(), process.to_owned());
    assert_eq!(names(r#"{"id":"c","process":{"id":"p"}}"#), three("c", "", "p"));
    assert_eq!(names(r#"{"id":"x","container":"c","process":{"id":"p"}}"#), three("x", "c", "p"));
    assert_eq!(names(r#"{"Container":"c\u0026d","process":{"ID":"p"}}"#), three("", "c&d", "p"));
    assert_eq!(names(r#"{"process":{"id":7}}"#), three("", "", ""));
}

#[test]
fn deep_nesting_is_no_danger() {
    let deep = format!("{}0{}", "{\"a\":[".repeat(15_000), "]}".repeat(15_000));
    let json = format!(r#"{{"x":{deep},"process":{{"y":{deep}}}}}"#);
    let expected = format!(r#"{{"x":{deep},"process":{{"y":{deep},"stdio":5,"stderr":6}}}}"#);
    assert!(payload(&json) == expected);
}

#[test]
fn spaces_between_members_do_not_matter() {
    let spaced = " {\n \"a\" : [ 1 , 2 ] ,\t\"process\" : { \"stdio\" : 0 } \r\n} ";
    assert_eq!(payload(spaced), r#"{"a":[ 1 , 2 ],"process":{"stdio":5,"stderr":6}}"#);
}

#[test]
fn what_cannot_be_started_is_refused() {
    assert_eq!(assign(None, 1), Err(ProcessError::NotAnObject));
    for json in ["[]", "7", "null", "true", "\"process\"", r#"[{"process":{}}]"#] {
        assert_eq!(put(json), Err(ProcessError::NotAnObject), "{json}");
    }
    for json in ["{}", r#"{"process":null}"#, r#"{"process":[]}"#, r#"{"process":"x"}"#, r#"{"process ":{}}"#] {
        assert_eq!(put(json), Err(ProcessError::NoProcess), "{json}");
    }
}

proptest! {
    #[test]
    fn any_member_stays(
        names in prop::collection::vec("[^psPS].*", 0..6),
        text in any::<String>(),
        seq in 1..1_u64 << 53,
    ) {
        let text = serde_json::to_string(&text).expect("plain data");
        let member = |name: &String| format!("{}:{text}", serde_json::to_string(name).expect("plain data"));
        let members: Vec<String> = names.iter().map(member).collect();
        let process = [&["\"stdio\":0".to_owned()], &members[..]].concat().join(",");
        let others: String = members.iter().map(|member| format!("{member},")).collect();
        let json = format!("{{{others}\"process\":{{{process}}}}}");
        let terminal = names.iter().any(|name| name.eq_ignore_ascii_case("terminal"));
        prop_assume!(!terminal);
        let command = assign(Some(&RawValue::from_string(json.clone()).expect("JSON")), seq).expect("a process");
        let put_in = json.replacen("\"stdio\":0", &format!("\"stdio\":{seq}"), 1);
        let end = format!(",\"stderr\":{}}}}}", seq + 1);
        let expected = format!("{}{end}", put_in.strip_suffix("}}").expect("two objects"));
        prop_assert_eq!(String::from_utf8(command.payload).expect("JSON"), expected);
    }
}

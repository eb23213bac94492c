//! The `process` member of `newcontainer` and `execcmd`: putting stream sequences into it, leaving all else as it came.
//!
//! Agents differ in which members they know and some refuse those they do not, so nothing is added but the sequences
//! and nothing is re-written: every other value keeps its bytes. Members come in their order. The asymmetry to know:
//! members are found as Go's decoder finds them, in any case, and what is written has the name the agent knows.

use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer, ser::SerializeMap};
use serde_json::value::{RawValue, to_raw_value};

/// A JSON object whose values are kept as text.
#[derive(Debug, Default)]
pub(super) struct Object(Vec<(String, Box<RawValue>)>);

impl Object {
    /// The members that are called none of `names`, with the text of their values.
    pub(super) fn others(&self, names: &[&str]) -> Vec<(&str, &str)> {
        let named = |key: &str| names.iter().any(|name| name.eq_ignore_ascii_case(key));
        self.0.iter().filter(|(key, _)| !named(key)).map(|(key, value)| (key.as_str(), value.get())).collect()
    }

    pub(super) fn parse(text: &RawValue) -> Option<Object> {
        serde_json::from_str(text.get()).ok()
    }

    /// The last member of that name that is not null, as `Members` picks it.
    pub(super) fn get(&self, name: &str) -> Option<&RawValue> {
        let mut found = self.0.iter().rev().filter(|(key, _)| key.eq_ignore_ascii_case(name));
        found.find(|(_, value)| value.get() != "null").map(|(_, value)| value.as_ref())
    }

    fn string(&self, name: &str) -> String {
        self.get(name).and_then(|value| serde_json::from_str(value.get()).ok()).unwrap_or_default()
    }

    /// Replaces the first member of that name in any case, and drops others; adds it at the end when there is none.
    fn set(&mut self, name: &str, value: Box<RawValue>) {
        match self.0.iter().position(|(key, _)| key.eq_ignore_ascii_case(name)) {
            Some(at) => {
                self.0[at] = (name.to_owned(), value);
                let mut index = 0;
                self.0.retain(|(key, _)| {
                    index += 1;
                    index - 1 == at || !key.eq_ignore_ascii_case(name)
                });
            }
            None => self.0.push((name.to_owned(), value)),
        }
    }

    fn remove(&mut self, name: &str) {
        self.0.retain(|(key, _)| !key.eq_ignore_ascii_case(name));
    }
}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Object, D::Error> {
        deserializer.deserialize_map(Object::default())
    }
}

impl<'de> Visitor<'de> for Object {
    type Value = Object;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Object, A::Error> {
        while let Some(member) = map.next_entry()? {
            self.0.push(member);
        }
        Ok(self)
    }
}

impl Serialize for Object {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (key, value) in &self.0 {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

/// Why sequences cannot be put into a command. What the client is told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProcessError {
    /// The payload is no object.
    #[error("malformed hyper data: expected an object")]
    NotAnObject,
    /// No process to give I/O to.
    #[error("malformed hyper data: no process")]
    NoProcess,
    /// The client chose a sequence; the daemon does.
    #[error("expected process.{member} to be 0, got {got}")]
    Prefilled {
        /// `Stdio` or `Stderr`.
        member: &'static str,
        /// What it said.
        got: String,
    },
}

/// A command with its sequences in place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartCommand {
    /// The payload for the agent.
    pub payload: Vec<u8>,
    /// Its member `id`: the container that newcontainer makes.
    pub new_container: String,
    /// Its member `container`: the one that execcmd runs in.
    pub container: String,
    /// The process's `id`, empty when it has none.
    pub process: String,
    /// It has a terminal, hence no stderr of its own.
    pub terminal: bool,
}

/// Puts `stdio` (and, without a terminal, `stdio + 1` as stderr) into a command's process.
///
/// # Errors
/// What the client is told.
pub fn assign(data: Option<&RawValue>, stdio: u64) -> Result<StartCommand, ProcessError> {
    let mut command = data.and_then(Object::parse).ok_or(ProcessError::NotAnObject)?;
    let process = command.get("process").ok_or(ProcessError::NoProcess)?;
    let mut process = Object::parse(process).ok_or(ProcessError::NoProcess)?;
    for (member, name) in [("stdio", "Stdio"), ("stderr", "Stderr")] {
        if let Some(got) = process.get(member).filter(|value| value.get() != "0") {
            return Err(ProcessError::Prefilled { member: name, got: got.get().to_owned() });
        }
    }
    let terminal = process.get("terminal").is_some_and(|value| value.get() == "true");
    process.set("stdio", number(stdio));
    if terminal {
        process.remove("stderr");
    } else {
        process.set("stderr", number(stdio + 1));
    }
    let id = process.string("id");
    let (new_container, container) = (command.string("id"), command.string("container"));
    command.set("process", to_raw_value(&process).expect("text serializes"));
    let payload = serde_json::to_vec(&command).expect("text serializes");
    Ok(StartCommand { payload, new_container, container, process: id, terminal })
}

fn number(n: u64) -> Box<RawValue> {
    to_raw_value(&n).expect("a number serializes")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(text: &str) -> Box<RawValue> {
        RawValue::from_string(text.to_owned()).unwrap()
    }

    #[test]
    fn sequences_go_in_and_everything_else_stays() {
        let data = r#"{"id":"c","x":  [1, 2.50],"process":{"args":["é"],"stdio":0,"u":1e3,"user":null}}"#;
        let command = assign(Some(&raw(data)), 7).unwrap();
        let want = r#"{"id":"c","x":[1, 2.50],"process":{"args":["é"],"stdio":7,"u":1e3,"user":null,"stderr":8}}"#;
        assert_eq!(String::from_utf8(command.payload).unwrap(), want);
        assert_eq!((command.new_container.as_str(), command.process.as_str(), command.terminal), ("c", "", false));
    }

    #[test]
    fn a_terminal_has_no_stderr() {
        let data = r#"{"container":"c","process":{"id":"p","terminal":true,"stderr":0}}"#;
        let command = assign(Some(&raw(data)), 3).unwrap();
        let want = r#"{"container":"c","process":{"id":"p","terminal":true,"stdio":3}}"#;
        assert_eq!(String::from_utf8(command.payload).unwrap(), want);
        assert_eq!((command.container.as_str(), command.process.as_str(), command.terminal), ("c", "p", true));
    }

    #[test]
    fn what_cannot_be_started_is_refused() {
        assert_eq!(assign(None, 1), Err(ProcessError::NotAnObject));
        for bad in ["[]", "7", "\"text\""] {
            assert_eq!(assign(Some(&raw(bad)), 1), Err(ProcessError::NotAnObject), "{bad}");
        }
        for bad in [r#"{"id":"c"}"#, r#"{"process":null}"#, r#"{"process":[1]}"#] {
            assert_eq!(assign(Some(&raw(bad)), 1), Err(ProcessError::NoProcess), "{bad}");
        }
        let refused = assign(Some(&raw(r#"{"process":{"stdio":5}}"#)), 1).unwrap_err();
        assert_eq!(refused.to_string(), "expected process.Stdio to be 0, got 5");
        let refused = assign(Some(&raw(r#"{"process":{"stderr":6}}"#)), 1).unwrap_err();
        assert_eq!(refused.to_string(), "expected process.Stderr to be 0, got 6");
    }
}

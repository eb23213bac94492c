//! What becomes of a client that does not read: a word of the configuration, of both protocols and of `exec`.
//!
//! One type for all of them, so that they know the same words. It never decides anything itself. The asymmetry to know:
//! a session without a word of its own follows the daemon's.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// What is done about a session whose client is owed more than its bound.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SlowReader {
    /// The rest of its output goes to a file; its VM waits when that is full too.
    #[default]
    Spill,
    /// Its VM waits.
    Block,
    /// The session ends.
    Disconnect,
}

const WORDS: [(SlowReader, &str); 3] =
    [(SlowReader::Spill, "spill"), (SlowReader::Block, "block"), (SlowReader::Disconnect, "disconnect")];

impl SlowReader {
    /// The word for it.
    pub fn word(self) -> &'static str {
        WORDS.iter().find(|(policy, _)| *policy == self).map_or("", |(_, word)| word)
    }
}

impl fmt::Display for SlowReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl FromStr for SlowReader {
    type Err = String;

    fn from_str(text: &str) -> Result<SlowReader, String> {
        let found = WORDS.iter().find(|(_, word)| *word == text).map(|(policy, _)| *policy);
        found.ok_or_else(|| format!("'{}' is none of spill, block, disconnect", text.escape_debug()))
    }
}

impl Serialize for SlowReader {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.word())
    }
}

impl<'de> Deserialize<'de> for SlowReader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<SlowReader, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_word_is_read_as_it_is_written_and_no_other_is() {
        for (policy, word) in WORDS {
            assert_eq!((word.parse(), policy.to_string()), (Ok(policy), word.to_owned()));
        }
        for text in ["", "Spill", "drop", "block "] {
            assert!(text.parse::<SlowReader>().unwrap_err().contains("none of spill, block, disconnect"));
        }
    }
}

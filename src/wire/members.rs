//! Members of a JSON object, read the way the Go programs at both ends of both protocols read them.
//!
//! A name matches without regard to ASCII case, `null` is the same as absent, the last of two members with one name
//! counts, and unknown members are skipped. What it never does is accept a value of the wrong type.

use std::fmt;

use serde::Deserializer;
use serde::de::{DeserializeOwned, Error, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

/// Values of the members asked for, not yet parsed.
#[derive(Debug)]
pub(super) struct Members {
    names: &'static [&'static str],
    values: Vec<Option<Box<RawValue>>>,
}

impl Members {
    /// Reads an object and keeps the members called `names`. `null` counts as an object without members.
    pub(super) fn read<'de, D: Deserializer<'de>>(
        deserializer: D,
        names: &'static [&'static str],
    ) -> Result<Members, D::Error> {
        deserializer.deserialize_any(Members { names, values: vec![None; names.len()] })
    }

    /// The value of a member, its type's default when it is absent.
    pub(super) fn take<T: DeserializeOwned + Default, E: Error>(&mut self, name: &str) -> Result<T, E> {
        match self.take_raw(name) {
            None => Ok(T::default()),
            Some(raw) => serde_json::from_str(raw.get()).map_err(|e| E::custom(format_args!("member {name}: {e}"))),
        }
    }

    /// The text of a member's value.
    pub(super) fn take_raw(&mut self, name: &str) -> Option<Box<RawValue>> {
        let at = self.names.iter().position(|&n| n == name)?;
        self.values[at].take()
    }
}

impl<'de> Visitor<'de> for Members {
    type Value = Members;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_unit<E: Error>(self) -> Result<Members, E> {
        Ok(self)
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Members, A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            match self.names.iter().position(|name| name.eq_ignore_ascii_case(&key)) {
                None => drop(map.next_value::<IgnoredAny>()?),
                Some(at) => {
                    let value = map.next_value::<Box<RawValue>>()?;
                    if value.get() != "null" {
                        self.values[at] = Some(value);
                    }
                }
            }
        }
        Ok(self)
    }
}

//! Values with a syntax of their own: sizes and lists of CPUs, the same in flags and in the file.
//!
//! Owns the syntax only; whether a value makes sense for a setting is decided where settings are checked.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, de};

use crate::limits;

/// A number of bytes, written plainly or with KiB, MiB or GiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Size, String> {
        let trimmed = text.trim();
        let digits = trimmed.len() - trimmed.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, unit) = trimmed.split_at(digits);
        let shift = match unit.trim_start() {
            "" | "B" => Some(0),
            "KiB" => Some(10),
            "MiB" => Some(20),
            "GiB" => Some(30),
            _ => None,
        };
        let parsed = number.parse::<u64>().ok().zip(shift);
        let bytes = parsed.and_then(|(number, shift)| number.checked_mul(1 << shift));
        bytes.map(Size).ok_or_else(|| format!("'{text}' is no size; write bytes, or for example 512KiB, 8MiB, 1GiB"))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Size, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Size;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of bytes, or a text such as \"8MiB\"")
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Size, E> {
                u64::try_from(value).map(Size).map_err(|_| E::custom(format!("{value} is no size: it is negative")))
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Size, E> {
                Ok(Size(value))
            }

            fn visit_str<E: de::Error>(self, value: &str) -> Result<Size, E> {
                value.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// CPU numbers, ascending and each once. Written like `0-3,8`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuList(pub Vec<u32>);

impl FromStr for CpuList {
    type Err = String;

    fn from_str(text: &str) -> Result<CpuList, String> {
        let mut cpus = Vec::new();
        for part in text.split(',').map(str::trim) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let parsed = first.trim().parse::<u32>().ok().zip(last.trim().parse::<u32>().ok());
            let (first, last) =
                parsed.ok_or_else(|| format!("'{part}' is no CPU number or range; write for example 0-3,8"))?;
            if first > last {
                return Err(format!("the range {first}-{last} runs backwards"));
            }
            if last >= limits::CPUS_END {
                return Err(format!("CPU {last} is over the highest number there is, {}", limits::CPUS_END - 1));
            }
            cpus.extend(first..=last);
        }
        cpus.sort_unstable();
        cpus.dedup();
        Ok(CpuList(cpus))
    }
}

impl<'de> Deserialize<'de> for CpuList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<CpuList, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let good =
            [("0", 0), ("4096", 4096), (" 8 MiB ", 8 << 20), ("512KiB", 512 << 10), ("1GiB", 1 << 30), ("7B", 7)];
        for (text, bytes) in good {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text:?}");
        }
        for text in ["", "MiB", "-1", "1.5MiB", "8MB", "8mib", "18446744073709551616", "17179869184GiB", "٣"] {
            let error = text.parse::<Size>().unwrap_err();
            assert!(error.contains("is no size"), "{text:?}: {error}");
        }
    }

    #[test]
    fn cpu_lists() {
        let good: [(&str, &[u32]); 5] =
            [("0", &[0]), ("0-3,8", &[0, 1, 2, 3, 8]), ("8,0-1", &[0, 1, 8]), (" 2 - 3 , 3", &[2, 3]), ("5-5", &[5])];
        for (text, cpus) in good {
            assert_eq!(text.parse(), Ok(CpuList(cpus.to_vec())), "{text:?}");
        }
        for text in ["", ",", "a", "1-", "-1", "3-1", "0-4294967295", "1024", "1 2"] {
            assert!(text.parse::<CpuList>().is_err(), "{text:?}");
        }
    }
}

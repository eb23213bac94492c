//! Bytes to messages and back. No descriptor, no clock, no `unsafe`; every length is checked before it is used.
//!
//! `hyper` is what agents speak, `cc1` what protocol 1 clients speak, `admin` what the admin socket answers;
//! `fuzzing` holds the properties that hold for any bytes. Decoders take bytes in any pieces.

pub mod admin;
pub mod cc1;
pub mod cc2;
pub mod fuzzing;
pub mod hyper;
mod members;
mod pending;
pub mod process;
mod slow_reader;

pub use slow_reader::SlowReader;

/// Why bytes could not be decoded. The connection they came from is at fault and cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A length field below the header's own size.
    #[error("length {len} is shorter than the {header}-byte header")]
    TooShort {
        /// What the field said, in bytes.
        len: u64,
        /// Bytes a header has.
        header: usize,
    },
    /// A length field above the bound.
    #[error("length {len} is over the bound of {max} bytes")]
    TooLong {
        /// What the field said, in bytes.
        len: u64,
        /// The bound, in bytes.
        max: u64,
    },
    /// Another version of the protocol.
    #[error("version {0} instead of 2")]
    Version(u16),
    /// A type or opcode the protocol does not have, or a flag where none may be.
    #[error("type {flags:#04x} with opcode {opcode} is not part of the protocol")]
    Kind {
        /// The type byte.
        flags: u8,
        /// The opcode.
        opcode: u8,
    },
    /// A frame that this side of the protocol never sends, or not here.
    #[error("{0} where none may be")]
    OutOfPlace(&'static str),
    /// A payload that is not the JSON it has to be.
    #[error("invalid JSON: {0}")]
    Json(String),
}

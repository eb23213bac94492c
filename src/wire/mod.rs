//! Bytes to messages and back. No descriptor, no clock, no `unsafe`; every length is checked before it is used.
//!
//! `hyper` is what agents speak, `cc1` what protocol 1 clients speak, `admin` what the admin socket answers;
//! `fuzzing` holds the properties that hold for any bytes. Decoders take bytes in any pieces.

pub mod admin;
pub mod cc1;
pub mod fuzzing;
pub mod hyper;
mod members;
mod pending;

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
    /// A payload that is not the JSON it has to be.
    #[error("invalid JSON: {0}")]
    Json(String),
}

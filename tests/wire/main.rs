//! Golden bytes of what agents and clients speak, and what must hold for bytes that are not golden.
//!
//! Bytes are written as the specification writes them: groups of hexadecimal digits, then `|` and text as it is.

mod control;
mod frames2;
mod json;
mod payloads2;
mod process;
mod requests;
mod stream;

/// The bytes of `hex | text`.
fn golden(written: &str) -> Vec<u8> {
    let (hex, text) = written.split_once('|').expect("hex | text");
    let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).expect("ASCII"), 16).expect("two digits");
    digits.chunks(2).map(byte).chain(text.bytes()).collect()
}

/// Every way to cut `bytes` in two, and the one that leaves single bytes.
fn cuts(bytes: &[u8]) -> impl Iterator<Item = Vec<&[u8]>> {
    let in_two = (0..=bytes.len()).map(|at| vec![&bytes[..at], &bytes[at..]]);
    in_two.chain(std::iter::once(bytes.chunks(1).collect()))
}

//! Listeners, each speaking one dialect. A door parses, authenticates and asks the coordinator; bytes of payload
//! never pass through one.
//!
//! `cc` runs on the coordinator's thread, since its requests are few and short; `admin` has a thread of its own, so
//! that a slow HTTP client delays nobody.

pub mod admin;
pub mod cc;
mod sparing;

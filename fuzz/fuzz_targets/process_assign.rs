//! Any JSON as the command that gets a session's sequences.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| ringway::wire::fuzzing::process_assign(data));

//! The control channel of an agent: any bytes, in any pieces.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| ringway::wire::fuzzing::control_messages(data));

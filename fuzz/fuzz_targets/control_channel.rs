//! The coordinator's end of a control channel: any commands, answers and times.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| ringway::coordinator::fuzzing::control_channel(data));

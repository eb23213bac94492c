//! The agent's end of its control channel: any bytes, in any pieces, as commands and their answers.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| ringway::agent::fuzzing::control_commands(data));

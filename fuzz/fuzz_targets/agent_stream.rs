//! The agent's end of its stream channel: any input, output and broken connections.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| ringway::agent::fuzzing::agent_stream(data));

//! The stream channel of an agent: any bytes as frames.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| ringway::wire::fuzzing::stream_frames(data));

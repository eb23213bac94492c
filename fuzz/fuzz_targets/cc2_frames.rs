//! Protocol 2: any bytes, in any pieces, as frames and their payloads.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| ringway::wire::fuzzing::cc2_frames(data));

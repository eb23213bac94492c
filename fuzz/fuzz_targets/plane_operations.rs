//! The data plane of a shard: any operations on its links and sessions.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| ringway::relay::fuzzing::plane_operations(data));

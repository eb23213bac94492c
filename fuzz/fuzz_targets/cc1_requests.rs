//! Protocol 1: any bytes, in any pieces, as requests and as responses.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| ringway::wire::fuzzing::cc1_requests(data));

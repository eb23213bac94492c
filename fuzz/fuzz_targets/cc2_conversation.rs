//! Protocol 2: a client's whole conversation, until and after it is a shim, in any pieces.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| ringway::door::cc::fuzzing::cc2_conversation(data));

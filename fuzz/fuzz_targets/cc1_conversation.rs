//! Protocol 1: a client's whole conversation, in any pieces.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| ringway::door::cc::fuzzing::cc1_conversation(data));

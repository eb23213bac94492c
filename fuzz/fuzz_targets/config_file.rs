//! Any text as the configuration file.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| ringway::config::fuzzing::config_file(data));

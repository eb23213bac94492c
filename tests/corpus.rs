//! The fuzz targets' corpora as ordinary tests: what a fuzzer once found, or was given to start from, stays checked.

use std::path::Path;

use ringway::wire::fuzzing;

/// The fuzz targets, in the order of the alphabet. Each has a test below.
const TARGETS: [&str; 5] = ["cc1_requests", "cc2_frames", "control_messages", "process_assign", "stream_frames"];

/// Names in a folder of `fuzz`, sorted, without their extension.
fn names(folder: &str) -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(folder);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let stem = |entry: std::io::Result<std::fs::DirEntry>| {
        Path::new(&entry.expect("listed").file_name()).file_stem().map(|stem| stem.to_string_lossy().into_owned())
    };
    let mut names: Vec<_> = entries.filter_map(stem).collect();
    names.sort();
    names
}

/// Runs `check` on every file of a target's corpus, and on what is left of each when the connection ends early.
fn run(target: &str, check: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let files = names(&format!("corpus/{target}"));
    assert!(files.len() >= 10, "{target} has {} files to start from", files.len());
    for file in files {
        println!("{target}/{file}");
        let data = std::fs::read(folder.join(&file)).expect("a corpus file is readable");
        for len in [data.len(), data.len() / 2, data.len().saturating_sub(1)] {
            check(&data[..len]);
        }
    }
}

#[test]
fn control_messages() {
    run("control_messages", fuzzing::control_messages);
}

#[test]
fn stream_frames() {
    run("stream_frames", fuzzing::stream_frames);
}

#[test]
fn cc1_requests() {
    run("cc1_requests", fuzzing::cc1_requests);
}

#[test]
fn cc2_frames() {
    run("cc2_frames", fuzzing::cc2_frames);
}

#[test]
fn process_assign() {
    run("process_assign", fuzzing::process_assign);
}

#[test]
fn every_target_is_run_and_has_a_corpus() {
    assert_eq!(names("fuzz_targets"), TARGETS);
    assert_eq!(names("corpus"), TARGETS);
}

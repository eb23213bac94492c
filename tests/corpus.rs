//! The fuzz targets' corpora as ordinary tests: what a fuzzer once found, or was given to start from, stays checked.

use std::path::{Path, PathBuf};

use ringway::{agent, config, coordinator, door, relay, wire};

/// What holds for any bytes.
type Check = fn(&[u8]);

/// The fuzz targets, in the order of the alphabet. Each has a test below.
const TARGETS: [(&str, Check); 12] = [
    ("agent_stream", agent::fuzzing::agent_stream),
    ("cc1_conversation", door::cc::fuzzing::cc1_conversation),
    ("cc1_requests", wire::fuzzing::cc1_requests),
    ("cc2_conversation", door::cc::fuzzing::cc2_conversation),
    ("cc2_frames", wire::fuzzing::cc2_frames),
    ("config_file", config::fuzzing::config_file),
    ("control_channel", coordinator::fuzzing::control_channel),
    ("control_commands", agent::fuzzing::control_commands),
    ("control_messages", wire::fuzzing::control_messages),
    ("plane_operations", relay::fuzzing::plane_operations),
    ("process_assign", wire::fuzzing::process_assign),
    ("stream_frames", wire::fuzzing::stream_frames),
];

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(name)
}

/// Names in a folder of `fuzz`, sorted, without their extension.
fn names(of: &str) -> Vec<String> {
    let folder = folder(of);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let stem = |entry: std::io::Result<std::fs::DirEntry>| {
        Path::new(&entry.expect("listed").file_name()).file_stem().map(|stem| stem.to_string_lossy().into_owned())
    };
    let mut names: Vec<_> = entries.filter_map(stem).collect();
    names.sort();
    names
}

/// The dictionary of a target: the one its name begins with.
fn dictionary(target: &str) -> &str {
    target.split('_').next().unwrap_or(target)
}

/// The words of a target's dictionary, if it has one.
fn words(target: &str) -> Vec<Vec<u8>> {
    let path = folder("dictionaries").join(dictionary(target)).with_extension("dict");
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().filter(|line| !line.starts_with('#')).map(word).collect()
}

/// What a dictionary's line stands for: quoted text in which `\xNN` is a byte and `\"` a quote.
fn word(line: &str) -> Vec<u8> {
    let text = line.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
    let text = text.unwrap_or_else(|| panic!("{line} is not quoted")).replace("\\\"", "\"");
    let mut parts = text.split("\\x");
    let mut word = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let (byte, rest) = part.split_at_checked(2).unwrap_or_else(|| panic!("{line} has half a byte"));
        word.push(u8::from_str_radix(byte, 16).unwrap_or_else(|error| panic!("{line}: {error}")));
        word.extend_from_slice(rest.as_bytes());
    }
    word
}

/// Runs a target on every file of its corpus, on what is left of each when the connection ends early, and on each with
/// the words of its dictionary put into its middle.
fn run(target: &str) {
    let check = TARGETS.iter().find(|(name, _)| *name == target).map(|(_, check)| check).expect("a target");
    let files = names(&format!("corpus/{target}"));
    assert!(files.len() >= 10, "{target} has {} files to start from", files.len());
    let words = words(target);
    for file in files {
        println!("{target}/{file}");
        let data = std::fs::read(folder("corpus").join(target).join(&file)).expect("a corpus file is readable");
        for len in [data.len(), data.len() / 2, data.len().saturating_sub(1)] {
            check(&data[..len]);
        }
        let (begin, end) = data.split_at(data.len() / 2);
        words.iter().for_each(|word| check(&[begin, word, end].concat()));
    }
}

#[test]
fn agent_stream() {
    run("agent_stream");
}

#[test]
fn cc1_conversation() {
    run("cc1_conversation");
}

#[test]
fn cc1_requests() {
    run("cc1_requests");
}

#[test]
fn cc2_conversation() {
    run("cc2_conversation");
}

#[test]
fn cc2_frames() {
    run("cc2_frames");
}

#[test]
fn config_file() {
    run("config_file");
}

#[test]
fn control_channel() {
    run("control_channel");
}

#[test]
fn control_commands() {
    run("control_commands");
}

#[test]
fn control_messages() {
    run("control_messages");
}

#[test]
fn plane_operations() {
    run("plane_operations");
}

#[test]
fn process_assign() {
    run("process_assign");
}

#[test]
fn stream_frames() {
    run("stream_frames");
}

#[test]
fn every_target_is_run_and_has_a_corpus() {
    let targets = TARGETS.map(|(name, _)| name);
    assert_eq!(names("fuzz_targets"), targets);
    assert_eq!(names("corpus"), targets);
    for name in names("dictionaries") {
        assert!(targets.iter().any(|target| dictionary(target) == name), "{name} is no target's dictionary");
    }
}

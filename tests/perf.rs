//! The measuring harness works: it runs against this build's own daemon, every byte arrives, and its report can be
//! read and compared. How fast anything is plays no part here.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// The harness of this build, built now: `cargo test --test perf` alone does not.
fn harness() -> PathBuf {
    let binary = Path::new(env!("CARGO_BIN_EXE_ringway"));
    let folder = binary.parent().expect("a binary has a folder");
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "--example", "perf", "--manifest-path"]);
    build.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"));
    build.arg("--target-dir").arg(folder.parent().expect("a build has a folder"));
    if !cfg!(debug_assertions) {
        build.arg("--release");
    }
    assert!(build.status().unwrap().success());
    folder.join("examples/perf")
}

fn run(harness: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(harness);
    // Without cargo's name it takes the daemon that is there.
    command.args(args).env_remove("CARGO").stdin(Stdio::null());
    command.output().unwrap()
}

#[test]
fn the_harness_measures_reports_and_compares() {
    let (harness, dir) = (harness(), tempfile::tempdir().unwrap());
    let out = dir.path().to_str().unwrap();
    let daemons = ["--daemon", "ringway", "--daemon", "ringway,protocol=2"];
    let workloads = [
        "out",
        "in",
        "out-single",
        "in-single",
        "echo",
        "echo-half",
        "slow",
        "neighbour",
        "density",
        "control",
        "storm",
    ];
    let flags = ["--quick", "--seconds", "0.1", "--shapes", "2x3", "--vms", "4", "--patience", "60", "--out", out];
    let done = run(&harness, &[&["run"], &workloads[..], &daemons, &flags].concat());
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));

    let results = dir.path().join("results.json");
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(&results).unwrap()).unwrap();
    let entries = report["results"].as_array().unwrap();
    for workload in workloads {
        let of = |name: &str| entries.iter().any(|entry| entry["workload"] == workload && entry["contestant"] == name);
        assert!(of("ringway") && of("ringway-p2"), "{workload} is missing: {report}");
    }
    assert!(entries.iter().all(|entry| entry["failures"].as_array().is_some_and(Vec::is_empty)), "{report}");
    assert!(dir.path().join("results.md").exists());

    let results = results.to_str().unwrap();
    let same = run(&harness, &["compare", results, results, "--threshold", "1"]);
    assert!(same.status.success(), "{}", String::from_utf8_lossy(&same.stdout));
}

#[test]
fn what_is_worse_fails_the_comparison() {
    let (harness, dir) = (harness(), tempfile::tempdir().unwrap());
    let report = |cost: f64| {
        serde_json::json!({
            "form": 1,
            "about": {
                "date": "", "commit": "", "kernel": "", "processor": "", "cpus": 1, "pin": "S", "build": "release",
                "seconds": 1.0, "rounds": 1, "contestants": [], "notes": [],
            },
            "results": [{
                "workload": "out", "shape": "1 x 1", "payload": 64, "contestant": "ringway", "failures": [],
                "measures": [{
                    "name": "CPU ns/frame", "better": "less", "median": cost, "min": cost, "max": cost,
                    "samples": [cost],
                }],
            }],
        })
    };
    let write = |name: &str, cost: f64| {
        let path = dir.path().join(name);
        std::fs::write(&path, report(cost).to_string()).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (before, after) = (write("a.json", 10.0), write("b.json", 12.0));
    let compare = |a: &str, b: &str, threshold: &str| {
        run(&harness, &["compare", a, b, "--threshold", threshold]).status.success()
    };
    assert!(!compare(&before, &after, "1.1"));
    assert!(compare(&before, &after, "1.3"));
    assert!(compare(&after, &before, "1.1"));
}

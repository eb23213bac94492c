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
        "hostile",
        "density",
        "control",
        "storm",
    ];
    let flags = [
        "--quick",
        "--seconds",
        "0.1",
        "--shapes",
        "2x3",
        "--vms",
        "4",
        "--payloads",
        "64,4084",
        "--patience",
        "60",
        "--out",
        out,
    ];
    let done = run(&harness, &[&["run"], &workloads[..], &daemons, &flags].concat());
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));

    let results = dir.path().join("results-X.json");
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(&results).unwrap()).unwrap();
    let entries = report["results"].as_array().unwrap();
    for workload in workloads {
        let of = |name: &str| entries.iter().any(|entry| entry["workload"] == workload && entry["contestant"] == name);
        assert!(of("ringway") && of("ringway-p2"), "{workload} is missing: {report}");
    }
    assert!(entries.iter().all(|entry| entry["failures"].as_array().is_some_and(Vec::is_empty)), "{report}");
    let text = std::fs::read_to_string(dir.path().join("results-X.md")).unwrap();
    assert!(text.contains("## neighbour") && text.contains("## Verdict") && text.contains("generator CPUs"), "{text}");
    for plot in ["out-2x3-cpu-X", "neighbour-2x3-neighbour-64-X", "echo-2x3-latency-64-X", "density-4x4-memory-X"] {
        assert!(dir.path().join(plot).with_extension("svg").exists(), "{plot}");
    }

    let results = results.to_str().unwrap();
    let same = run(&harness, &["compare", results, results, "--threshold", "1"]);
    assert!(same.status.success(), "{}", String::from_utf8_lossy(&same.stdout));
}

/// A report in `dir` with one case, and what each contestant's frame costs in it.
fn written(dir: &Path, name: &str, shape: &str, costs: &[(&str, f64)]) -> String {
    let entry = |&(contestant, cost): &(&str, f64)| {
        serde_json::json!({
            "workload": "out", "shape": shape, "payload": 64, "contestant": contestant, "failures": [],
            "measures": [{
                "name": "CPU ns/frame", "better": "less", "median": cost, "min": cost, "max": cost, "samples": [cost],
            }],
        })
    };
    let described = |&(name, _): &(&str, f64)| {
        let role = if name.starts_with("cc") { "peer" } else { "own" };
        serde_json::json!({ "name": name, "command": "", "role": role })
    };
    let report = serde_json::json!({
        "form": 1,
        "about": {
            "date": "", "commit": "", "kernel": "", "processor": "", "cpus": 1, "pin": "S", "build": "release",
            "seconds": 1.0, "rounds": 1, "notes": [], "contestants": costs.iter().map(described).collect::<Vec<_>>(),
        },
        "results": costs.iter().map(entry).collect::<Vec<_>>(),
    });
    let path = dir.join(name);
    std::fs::write(&path, report.to_string()).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn what_is_worse_or_missing_fails_the_comparison() {
    let (harness, dir) = (harness(), tempfile::tempdir().unwrap());
    let write = |name: &str, shape: &str, costs: &[(&str, f64)]| written(dir.path(), name, shape, costs);
    let before = write("a.json", "1 x 1", &[("ringway", 10.0)]);
    let after = write("b.json", "1 x 1", &[("ringway", 12.0)]);
    let compare = |args: &[&str]| run(&harness, &[&["compare"], args].concat()).status.success();
    assert!(!compare(&[&before, &after]));
    assert!(compare(&[&before, &after, "--threshold", "1.3"]));
    assert!(compare(&[&after, &before]));

    let more = write("more.json", "1 x 1", &[("ringway", 10.0), ("new", 5.0)]);
    for pair in [[&before, &more], [&more, &before]] {
        let pair = pair.map(String::as_str);
        assert!(!compare(&pair), "a contestant is in one of them only");
        assert!(compare(&[&pair[..], &["--allow-missing"]].concat()));
        assert!(compare(&[&pair[..], &["--only", "ringway"]].concat()));
    }
    assert!(compare(&[&before, &more, "--pair", "ringway=new"]));
    assert!(!compare(&[&more, &before, "--pair", "new=ringway"]), "twice as slow");
    let other = write("other.json", "1 x 16", &[("ringway", 10.0)]);
    assert!(!compare(&[&before, &other, "--allow-missing"]), "nothing in common");
}

#[test]
fn the_verdict_is_that_of_the_targets() {
    let (harness, dir) = (harness(), tempfile::tempdir().unwrap());
    let verdict = |name: &str, costs: &[(&str, f64)], flags: &[&str]| {
        let report = written(dir.path(), name, "1 x 16", costs);
        let done = run(&harness, &[&["verdict", &report], flags].concat());
        (done.status.success(), String::from_utf8(done.stdout).unwrap())
    };
    let well = [("ringway", 30.0), ("cc2", 3_000.0), ("cc3", 2_000.0)];
    let (holds, table) = verdict("well.json", &well, &["--allow-missing"]);
    assert!(holds && table.contains("1/66.7") && table.contains("cc3") && table.contains("not measured"), "{table}");
    assert!(!verdict("well.json", &well, &[]).0, "most was not measured");
    let slower = [("ringway", 50.0), ("cc2", 3_000.0), ("cc3", 2_000.0)];
    let (holds, table) = verdict("slower.json", &slower, &["--allow-missing"]);
    assert!(!holds && table.contains("**no**"), "{table}");
}

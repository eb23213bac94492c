//! Proof that the simulator bites: the rules with one fault each, which its first 1,000 seeds must notice.
//!
//! The program has no hooks for faults. The pure modules and `tests/sim` are copied to a crate of their own, every
//! fault of [`list`] is written into the copy beside what it replaces, and `RINGWAY_MUTANT=N` chooses one when the
//! copy's simulator runs, so that all of them take one build. The asymmetry to know: a fault is found by its text, so a
//! change of the rules may have to change the list too; the test says where.

mod list;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Mutex;
use std::thread;

use list::{FAULTS, Fault};

/// Seeds within which each must be noticed.
const SEEDS: u64 = 1_000;
/// What the simulator drives.
const MODULES: [&str; 5] = ["buf", "coordinator/control.rs", "limits.rs", "relay", "wire"];
/// The crate of those.
const CRATE: &str = "
pub mod buf;
pub mod coordinator {
    pub mod control;
}
pub mod limits;
pub mod relay;
pub mod wire;
";
/// Their dependencies.
const DEPENDENCIES: [&str; 5] = ["base64", "serde", "serde_json", "slab", "thiserror"];

/// What chooses a fault, in the copy.
const CHOICE: &str = "
/// Whether the fault with this number was chosen.
pub fn is_mutant(number: usize) -> bool {
    static CHOSEN: std::sync::LazyLock<Option<usize>> =
        std::sync::LazyLock::new(|| std::env::var(\"RINGWAY_MUTANT\").ok().map(|number| number.parse().unwrap()));
    *CHOSEN == Some(number)
}
";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Writes a file unless that is what it says, so that what has not changed is not built again.
fn write(path: &Path, text: &str) {
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return;
    }
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// Rust files under a folder, or the file itself.
fn rust_files(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        return vec![path.to_owned()];
    }
    let entries = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| rust_files(&path)).filter(|path| path.extension().is_some_and(|it| it == "rs")).collect()
}

/// A file's text with its faults beside what they replace.
fn with_faults(path: &str, mut text: String) -> String {
    for (number, fault) in FAULTS.iter().enumerate().filter(|(_, fault)| fault.file == path) {
        let Fault { name, before, good, bad, .. } = fault;
        let place = format!("{before}{good}");
        let found = text.matches(&place).count();
        assert!(found == 1, "`{name}`: {path} has {found} places that read\n{place}");
        let is_statement = good.ends_with([';', '}']);
        let (open, close) = if is_statement { ("", "") } else { ("(", ")") };
        let both = format!("{before}{open}if crate::is_mutant({number}) {{ {bad} }} else {{ {good} }}{close}");
        text = text.replacen(&place, &both, 1);
    }
    text
}

fn manifest() -> String {
    let whole: toml::Table = read(&root().join("Cargo.toml")).parse().unwrap();
    let all = whole["dependencies"].as_table().unwrap();
    let needed: toml::Table = DEPENDENCIES.iter().map(|&name| (name.to_owned(), all[name].clone())).collect();
    let needed = toml::Table::from_iter([("dependencies".to_owned(), needed.into())]);
    let edition = &whole["package"]["edition"];
    format!(
        "workspace = {{}}\npackage = {{ name = \"ringway\", edition = {edition} }}\nprofile.dev.opt-level = 1\n{needed}"
    )
}

/// Writes the copy. Its folder.
fn copy() -> PathBuf {
    let copy = Path::new(env!("CARGO_TARGET_TMPDIR")).join("mutants");
    write(&copy.join("src/lib.rs"), &[CRATE, CHOICE].concat());
    write(&copy.join("Cargo.toml"), &manifest());
    write(&copy.join("Cargo.lock"), &read(&root().join("Cargo.lock")));
    let folders = MODULES.iter().map(|name| root().join("src").join(name)).chain([root().join("tests/sim")]);
    for path in folders.flat_map(|path| rust_files(&path)) {
        let name = path.strip_prefix(root()).unwrap();
        write(&copy.join(name), &with_faults(name.to_str().unwrap(), read(&path)));
    }
    copy
}

/// Builds the copy's simulator.
fn build(copy: &Path) -> PathBuf {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args([
        "test",
        "--offline",
        "--quiet",
        "--no-run",
        "--test",
        "sim",
        "--message-format=json-render-diagnostics",
    ]);
    cargo.current_dir(copy).env("CARGO_TARGET_DIR", copy.join("target"));
    let Output { status, stdout, stderr } = cargo.output().unwrap();
    assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));
    let said = String::from_utf8(stdout).unwrap();
    let said = said.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let mut made = said.filter_map(|message| Some(PathBuf::from(message.get("executable")?.as_str()?)));
    made.next_back().expect("cargo says what it made")
}

fn simulate(simulator: &Path, mutant: Option<usize>, seeds: u64) -> Output {
    let mut command = Command::new(simulator);
    command.args(["--exact", "seeds::fixed_seeds", "control::control_channels", "--test-threads=1"]);
    command.env("RINGWAY_SIM_SEEDS", seeds.to_string());
    command.env_remove("RINGWAY_SIM_SEED").env_remove("RINGWAY_MUTANT");
    if let Some(number) = mutant {
        command.env("RINGWAY_MUTANT", number.to_string());
    }
    command.output().unwrap()
}

/// The seed that noticed, as the simulator says it.
fn noticed(output: &Output) -> Option<String> {
    let said = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
    let at = said.find(" fails; RINGWAY_SIM_SEED=")?;
    Some(said[..at].rsplit(' ').next()?.to_owned())
}

#[test]
fn every_fault_is_noticed() {
    let simulator = build(&copy());
    let clean = simulate(&simulator, None, 100);
    assert!(clean.status.success(), "the copy without a fault: {}", String::from_utf8_lossy(&clean.stderr));
    let (next, unnoticed) = (Mutex::new(0..FAULTS.len()), Mutex::new(Vec::new()));
    let work = || {
        while let Some(number) = { next.lock().unwrap().next() } {
            let name = FAULTS[number].name;
            match noticed(&simulate(&simulator, Some(number), SEEDS)) {
                Some(seed) => println!("{name}: seed {seed}"),
                None => unnoticed.lock().unwrap().push(name),
            }
        }
    };
    thread::scope(|scope| {
        (0..thread::available_parallelism().map_or(1, usize::from)).for_each(|_| drop(scope.spawn(work)))
    });
    let unnoticed = unnoticed.into_inner().unwrap();
    assert!(unnoticed.is_empty(), "{SEEDS} seeds do not notice {unnoticed:?}");
}

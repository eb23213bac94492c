//! The house rules, checked by reading the tree: layers, `unsafe`, sizes, names, leftovers, links, paths.
//!
//! Every rule is a function from one file to its findings, and has a self-test that shows it a bad snippet: a check
//! that cannot fail is none. `the_tree_is_tidy` runs them all over every file and lists every finding at once.
//!
//! It reads text, not syntax: comments and literals are blanked first, then words and braces are counted. Where that
//! is too coarse for good code, change the rule here, in a commit that says why.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

/// Most lines of a function, from `fn` to its closing brace.
const FN_LINES_MAX: usize = 70;
/// Most lines of a Rust file.
const FILE_LINES_MAX: usize = 800;
/// Most characters of a line of Rust.
const LINE_CHARS_MAX: usize = 120;
/// Fewest characters a SAFETY comment needs to name a fact, its owner and how long it holds.
const SAFETY_CHARS_MIN: usize = 20;

/// Modules of the crate, and which others each may name. `limits` is open to all; a module may always name itself.
const LAYERS: &[(&str, &[&str])] = &[
    ("limits", &[]),
    ("wire", &[]),
    ("buf", &[]),
    ("relay", &["wire", "buf"]),
    ("os", &["buf"]),
    ("reactor", &["os", "buf"]),
    ("shard", &["relay", "reactor", "os", "wire", "buf"]),
    ("coordinator", &["shard", "relay", "wire", "os", "buf"]),
    ("door", &["coordinator", "shard", "relay", "reactor", "wire", "os", "buf"]),
    ("agent", &["wire", "os"]),
    ("client", &["wire", "os"]),
    ("config", &["wire"]),
    ("daemon", &["config", "door", "coordinator", "shard", "relay", "reactor", "os", "wire", "buf", "agent", "client"]),
    (
        "cli",
        &[
            "daemon",
            "config",
            "door",
            "coordinator",
            "shard",
            "relay",
            "reactor",
            "os",
            "wire",
            "buf",
            "agent",
            "client",
        ],
    ),
];

/// Modules whose rules do no I/O and read no clock.
const PURE: &[&str] = &["wire", "buf", "relay"];
/// What a pure module must not name.
const IMPURE: &[&str] = &[
    "Instant::now",
    "SystemTime",
    "OwnedFd",
    "BorrowedFd",
    "RawFd",
    "std::fs",
    "std::net",
    "std::thread",
    "nix::",
    "libc::",
    "io_uring::",
    "tokio::",
];

/// Names that say nothing about what is inside.
const EMPTY_NAMES: &[&str] = &["util", "utils", "common", "misc", "helpers", "types", "defs", "error"];

/// Marks of unfinished work; split so that this file does not contain them.
const LEFTOVER_WORDS: &[&str] = &[concat!("TO", "DO"), concat!("FIX", "ME"), concat!("X", "XX")];
/// Macros that must not stay in code.
const LEFTOVER_MACROS: &[&str] = &["todo", "unimplemented", "dbg"];

/// Paths of one machine; split so that this file does not contain them.
const MACHINE_PATHS: &[&str] = &[concat!("/wo", "rk/"), concat!("/ho", "me/"), concat!("/ro", "ot/")];

/// One file, its text, and the same with comments and literals blanked (same length, same lines).
struct Source {
    path: String,
    text: String,
    code: String,
}

impl Source {
    fn new(path: &str, text: &str) -> Source {
        let code = if is_rust(path) { blank_comments_and_literals(text) } else { text.to_owned() };
        Source { path: path.to_owned(), text: text.to_owned(), code }
    }

    /// The finding `what` at byte `offset`.
    fn at(&self, offset: usize, what: impl std::fmt::Display) -> String {
        let line = self.text.as_bytes()[..offset].iter().filter(|&&b| b == b'\n').count() + 1;
        format!("{}:{line}: {what}", self.path)
    }

    /// Components of the path, file extension removed.
    fn names(&self) -> Vec<&str> {
        let stem = self.path.rsplit_once('.').map_or(self.path.as_str(), |(stem, _)| stem);
        stem.split('/').collect()
    }

    /// Path of the module this file is, from the crate root; `None` outside `src` and for the crate roots.
    fn module(&self) -> Option<Vec<&str>> {
        let mut names = self.names();
        if names.first() != Some(&"src") || !is_rust(&self.path) {
            return None;
        }
        names.remove(0);
        if names.last() == Some(&"mod") {
            names.pop();
        }
        let root = matches!(names[..], ["lib"] | ["main"] | ["bin", ..]);
        (!root && !names.is_empty()).then_some(names)
    }
}

fn is_rust(path: &str) -> bool {
    Path::new(path).extension().is_some_and(|e| e == "rs")
}

fn is_word_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b == b'_' || b >= 0x80
}

/// Offsets of `word` in `text` where no letter, digit or underscore touches it.
fn words(text: &str, word: &str) -> Vec<usize> {
    let bytes = text.as_bytes();
    let open = |at: Option<&u8>| at.is_none_or(|&b| !is_word_byte(b));
    let alone = |&at: &usize| open(at.checked_sub(1).and_then(|i| bytes.get(i))) && open(bytes.get(at + word.len()));
    text.match_indices(word).map(|(at, _)| at).filter(alone).collect()
}

/// The identifier at the start of `text`, spaces before it skipped.
fn ident(text: &str) -> &str {
    let text = text.trim_start();
    let end = text.bytes().position(|b| !is_word_byte(b)).unwrap_or(text.len());
    &text[..end]
}

/// Length of the comment or literal that starts `rest`, and how many bytes of it stay visible at either end.
fn literal_at(rest: &str, after_word: bool) -> Option<(usize, usize)> {
    let bytes = rest.as_bytes();
    match bytes[0] {
        b'/' if rest.starts_with("//") => Some((rest.find('\n').unwrap_or(rest.len()), 0)),
        b'/' if rest.starts_with("/*") => Some((block_comment_len(bytes), 0)),
        b'"' => Some((quoted_len(bytes, b'"'), 1)),
        b'\'' => char_len(rest).map(|len| (len, 1)),
        b'r' | b'b' | b'c' if !after_word => raw_string_len(rest).map(|len| (len, 0)),
        _ => None,
    }
}

fn block_comment_len(bytes: &[u8]) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < bytes.len() {
        if bytes[at..].starts_with(b"/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if bytes[at..].starts_with(b"*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    bytes.len()
}

fn quoted_len(bytes: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < bytes.len() && bytes[at] != quote {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(bytes.len())
}

/// Length of a character literal; `None` for a lifetime.
fn char_len(rest: &str) -> Option<usize> {
    let mut chars = rest[1..].char_indices();
    let (_, first) = chars.next()?;
    if first == '\\' {
        return Some(quoted_len(rest.as_bytes(), b'\''));
    }
    matches!(chars.next(), Some((_, '\''))).then(|| 1 + first.len_utf8() + 1)
}

/// Length of `r"…"`, `r#"…"#` and the like with `b` or `c` before them; `None` when none starts here.
fn raw_string_len(rest: &str) -> Option<usize> {
    let after = rest.strip_prefix("br").or(rest.strip_prefix("cr")).or(rest.strip_prefix('r'))?;
    let hashes = after.bytes().take_while(|&b| b == b'#').count();
    let body = after[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let len = body.find(&end).map_or(body.len(), |at| at + end.len());
    Some(rest.len() - body.len() + len)
}

fn blank_comments_and_literals(text: &str) -> String {
    let mut out = text.as_bytes().to_vec();
    let mut at = 0;
    while at < out.len() {
        if !text.is_char_boundary(at) {
            at += 1;
            continue;
        }
        let after_word = at > 0 && is_word_byte(text.as_bytes()[at - 1]);
        let Some((len, keep)) = literal_at(&text[at..], after_word) else {
            at += 1;
            continue;
        };
        for b in &mut out[at + keep..(at + len).saturating_sub(keep).max(at + keep)] {
            if *b != b'\n' {
                *b = b' ';
            }
        }
        at += len;
    }
    String::from_utf8(out).expect("whole characters were replaced")
}

/// The modules between `offset` and its file: names of the `mod x { … }` around it.
fn inline_modules(code: &str, offset: usize) -> usize {
    let mut stack = Vec::new();
    let mut statement = 0;
    for (at, b) in code.bytes().enumerate().take(offset) {
        match b {
            b'{' => stack.push(!words(&code[statement..at], "mod").is_empty()),
            b'}' => drop(stack.pop()),
            _ => {}
        }
        if matches!(b, b'{' | b'}' | b';') {
            statement = at + 1;
        }
    }
    stack.into_iter().filter(|&is_mod| is_mod).count()
}

/// First names of what follows `crate::` or `super::`: one, or those of a `{…}` group.
fn first_names(rest: &str) -> Vec<String> {
    let rest = rest.trim_start();
    let Some(group) = rest.strip_prefix('{') else {
        return vec![if rest.starts_with('*') { "*".to_owned() } else { ident(rest).to_owned() }];
    };
    let (mut depth, mut item, mut names) = (0_usize, String::new(), Vec::new());
    for c in group.chars() {
        match c {
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            '{' => depth += 1,
            ',' if depth == 0 => names.push(std::mem::take(&mut item)),
            _ => {}
        }
        if depth == 0 && c != ',' && c != '}' {
            item.push(c);
        }
    }
    names.push(item);
    names.iter().flat_map(|item| first_names(item)).filter(|name| !name.is_empty()).collect()
}

/// Every name at the crate root that this file uses, with its offset.
fn root_names(source: &Source, depth: usize) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for at in words(&source.code, "crate") {
        let rest = source.code[at + "crate".len()..].trim_start();
        match rest.strip_prefix("::") {
            Some(rest) => found.extend(first_names(rest).into_iter().map(|name| (at, name))),
            None if ident(rest) == "as" => found.push((at, "*".to_owned())),
            None => {}
        }
    }
    for at in words(&source.code, "super") {
        if source.code[..at].trim_end().ends_with("super::") {
            continue;
        }
        let (mut rest, mut supers) = (&source.code[at..], 0);
        while let Some(next) = rest.strip_prefix("super").map(str::trim_start).and_then(|r| r.strip_prefix("::")) {
            (rest, supers) = (next.trim_start(), supers + 1);
        }
        if supers == depth + inline_modules(&source.code, at) {
            found.extend(first_names(rest).into_iter().map(|name| (at, name)));
        }
    }
    found
}

/// Rule: a module names only the layers below it.
fn layering(source: &Source) -> Vec<String> {
    let Some(module) = source.module() else { return Vec::new() };
    let Some((_, allowed)) = LAYERS.iter().find(|(name, _)| *name == module[0]) else {
        return vec![source.at(0, format!("module `{}` has no layer: add it to LAYERS in tests/tidy.rs", module[0]))];
    };
    let fits = |name: &str| name == "limits" || name == module[0] || allowed.contains(&name);
    root_names(source, module.len())
        .into_iter()
        .filter(|(_, name)| !fits(name))
        .map(|(at, name)| source.at(at, format!("`{}` must not use `crate::{name}`", module[0])))
        .collect()
}

/// Rule: no I/O and no clock in the pure modules.
fn purity(source: &Source) -> Vec<String> {
    if !source.module().is_some_and(|module| PURE.contains(&module[0])) {
        return Vec::new();
    }
    let found = |name: &'static str| source.code.match_indices(name).map(move |(at, _)| (at, name));
    let whole = |&(at, _): &(usize, &str)| at == 0 || !is_word_byte(source.code.as_bytes()[at - 1]);
    let say = |(at, name)| source.at(at, format!("`{name}` in a module that does no I/O and reads no clock"));
    IMPURE.iter().flat_map(|name| found(name)).filter(whole).map(say).collect()
}

/// Rule: `unsafe` only where the kernel is met, each block and impl with its reason.
fn unsafe_code(source: &Source) -> Vec<String> {
    if !is_rust(&source.path) {
        return Vec::new();
    }
    let home = source.module().is_some_and(|module| matches!(module[0], "os" | "reactor"));
    let mut found = Vec::new();
    for at in words(&source.code, "unsafe") {
        let rest = source.code[at + "unsafe".len()..].trim_start();
        if !home {
            found.push(source.at(at, "`unsafe` outside src/os and src/reactor"));
        } else if (rest.starts_with('{') || ident(rest) == "impl") && !has_safety_comment(source, at) {
            found.push(source.at(at, "no `// SAFETY:` comment that names the fact, its owner and how long it holds"));
        }
    }
    found
}

/// Whether the comment above the statement around `offset` says why it is sound.
fn has_safety_comment(source: &Source, offset: usize) -> bool {
    let lines: Vec<_> = source.text.lines().zip(source.code.lines()).collect();
    let is_comment = |at: usize| lines[at].0.trim_start().starts_with("//");
    let mut at = source.text[..offset].matches('\n').count();
    loop {
        if at == 0 {
            return false;
        }
        at -= 1;
        if is_comment(at) {
            break;
        }
        if lines[at].1.trim_end().ends_with([';', '{', '}']) || lines[at].1.trim().is_empty() {
            return false;
        }
    }
    let first = (0..=at).rev().take_while(|&line| is_comment(line)).last().unwrap_or(at);
    let comment: Vec<_> = (first..=at).map(|line| lines[line].0.trim().trim_start_matches('/').trim()).collect();
    let comment = comment.join(" ").to_lowercase();
    let Some((_, reason)) = comment.split_once("safety:") else { return false };
    reason.replace("values are valid", "").trim().chars().count() >= SAFETY_CHARS_MIN
}

/// Rule: a file opens by saying what it owns.
fn file_header(source: &Source) -> Vec<String> {
    let opens = source.text.lines().next().is_some_and(|line| line.starts_with("//!") && line.len() > "//! ".len());
    if !is_rust(&source.path) || opens { Vec::new() } else { vec![source.at(0, "the file does not open with `//!`")] }
}

/// Rule: functions and files stay small enough to read.
fn sizes(source: &Source) -> Vec<String> {
    if !is_rust(&source.path) {
        return Vec::new();
    }
    let mut found = Vec::new();
    let lines = source.text.lines().count();
    if lines > FILE_LINES_MAX {
        found.push(source.at(0, format!("{lines} lines; a file has at most {FILE_LINES_MAX}")));
    }
    for at in words(&source.code, "fn") {
        let name = ident(&source.code[at + "fn".len()..]);
        let Some(lines) = function_lines(&source.code[at..]).filter(|_| !name.is_empty()) else { continue };
        if lines > FN_LINES_MAX && !is_table(&source.text[..at]) {
            found.push(source.at(at, format!("fn {name} has {lines} lines; a function has at most {FN_LINES_MAX}")));
        }
    }
    found
}

/// Lines from `fn` to the brace that closes its body; `None` for a declaration.
fn function_lines(code: &str) -> Option<usize> {
    let (mut parens, mut braces) = (0_isize, 0_isize);
    for (at, b) in code.bytes().enumerate() {
        match b {
            b'(' | b'[' => parens += 1,
            b')' | b']' => parens -= 1,
            b';' if parens == 0 && braces == 0 => return None,
            b'{' => braces += 1,
            b'}' => braces -= 1,
            _ => continue,
        }
        if parens < 0 || braces < 0 {
            return None;
        }
        if b == b'}' && braces == 0 && parens == 0 {
            return Some(code[..at].matches('\n').count() + 1);
        }
    }
    None
}

/// Whether the comments and attributes right above a function mark it as a table.
fn is_table(before: &str) -> bool {
    let above = before.lines().rev().map(str::trim).skip(1);
    above.take_while(|line| line.starts_with("//") || line.starts_with("#[")).any(|line| line == "// tidy: table")
}

/// Rule: names of files and modules say what is inside.
fn empty_names(source: &Source) -> Vec<String> {
    if !is_rust(&source.path) {
        return Vec::new();
    }
    let say = |at, name: &str| source.at(at, format!("`{name}` does not say what is inside"));
    let files = source.names().into_iter().filter(|name| EMPTY_NAMES.contains(name)).map(|name| say(0, name));
    let module = |at: usize| (at, ident(&source.code[at + "mod".len()..]));
    let inside = words(&source.code, "mod").into_iter().map(module);
    files.chain(inside.filter(|(_, name)| EMPTY_NAMES.contains(name)).map(|(at, name)| say(at, name))).collect()
}

/// Rule: no marks of unfinished work.
fn leftovers(source: &Source) -> Vec<String> {
    let say = |at, name: &str| source.at(at, format!("`{name}` left behind"));
    let marks = LEFTOVER_WORDS.iter().flat_map(|word| words(&source.text, word).into_iter().map(|at| say(at, word)));
    let rust = is_rust(&source.path);
    let is_macro = |at: &usize, name: &str| source.code[at + name.len()..].starts_with('!');
    let macros = LEFTOVER_MACROS
        .iter()
        .filter(|_| rust)
        .flat_map(|name| words(&source.code, name).into_iter().filter(|at| is_macro(at, name)).map(|at| say(at, name)));
    marks.chain(macros).collect()
}

/// Rule: lints are expected with a reason, never allowed; an ignored test says why.
fn attributes(source: &Source) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in source.code.match_indices('#').filter(|_| is_rust(&source.path)) {
        let rest = &source.code[at + 1..];
        let Some(body) = rest.strip_prefix('!').unwrap_or(rest).strip_prefix('[') else { continue };
        let mut depth = 1_isize;
        let end = body.find(|c| {
            depth += isize::from(c == '[') - isize::from(c == ']');
            depth == 0
        });
        let body = &body[..end.unwrap_or(body.len())];
        if words(body, "allow").into_iter().any(|at| body[at + "allow".len()..].trim_start().starts_with('(')) {
            found.push(source.at(at, "`allow`: use `#[expect(…, reason = \"…\")]`"));
        }
        let written = &source.text[source.code.len() - rest.len()..];
        let written = &written[rest.find('[').map_or(0, |open| open + 1)..];
        let reason = |at: usize| {
            let given = written[at + "ignore".len()..].trim_start().strip_prefix('=').map(str::trim_start);
            given.and_then(|text| text.strip_prefix('"')).is_some_and(|text| !text.starts_with('"'))
        };
        if words(body, "ignore").into_iter().any(|at| !reason(at)) {
            found.push(source.at(at, "an ignored test without a reason"));
        }
    }
    found
}

/// Rule: directions are `to_agent` and `to_client`.
fn directions(source: &Source) -> Vec<String> {
    let say = |at| source.at(at, "say `to_agent` or `to_client`, or what is sent: not rx or tx");
    let found = |name: &&str| words(&source.code, name).into_iter().map(say);
    ["rx", "tx"].iter().filter(|_| is_rust(&source.path)).flat_map(found).collect()
}

/// Rule: lines fit.
fn long_lines(source: &Source) -> Vec<String> {
    let long = |line: &str| line.chars().count() > LINE_CHARS_MAX;
    let say = |at| format!("{}:{}: longer than {LINE_CHARS_MAX} characters", source.path, at + 1);
    let lines = source.text.lines().enumerate().filter(|_| is_rust(&source.path));
    lines.filter(|(_, line)| long(line)).map(|(at, _)| say(at)).collect()
}

/// Rule: links of documents to files of the tree lead somewhere. `exists` tells for a path from the top.
fn links(source: &Source, exists: impl Fn(&Path) -> bool) -> Vec<String> {
    if Path::new(&source.path).extension().is_none_or(|e| e != "md") {
        return Vec::new();
    }
    let folder = Path::new(&source.path).parent().unwrap_or(Path::new(""));
    let (mut found, mut in_fence, mut start) = (Vec::new(), false, 0);
    for line in source.text.split_inclusive('\n') {
        in_fence ^= line.trim_start().starts_with("```");
        for target in link_targets(line).filter(|_| !in_fence) {
            let file = target.split('#').next().unwrap_or_default();
            let elsewhere = file.is_empty() || file.contains("://") || file.starts_with("mailto:");
            if !elsewhere && !exists(&resolve(folder, file)) {
                found.push(source.at(start, format!("`{target}` leads nowhere")));
            }
        }
        start += line.len();
    }
    found
}

/// Targets of `[text](target)` and `[name]: target`.
fn link_targets(line: &str) -> impl Iterator<Item = &str> {
    let definition = line.strip_prefix('[').and_then(|rest| rest.split_once("]: ")).map(|(_, target)| target);
    let inline = line.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    inline.chain(definition).filter_map(|target| target.split_whitespace().next())
}

fn resolve(folder: &Path, target: &str) -> PathBuf {
    let mut path = PathBuf::new();
    for part in folder.join(target).components() {
        match part {
            Component::ParentDir => drop(path.pop()),
            Component::Normal(name) => path.push(name),
            _ => {}
        }
    }
    path
}

/// Rule: nothing depends on one machine's folders.
fn machine_paths(source: &Source) -> Vec<String> {
    let starts = |at: usize| {
        at == 0 || {
            let before = source.text.as_bytes()[at - 1];
            !is_word_byte(before) && !matches!(before, b'.' | b'-' | b'}')
        }
    };
    let found = |path: &'static str| source.text.match_indices(path).filter(|&(at, _)| starts(at));
    let say = |(at, path)| source.at(at, format!("`{path}` exists on one machine only"));
    MACHINE_PATHS.iter().flat_map(|path| found(path)).map(say).collect()
}

fn check(source: &Source, exists: impl Fn(&Path) -> bool) -> Vec<String> {
    let rules = [
        layering,
        purity,
        unsafe_code,
        file_header,
        sizes,
        empty_names,
        leftovers,
        attributes,
        directions,
        long_lines,
        machine_paths,
    ];
    rules.iter().flat_map(|rule| rule(source)).chain(links(source, exists)).collect()
}

/// Files of the tree: what git tracks or would add, else all that is not a build's output.
fn files(top: &Path) -> Vec<String> {
    let list = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"];
    let git = Command::new("git").args(list).current_dir(top).output().ok().filter(|out| out.status.success());
    let names = git.map(|out| String::from_utf8_lossy(&out.stdout).into_owned()).unwrap_or_default();
    let tracked: BTreeSet<_> = names.split('\0').filter(|name| top.join(name).is_file()).map(str::to_owned).collect();
    if tracked.contains("Cargo.toml") { tracked.into_iter().collect() } else { walk(top, Path::new("")) }
}

fn walk(top: &Path, folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(top.join(folder)).expect("the tree can be listed").flatten() {
        let name = folder.join(entry.file_name());
        let output = [".git", "target", "fuzz/target", "fuzz/artifacts", "fuzz/coverage"];
        match entry.file_type() {
            Ok(kind) if kind.is_dir() && !output.iter().any(|o| name == Path::new(o)) => found.extend(walk(top, &name)),
            Ok(kind) if kind.is_file() => found.push(name.to_string_lossy().into_owned()),
            _ => {}
        }
    }
    found
}

#[test]
fn the_tree_is_tidy() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let names = files(top);
    assert!(names.iter().any(|name| name == "src/lib.rs"), "the sources were not found");
    let read = |name: &String| String::from_utf8_lossy(&std::fs::read(top.join(name)).expect("readable")).into_owned();
    let found: Vec<_> = names.iter().flat_map(|n| check(&Source::new(n, &read(n)), |p| top.join(p).exists())).collect();
    assert!(found.is_empty(), "{} findings:\n{}", found.len(), found.join("\n"));
}

/// Lines `rule` complains about when `text` is the file `path`.
fn caught(rule: fn(&Source) -> Vec<String>, path: &str, text: &str) -> Vec<usize> {
    let line = |finding: String| finding.split(':').nth(1).and_then(|n| n.parse().ok()).expect("path:line: what");
    rule(&Source::new(path, text)).into_iter().map(line).collect()
}

const NONE: [usize; 0] = [];

#[test]
fn comments_and_literals_are_blanked() {
    let blank = blank_comments_and_literals;
    assert_eq!(blank("a // b\nc"), "a     \nc");
    assert_eq!(blank("a /* b /* c */ d */ e"), "a                   e");
    assert_eq!(blank(r#"a("b\"c") + 'd' + '\'' + &'e f"#), r#"a("    ") + ' ' + '  ' + &'e f"#);
    assert_eq!(blank("x(r#\"a\" b\"#, b\"c\", bar)"), format!("x({}, b\" \", bar)", " ".repeat(9)));
    assert_eq!(blank("'é' é \"é\n\""), "'  ' é \"  \n\"");
}

#[test]
fn layering_catches_upward_names() {
    let wire = |text: &str| caught(layering, "src/wire/cc1.rs", text);
    assert_eq!(wire("\nuse crate::relay::Route;"), [2]);
    assert_eq!(wire("use crate::{limits, os::fds, relay::{Route, link}};"), [1, 1]);
    assert_eq!(wire("use super::super::shard;"), [1]);
    assert_eq!(wire("mod tests {\n use super::super::super::door; }"), [2]);
    assert_eq!(wire("fn f() { crate::config::load() }"), [1]);
    assert_eq!(wire("use crate as root;\nuse crate::*;\nuse crate::{self as r};"), [1, 2, 3]);
    assert_eq!(wire("use super::DecodeError; use crate::limits::X; use crate::wire::y; // crate::os"), NONE);
    assert_eq!(wire("mod tests { use super::super::hyper; } pub(crate) struct A;"), NONE);
    assert_eq!(caught(layering, "src/os/mod.rs", "use super::wire;"), [1]);
    assert_eq!(caught(layering, "src/os/fds.rs", "use crate::relay;"), [1]);
    assert_eq!(caught(layering, "src/coordinator/mod.rs", "use crate::config::Config;"), [1]);
    assert_eq!(caught(layering, "src/coordinator/mod.rs", "use crate::reactor::Ring;"), [1]);
    assert_eq!(caught(layering, "src/daemon.rs", "use crate::{cli, config};"), [1]);
    assert_eq!(caught(layering, "src/novel.rs", ""), [1]);
    assert_eq!(caught(layering, "src/main.rs", "use ringway::cli; use crate::config;"), NONE);
    for (module, allowed) in LAYERS {
        let known = |name: &&&str| LAYERS.iter().any(|(other, _)| *other == **name);
        assert_eq!(allowed.iter().filter(known).count(), allowed.len(), "{module} may use a module without a layer");
    }
}

#[test]
fn purity_catches_clocks_and_descriptors() {
    let bad = "let now = Instant::now();\nuse std::os::fd::OwnedFd;\nuse nix::unistd;";
    assert_eq!(caught(purity, "src/relay/link.rs", bad).len(), 3);
    assert_eq!(caught(purity, "src/shard/mod.rs", bad), NONE);
    assert_eq!(caught(purity, "src/wire/mod.rs", "// Instant::now\nfn f(now: Instant) {}"), NONE);
}

#[test]
fn unsafe_needs_its_place_and_its_reason() {
    let os = |text: &str| caught(unsafe_code, "src/os/cpu.rs", text);
    let good = "// SAFETY: the kernel made this descriptor for this call alone.\n";
    assert_eq!(caught(unsafe_code, "src/wire/mod.rs", &format!("{good}unsafe {{ f() }}")), [2]);
    assert_eq!(caught(unsafe_code, "tests/daemon.rs", &format!("{good}unsafe {{ f() }}")), [2]);
    assert_eq!(caught(unsafe_code, "perf/load.rs", &format!("{good}unsafe {{ f() }}")), [2]);
    assert_eq!(caught(unsafe_code, "src/wire/mod.rs", "// unsafe\nlet a = \"unsafe\"; let unsafe_b = 1;"), NONE);
    assert_eq!(os("unsafe { f() }"), [1]);
    assert_eq!(os("// SAFETY: fine.\nunsafe { f() }"), [2]);
    assert_eq!(os("// SAFETY: All the values are valid.\nunsafe impl Send for A {}"), [2]);
    assert_eq!(os(&format!("{good}let a = 1;\nunsafe {{ f() }}")), [3]);
    assert_eq!(os(&format!("{good}let a =\n    g(unsafe {{ f() }});")), NONE);
    assert_eq!(os("// SAFETY: the\n// kernel owns the page until close.\nunsafe { f() }"), NONE);
}

#[test]
fn file_header_is_asked_for() {
    assert_eq!(caught(file_header, "src/a.rs", "use b;\n//! c"), [1]);
    assert_eq!(caught(file_header, "benches/a.rs", "//!\n"), [1]);
    assert_eq!(caught(file_header, "perf/a.rs", "use b;"), [1]);
    assert_eq!(caught(file_header, "fuzz/fuzz_targets/a.rs", "//! What it owns.\n"), NONE);
}

#[test]
fn sizes_are_counted() {
    let function = |lines: usize| format!("fn f(a: [u8; 2])\n{{\n{}}}\n", "g();\n".repeat(lines - 3));
    assert_eq!(caught(sizes, "src/a.rs", &function(FN_LINES_MAX)), NONE);
    assert_eq!(caught(sizes, "src/a.rs", &format!("type F = fn(u8);\n{}", function(FN_LINES_MAX + 1))), [2]);
    let marked = |mark| format!("/// Doc.\n{mark}\n#[test]\n{}", function(FN_LINES_MAX + 1));
    assert_eq!(caught(sizes, "src/a.rs", &marked("// tidy: table")), NONE);
    assert_eq!(caught(sizes, "src/a.rs", &marked("// a table")), [4]);
    assert_eq!(caught(sizes, "src/a.rs", &"\n".repeat(FILE_LINES_MAX + 1)), [1]);
    assert_eq!(caught(sizes, "src/a.rs", "trait A { fn f(); }"), NONE);
}

#[test]
fn empty_names_are_refused() {
    for name in EMPTY_NAMES {
        assert_eq!(caught(empty_names, &format!("src/{name}.rs"), ""), [1]);
        assert_eq!(caught(empty_names, &format!("tests/{name}/mod.rs"), ""), [1]);
        assert_eq!(caught(empty_names, "src/a.rs", &format!("\npub mod {name};")), [2]);
    }
    assert_eq!(caught(empty_names, "src/errors_of_peers.rs", "mod utility { }"), NONE);
}

#[test]
fn leftovers_are_found() {
    for word in LEFTOVER_WORDS {
        assert_eq!(caught(leftovers, "src/a.rs", &format!("\n// {word}: later")), [2]);
        assert_eq!(caught(leftovers, "README.md", word), [1]);
    }
    for name in LEFTOVER_MACROS {
        assert_eq!(caught(leftovers, "src/a.rs", &format!("{name}!()")), [1]);
    }
    assert_eq!(caught(leftovers, "src/a.rs", "fn dbg() {} // mktemp abcXXXXXX"), NONE);
}

#[test]
fn attributes_are_read() {
    assert_eq!(caught(attributes, "src/a.rs", "#[allow(dead_code)]\n#![allow(clippy::all, reason = \"a\")]"), [1, 2]);
    assert_eq!(caught(attributes, "src/a.rs", "#[cfg_attr(test, allow(dead_code))]"), [1]);
    assert_eq!(caught(attributes, "tests/a.rs", "#[ignore]\n#[cfg_attr(b, ignore)]\n#[ignore = \"\"]"), [1, 2, 3]);
    assert_eq!(caught(attributes, "tests/a.rs", "#[ignore = \"needs root\"] #[expect(x)] fn allow() {}"), NONE);
}

#[test]
fn directions_are_named() {
    assert_eq!(caught(directions, "src/a.rs", "let (tx,\n rx) = channel();"), [2, 1]);
    assert_eq!(caught(directions, "src/a.rs", "let max_rx = ctx; // rx \"tx\""), NONE);
}

#[test]
fn long_lines_are_counted_in_characters() {
    assert_eq!(caught(long_lines, "src/a.rs", &format!("\n{}", "é".repeat(LINE_CHARS_MAX + 1))), [2]);
    assert_eq!(caught(long_lines, "src/a.rs", &"é".repeat(LINE_CHARS_MAX)), NONE);
}

#[test]
fn links_are_followed() {
    let links = |text| links(&Source::new("docs/A.md", text), |path| path == Path::new("docs/B.md")).len();
    assert_eq!(links("[b](B.md) [b](./B.md#part) [b](../docs/B.md) [a](#a) [w](https://a.example/c)"), 0);
    assert_eq!(links("[b](C.md)"), 1);
    assert_eq!(links("[b](B.md) and [c](../B.md#part)"), 1);
    assert_eq!(links("[b]: C.md\n"), 1);
    assert_eq!(links("```\n[b](C.md)\n```\n"), 0);
}

#[test]
fn machine_paths_are_found() {
    for path in MACHINE_PATHS {
        assert_eq!(caught(machine_paths, "README.md", &format!("\nsee {path}a")), [2]);
        assert_eq!(caught(machine_paths, ".ci/run", &format!("A=\"{path}\"")), [1]);
        assert_eq!(caught(machine_paths, "src/a.rs", &format!("perf{path}")), NONE);
    }
}

//! `ringway doctor`: whether this host can run the daemon, whether it runs, and what to do if not.
//!
//! Owns the checks' order and wording; changes nothing on the host. The asymmetry to know: a daemon that is not running
//! is a warning, because the doctor is asked before the first start too; whatever would stop it from running is FAIL.

use std::fmt::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::{AccessFlags, access};
use serde::Serialize;

use super::{Sockets, show};
use crate::client::Error;
use crate::os::fds::SEND_BUFFER;
use crate::os::{calls, cpu, sandbox};
use crate::reactor;

/// Locked memory one ring takes, bytes. Source: measured, 8 and 16 shards on Linux 6.18.
const RING_LOCKED: u64 = 256 * 1024;

/// Flags of `ringway doctor`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Directory of VM sockets to check too; may be given several times
    #[arg(long, value_name = "DIR")]
    vm_dir: Vec<PathBuf>,
    #[command(flatten)]
    sockets: Sockets,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
enum Verdict {
    #[serde(rename = "ok")]
    Ok,
    #[serde(rename = "warn")]
    Warn,
    #[serde(rename = "fail")]
    Fail,
}

/// One line of the report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Check {
    name: &'static str,
    verdict: Verdict,
    /// What was found.
    found: String,
    /// What to do about it; empty when nothing has to be done.
    remedy: String,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Check {
        Check { name, verdict: Verdict::Ok, found: found.into(), remedy: String::new() }
    }

    fn warn(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Check {
        Check { name, verdict: Verdict::Warn, found: found.into(), remedy: remedy.into() }
    }

    fn fail(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Check {
        Check { name, verdict: Verdict::Fail, found: found.into(), remedy: remedy.into() }
    }
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut checks = vec![kernel(), io_uring_switch(), ring(), descriptors(), locked_memory(), send_buffer()];
    checks.extend(sandbox_layers());
    checks.push(socket_directory(&args.sockets.proxy.path()));
    checks.extend(args.vm_dir.iter().map(|dir| vm_directory(dir)));
    checks.push(daemon(&args.sockets)?);
    let text = if args.json { serde_json::to_string_pretty(&checks)? + "\n" } else { render(&checks) };
    show::print(&text)?;
    let failed = checks.iter().any(|check| check.verdict == Verdict::Fail);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn render(checks: &[Check]) -> String {
    let mut out = String::new();
    for check in checks {
        let verdict = match check.verdict {
            Verdict::Ok => "ok  ",
            Verdict::Warn => "warn",
            Verdict::Fail => "FAIL",
        };
        let _ = writeln!(out, "{verdict}  {:<18} {}", check.name, show::plain(&check.found));
        if !check.remedy.is_empty() {
            let _ = writeln!(out, "      {:<18} -> {}", "", show::plain(&check.remedy));
        }
    }
    out
}

fn kernel() -> Check {
    match nix::sys::utsname::uname() {
        Ok(name) => kernel_release(&name.release().to_string_lossy()),
        Err(e) => Check::warn("kernel", format!("its version cannot be read: {e}"), ""),
    }
}

fn kernel_release(release: &str) -> Check {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse::<u32>().ok());
    let version = numbers.next().flatten().zip(numbers.next().flatten());
    match version {
        Some(version) if version >= reactor::MINIMUM_KERNEL => Check::ok("kernel", release),
        Some(_) => {
            Check::fail("kernel", release, "Ringway needs Linux 6.1 or later (Debian 12 has it): upgrade the kernel")
        }
        None => Check::warn("kernel", format!("'{release}' has no version in it"), "make sure it is 6.1 or later"),
    }
}

fn io_uring_switch() -> Check {
    const NAME: &str = "io_uring_disabled";
    const REMEDY: &str = "sysctl kernel.io_uring_disabled=0, or 1 with the daemon's group in kernel.io_uring_group";
    match std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled") {
        Err(_) => Check::ok(NAME, "this kernel has no such switch"),
        Ok(value) => match value.trim() {
            "0" => Check::ok(NAME, "0: everybody may use io_uring"),
            "1" if nix::unistd::geteuid().is_root() => Check::ok(NAME, "1: root and one group may use io_uring"),
            "1" => Check::warn(NAME, "1: only root and the group in kernel.io_uring_group may use io_uring", REMEDY),
            other => Check::fail(NAME, format!("{other}: nobody may use io_uring"), REMEDY),
        },
    }
}

fn ring() -> Check {
    const NAME: &str = "io_uring";
    match reactor::probe() {
        Ok(features) if features.incremental_buffers => Check::ok(NAME, "a ring can be made, with incremental buffers"),
        Ok(_) => Check::ok(NAME, "a ring can be made; incremental buffers (Linux 6.12) would save memory"),
        Err(error) => {
            let text = error.to_string();
            let (found, remedy) = text.split_once(": ").unwrap_or((&text, "see io_uring_setup(2) for this error"));
            Check::fail(NAME, found, remedy)
        }
    }
}

/// The layers of the daemon's sandbox that a kernel, or a container, may be without.
fn sandbox_layers() -> [Check; 3] {
    let layer = |name, outcome: std::io::Result<String>| match outcome {
        Ok(found) => Check::ok(name, found),
        Err(error) => Check::warn(name, format!("a layer of the sandbox is missing: {error}"), REMEDY),
    };
    const REMEDY: &str = "the daemon runs without it, unless it is started with --sandbox require";
    let landlock = sandbox::landlock_version().map(|version| format!("version {version}"));
    let calls = calls::check().map(|()| "system calls can be refused".to_owned());
    let capabilities = sandbox::check_capabilities().map(|()| "can be given up".to_owned());
    [layer("landlock", landlock), layer("seccomp", calls), layer("capabilities", capabilities)]
}

fn descriptors() -> Check {
    const NAME: &str = "descriptors";
    const REMEDY: &str = "each session and each VM takes descriptors; set LimitNOFILE=65536 or more for the daemon";
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((_, hard)) if hard >= 65_536 => Check::ok(NAME, format!("up to {} (RLIMIT_NOFILE)", limit(hard))),
        Ok((_, hard)) if hard >= 1_024 => Check::warn(NAME, format!("at most {hard} (RLIMIT_NOFILE)"), REMEDY),
        Ok((_, hard)) => Check::fail(NAME, format!("at most {hard} (RLIMIT_NOFILE)"), REMEDY),
        Err(e) => Check::warn(NAME, format!("RLIMIT_NOFILE cannot be read: {e}"), ""),
    }
}

fn locked_memory() -> Check {
    const NAME: &str = "locked memory";
    // A ring each for the shards, by default one for each CPU, and one for the coordinator.
    let rings = cpu::allowed().map_or(1, |cpus| cpus.len() as u64) + 1;
    let wanted = rings * RING_LOCKED;
    let remedy = format!("rings count as locked memory; set LimitMEMLOCK={}K or more for the daemon", wanted / 1024);
    match getrlimit(Resource::RLIMIT_MEMLOCK) {
        Ok((_, hard)) if hard >= wanted => Check::ok(NAME, format!("up to {} (RLIMIT_MEMLOCK)", limit_bytes(hard))),
        Ok((_, hard)) => Check::warn(NAME, format!("at most {} (RLIMIT_MEMLOCK)", limit_bytes(hard)), remedy),
        Err(e) => Check::warn(NAME, format!("RLIMIT_MEMLOCK cannot be read: {e}"), ""),
    }
}

fn limit(n: u64) -> String {
    if n == nix::libc::RLIM_INFINITY { "any number".to_owned() } else { show::count(n) }
}

fn limit_bytes(n: u64) -> String {
    if n == nix::libc::RLIM_INFINITY { "any amount".to_owned() } else { show::bytes(n) }
}

fn send_buffer() -> Check {
    const NAME: &str = "socket buffers";
    match std::fs::read_to_string("/proc/sys/net/core/wmem_max").map(|text| text.trim().parse::<u64>()) {
        Ok(Ok(max)) if max >= SEND_BUFFER as u64 => Check::ok(NAME, format!("up to {max} bytes (net.core.wmem_max)")),
        Ok(Ok(max)) => {
            let remedy = format!("sends to clients may be cut; sysctl net.core.wmem_max={SEND_BUFFER}");
            Check::warn(NAME, format!("at most {max} bytes (net.core.wmem_max)"), remedy)
        }
        _ => Check::ok(NAME, "net.core.wmem_max cannot be seen from here"),
    }
}

fn socket_directory(socket: &Path) -> Check {
    const NAME: &str = "socket directory";
    let dir = match socket.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let shown = dir.display();
    match std::fs::metadata(dir) {
        Ok(meta) if !meta.is_dir() => Check::fail(NAME, format!("{shown} is no directory"), "choose another --socket"),
        Ok(_) if access(dir, AccessFlags::W_OK | AccessFlags::X_OK).is_err() => Check::warn(
            NAME,
            format!("{shown} is not writable for this user"),
            "fine for clients; the daemon must be able to write there",
        ),
        Ok(meta) if meta.mode() & 0o002 != 0 && meta.mode() & 0o1000 == 0 => Check::warn(
            NAME,
            format!("{shown} is writable for everybody"),
            format!("chmod o-w {shown}: others could replace the socket"),
        ),
        Ok(meta) => Check::ok(NAME, format!("{shown}, mode {:04o}", meta.mode() & 0o7777)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => match nearest(dir) {
            Some(above) if access(above, AccessFlags::W_OK | AccessFlags::X_OK).is_ok() => {
                Check::ok(NAME, format!("{shown} does not exist; the daemon makes it"))
            }
            _ => Check::fail(
                NAME,
                format!("{shown} does not exist and this user cannot make it"),
                "start as root, or choose another --socket",
            ),
        },
        Err(e) => Check::fail(NAME, format!("{shown}: {e}"), "give this user access, or choose another --socket"),
    }
}

fn nearest(dir: &Path) -> Option<&Path> {
    dir.ancestors().skip(1).find(|above| above.is_dir())
}

fn vm_directory(dir: &Path) -> Check {
    const NAME: &str = "VM directory";
    let shown = dir.display();
    match std::fs::read_dir(dir) {
        Ok(entries) => {
            let sockets =
                entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_socket())).count();
            Check::ok(NAME, format!("{shown}, {sockets} sockets directly in it"))
        }
        Err(e) => Check::fail(
            NAME,
            format!("{shown}: {e}"),
            "the daemon must be able to read it and connect to the sockets in it",
        ),
    }
}

fn daemon(sockets: &Sockets) -> anyhow::Result<Check> {
    const NAME: &str = "daemon";
    let admin = sockets.admin_client()?;
    Ok(match admin.status() {
        Ok(status) => {
            let up = show::span(status.uptime_ms);
            let vms = show::many(status.vms.len() as u64, "VM");
            Check::ok(NAME, format!("{} runs as pid {}, up {up}, {vms}", status.version, status.pid))
        }
        Err(Error::Connect { path, reason }) => {
            let remedy = match reason.kind() {
                std::io::ErrorKind::PermissionDenied => "this user may not connect: join the socket's group",
                _ => "start it: ringway serve",
            };
            Check::warn(NAME, format!("does not answer at {}: {reason}", path.display()), remedy)
        }
        Err(e) => {
            let found = format!("answers wrongly at {}: {e}", admin.path().display());
            Check::fail(NAME, found, "see the daemon's log; restart it if it hangs")
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_from_6_1_on_will_do() {
        for release in ["6.1.0-18-amd64", "6.18.44", "7.0.0-rc1", "10.2", "6.1+deb"] {
            assert_eq!(kernel_release(release).verdict, Verdict::Ok, "{release}");
        }
        for release in ["6.0.19", "5.15.0-91-generic", "4.4"] {
            assert_eq!(kernel_release(release).verdict, Verdict::Fail, "{release}");
        }
        for release in ["", "six.one", "6"] {
            assert_eq!(kernel_release(release).verdict, Verdict::Warn, "{release}");
        }
    }

    #[test]
    fn each_line_has_a_verdict_and_what_to_do() {
        let checks = [Check::ok("a", "fine"), Check::fail("b", "broken\u{1b}", "mend it")];
        let text = render(&checks);
        let blanks = " ".repeat(18);
        assert_eq!(
            text,
            format!("ok    {:<18} fine\nFAIL  {:<18} broken\\u{{1b}}\n      {blanks} -> mend it\n", "a", "b")
        );
    }

    #[test]
    fn directories() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(vm_directory(dir.path()).verdict, Verdict::Ok);
        assert_eq!(vm_directory(&dir.path().join("none")).verdict, Verdict::Fail);
        assert_eq!(socket_directory(&dir.path().join("proxy.sock")).verdict, Verdict::Ok);
        assert_eq!(socket_directory(&dir.path().join("new/proxy.sock")).verdict, Verdict::Ok);
        std::fs::write(dir.path().join("file"), "").unwrap();
        assert_eq!(socket_directory(&dir.path().join("file/proxy.sock")).verdict, Verdict::Fail);
    }
}

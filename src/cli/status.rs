//! `ringway status`: the admin socket's answer, for people.
//!
//! Owns the layout; asks once, or twice half a second apart for rates. The asymmetry to know: a rate is shown only for
//! what both answers had, so a session that came between them has none yet.

use std::collections::HashMap;
use std::fmt::Write;
use std::process::ExitCode;
use std::time::Duration;

use super::Sockets;
use super::show::{self, Align, Table};
use crate::client::admin::AdminClient;
use crate::wire::admin::{Flow, SessionStatus, Status, VmStatus};

/// Time between the two answers that rates are made from.
const SAMPLE: Duration = Duration::from_millis(500);

/// Flags of `ringway status`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print the daemon's JSON
    #[arg(long, conflicts_with = "watch")]
    json: bool,
    /// Show it anew every half second, until interrupted
    #[arg(long)]
    watch: bool,
    /// Do not wait half a second to measure rates
    #[arg(long, conflicts_with_all = ["watch", "json"])]
    no_rates: bool,
    #[command(flatten)]
    sockets: Sockets,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let admin = args.sockets.admin_client()?;
    let mut now = admin.status()?;
    if args.json {
        show::print(&(serde_json::to_string_pretty(&now)? + "\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    if args.no_rates {
        show::print(&render(&now, None))?;
        return Ok(ExitCode::SUCCESS);
    }
    loop {
        let before = std::mem::replace(&mut now, next(&admin)?);
        let text = render(&now, Some(&before));
        // Home, the text with the rest of each line cleared, then the rest of the screen: nothing flickers.
        let text = if args.watch { format!("\x1b[H{}\x1b[J", text.replace('\n', "\x1b[K\n")) } else { text };
        show::print(&text)?;
        if !args.watch {
            return Ok(ExitCode::SUCCESS);
        }
    }
}

fn next(admin: &AdminClient) -> anyhow::Result<Status> {
    std::thread::sleep(SAMPLE);
    Ok(admin.status()?)
}

/// The whole page.
pub(super) fn render(now: &Status, before: Option<&Status>) -> String {
    let rates = before.map(|before| Rates::new(before, now));
    let rates = rates.as_ref();
    let mut out = head(now, rates);
    section(&mut out, "SHARDS", &shards(now, rates));
    section(&mut out, "VMS", &vms(now, rates));
    section(&mut out, "SESSIONS", &sessions(now, rates));
    let notes = notes(now);
    if !notes.is_empty() {
        out.push_str("\nATTENTION\n");
        for note in notes {
            let _ = writeln!(out, "  {note}");
        }
    }
    out
}

fn section(out: &mut String, title: &str, table: &Table) {
    if !table.is_empty() {
        let _ = write!(out, "\n{title}\n{}", table.render("  "));
    }
}

/// What is needed of an earlier answer, and the time since then.
#[derive(Debug)]
struct Rates<'a> {
    elapsed_ms: u64,
    before: &'a Status,
    vms: HashMap<&'a str, &'a VmStatus>,
    sessions: HashMap<u64, &'a SessionStatus>,
}

impl<'a> Rates<'a> {
    fn new(before: &'a Status, now: &Status) -> Rates<'a> {
        // A daemon that was restarted between the two has nothing in common with the one before.
        let same = before.pid == now.pid;
        let elapsed_ms = if same { now.uptime_ms.saturating_sub(before.uptime_ms) } else { 0 };
        let sessions = before.vms.iter().flat_map(|vm| &vm.sessions).map(|s| (s.io_base, s)).collect();
        Rates { elapsed_ms, before, vms: before.vms.iter().map(|vm| (vm.id.as_str(), vm)).collect(), sessions }
    }

    fn bytes(&self, before: Option<Flow>, now: Flow) -> String {
        let moved = before.and_then(|before| now.bytes.checked_sub(before.bytes));
        match moved.and_then(|moved| moved.saturating_mul(1000).checked_div(self.elapsed_ms)) {
            Some(rate) => format!("{}/s", show::bytes(rate)),
            None => "-".to_owned(),
        }
    }

    fn cpu(&self, now: &Status) -> Option<String> {
        let used = now.cpu_us.checked_sub(self.before.cpu_us)?;
        let tenths = used.checked_div(self.elapsed_ms)?;
        Some(format!(" ({} of one CPU now)", show::percent(tenths)))
    }
}

fn head(now: &Status, rates: Option<&Rates<'_>>) -> String {
    let Status { version, pid, .. } = now;
    let counters = &now.counters;
    let (mut to_client, mut to_agent) = (Flow::default(), Flow::default());
    for shard in &now.shards {
        to_client += shard.to_client;
        to_agent += shard.to_agent;
    }
    let cpu_now = rates.and_then(|rates| rates.cpu(now)).unwrap_or_default();
    let sessions: u64 = now.vms.iter().map(|vm| vm.sessions.len() as u64).sum();
    let [vms, sessions] = [(now.vms.len() as u64, "VM"), (sessions, "session")].map(|(n, noun)| show::many(n, noun));
    let [clients, fds] = [(now.clients, "client"), (now.open_fds, "descriptor")].map(|(n, noun)| show::many(n, noun));
    let memory = show::bytes(now.memory_bytes);
    let mut out = String::new();
    let mut line = |text: std::fmt::Arguments<'_>| {
        let _ = writeln!(out, "{text}");
    };
    line(format_args!(
        "ringway {} pid {pid}, up {}, {}",
        show::plain(version),
        show::span(now.uptime_ms),
        show::plain(&now.socket)
    ));
    line(format_args!("  {vms}, {sessions}, {clients}, {fds}"));
    line(format_args!("  memory {memory}, CPU time {}{cpu_now}", show::span(now.cpu_us / 1000)));
    line(format_args!("  to clients {}, to agents {}", flow(to_client), flow(to_agent)));
    line(format_args!(
        "  requests {} answered, {} refused; VMs {} added, {} lost; {} sessions opened; {} clients broke the protocol",
        show::count(counters.requests_ok),
        show::count(counters.requests_failed),
        show::count(counters.vms_added),
        show::count(counters.vms_lost),
        show::count(counters.sessions_opened),
        show::count(counters.clients_faulty),
    ));
    out
}

fn flow(flow: Flow) -> String {
    format!("{} in {} frames", show::bytes(flow.bytes), show::count(flow.frames))
}

/// A table whose first columns are texts, the others amounts; rate columns only where there are rates.
fn table(texts: &[&'static str], amounts: &[&'static str], rates: bool) -> Table {
    let mut head: Vec<_> = texts.iter().map(|&name| (name, Align::Left)).collect();
    head.extend(amounts.iter().map(|&name| (name, Align::Right)));
    if rates {
        head.extend([("CLIENT RATE", Align::Right), ("AGENT RATE", Align::Right)]);
    }
    Table::new(&head)
}

fn shards(now: &Status, rates: Option<&Rates<'_>>) -> Table {
    let amounts = ["LOAD", "VMS", "SESSIONS", "TURNS", "TO CLIENTS", "TO AGENTS", "HELD", "SPILLED", "BLOCKED"];
    let mut table = table(&["SHARD", "CPU"], &amounts, rates.is_some());
    for shard in &now.shards {
        let mut row = vec![
            shard.shard.to_string(),
            shard.cpu.map_or("-".to_owned(), |cpu| cpu.to_string()),
            show::percent(shard.load_permille),
            shard.links.to_string(),
            shard.sessions.to_string(),
            show::count(shard.turns),
            show::bytes(shard.to_client.bytes),
            show::bytes(shard.to_agent.bytes),
            show::bytes(shard.chunks_in_use.saturating_mul(crate::limits::CHUNK_LEN as u64)),
            show::bytes(shard.spill_bytes),
            shard.links_blocked.to_string(),
        ];
        if let Some(rates) = rates {
            let before = rates.before.shards.iter().find(|before| before.shard == shard.shard);
            row.push(rates.bytes(before.map(|b| b.to_client), shard.to_client));
            row.push(rates.bytes(before.map(|b| b.to_agent), shard.to_agent));
        }
        table.row(row);
    }
    table
}

fn vms(now: &Status, rates: Option<&Rates<'_>>) -> Table {
    let amounts = ["SHARD", "SESSIONS", "TO CLIENTS", "TO AGENT", "QUEUED"];
    let mut table = table(&["VM", "STATE", "COMMAND"], &amounts, rates.is_some());
    for vm in &now.vms {
        let waiting = if vm.commands_queued > 0 { format!(" (+{})", vm.commands_queued) } else { String::new() };
        let command = vm.command.as_deref().map_or("-".to_owned(), show::plain);
        let mut row = vec![
            show::plain(&vm.id),
            show::plain(&vm.state),
            command + &waiting,
            vm.shard.to_string(),
            vm.sessions.len().to_string(),
            show::bytes(vm.to_client.bytes),
            show::bytes(vm.to_agent.bytes),
            show::bytes(vm.queued_to_agent),
        ];
        if let Some(rates) = rates {
            let before = rates.vms.get(vm.id.as_str());
            row.push(rates.bytes(before.map(|b| b.to_client), vm.to_client));
            row.push(rates.bytes(before.map(|b| b.to_agent), vm.to_agent));
        }
        table.row(row);
    }
    table
}

fn sessions(now: &Status, rates: Option<&Rates<'_>>) -> Table {
    let amounts = ["TO CLIENT", "TO AGENT", "CLIENT OWED", "AGENT OWED"];
    let mut table = table(&["SEQ", "VM", "STATE"], &amounts, rates.is_some());
    for (vm, session) in now.vms.iter().flat_map(|vm| vm.sessions.iter().map(move |session| (vm, session))) {
        let blocks = vm.blocked_by == Some(session.io_base);
        let remark = if blocks {
            ", blocks its VM"
        } else if session.spilled > 0 {
            ", spills"
        } else if session.slow {
            ", slow"
        } else {
            ""
        };
        let mut row = vec![
            sequences(session),
            show::plain(&vm.id),
            show::plain(&session.state) + remark,
            show::bytes(session.to_client.bytes),
            show::bytes(session.to_agent.bytes),
            show::bytes(session.queued_to_client),
            show::bytes(session.queued_to_agent),
        ];
        if let Some(rates) = rates {
            let before = rates.sessions.get(&session.io_base);
            row.push(rates.bytes(before.map(|b| b.to_client), session.to_client));
            row.push(rates.bytes(before.map(|b| b.to_agent), session.to_agent));
        }
        table.row(row);
    }
    table
}

/// A session's sequences: `7`, or `7-8` with stderr of its own.
pub(super) fn sequences(session: &SessionStatus) -> String {
    match session.streams {
        0 | 1 => session.io_base.to_string(),
        n => format!("{}-{}", session.io_base, session.io_base.saturating_add(u64::from(n) - 1)),
    }
}

/// What an operator should look at, in sentences.
fn notes(now: &Status) -> Vec<String> {
    let mut notes = Vec::new();
    for vm in &now.vms {
        let id = show::plain(&vm.id);
        if let Some(seq) = vm.blocked_by {
            let session = vm.sessions.iter().find(|s| s.io_base == seq);
            let queued = show::bytes(session.map_or(0, |s| s.queued_to_client));
            let why = session.and_then(|s| s.spill_stopped.as_deref());
            let why = why.map(|why| format!(", and no more can spill: {}", show::plain(why))).unwrap_or_default();
            notes.push(format!("VM {id} is not read: the client of session {seq} does not read its {queued}{why}"));
        }
        if vm.state == "unresponsive" {
            let command = vm.command.as_deref().map_or("a command".to_owned(), show::plain);
            notes.push(format!("VM {id} does not answer {command}; {} more wait", vm.commands_queued));
        }
    }
    for shard in &now.shards {
        if shard.stale_completions > 0 {
            notes.push(format!(
                "shard {} saw {} stale completions: a fault of ours, please report it",
                shard.shard, shard.stale_completions
            ));
        }
        if shard.sessions_too_slow > 0 {
            notes.push(format!(
                "shard {} ended {} whose clients did not read; see the log",
                shard.shard,
                show::many(shard.sessions_too_slow, "session")
            ));
        }
        if shard.faulty_peers > 0 {
            notes.push(format!(
                "shard {} ended {} peers that broke the protocol; see the log",
                shard.shard, shard.faulty_peers
            ));
        }
    }
    if now.counters.commands_overdue > 0 {
        notes.push(format!("{} commands were not answered in time", show::count(now.counters.commands_overdue)));
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::admin::ShardStatus;

    fn sample() -> Status {
        let flow = Flow { frames: 3, bytes: 2048 };
        let session = SessionStatus {
            io_base: 7,
            streams: 2,
            state: "open".into(),
            to_client: flow,
            slow: true,
            ..SessionStatus::default()
        };
        let blocker = SessionStatus {
            io_base: 9,
            streams: 1,
            state: "open".into(),
            queued_to_client: 8 << 20,
            spilled: 6 << 20,
            spill_stopped: Some("ENOSPC: No space left on device".into()),
            ..SessionStatus::default()
        };
        let vm = VmStatus {
            id: "vm\u{7}1".into(),
            state: "unresponsive".into(),
            command: Some("ping".into()),
            commands_queued: 2,
            to_client: flow,
            blocked_by: Some(9),
            sessions: vec![session, blocker],
            ..VmStatus::default()
        };
        let shard = ShardStatus {
            cpu: Some(4),
            load_permille: 375,
            links: 1,
            sessions: 2,
            to_client: flow,
            chunks_in_use: 2,
            links_blocked: 1,
            ..ShardStatus::default()
        };
        Status {
            version: "1.2.3".into(),
            pid: 77,
            uptime_ms: 90_000,
            socket: "/s".into(),
            cpu_us: 1_500_000,
            memory_bytes: 5 << 20,
            shards: vec![shard],
            vms: vec![vm],
            ..Status::default()
        }
    }

    #[test]
    fn the_page_says_who_blocks_and_who_is_slow() {
        let text = render(&sample(), None);
        for expected in [
            "ringway 1.2.3 pid 77, up 1 min 30 s, /s",
            "1 VM, 2 sessions, 0 clients",
            "memory 5.0 MiB, CPU time 1.5 s\n",
            "to clients 2.0 KiB in 3 frames",
            "0      4    37.5 %    1",
            "vm\\u{7}1  unresponsive  ping (+2)",
            "7-8  vm\\u{7}1  open, slow",
            "9    vm\\u{7}1  open, blocks its VM",
            "VM vm\\u{7}1 is not read: the client of session 9 does not read its 8.0 MiB, and",
            "no more can spill: ENOSPC",
            "VM vm\\u{7}1 does not answer ping; 2 more wait",
        ] {
            assert!(text.contains(expected), "{expected:?} is not in\n{text}");
        }
        assert!(!text.contains("/s  "), "no rates without a second answer\n{text}");
    }

    #[test]
    fn rates_are_bytes_over_the_daemon_s_own_time() {
        let before = sample();
        let mut now = sample();
        now.uptime_ms += 500;
        now.cpu_us += 250_000;
        now.shards[0].to_client.bytes += 1024;
        now.vms[0].sessions[1].to_client.bytes += 512;
        now.vms[0].sessions.push(SessionStatus { io_base: 11, ..SessionStatus::default() });
        let text = render(&now, Some(&before));
        assert!(text.contains("(50.0 % of one CPU now)"), "{text}");
        let line = |start: &str| text.lines().find(|l| l.trim_start().starts_with(start)).unwrap().to_owned();
        assert!(line("9 ").contains("  1.0 KiB/s  ") && line("9 ").ends_with(" 0 B/s"), "{text}");
        assert!(line("11 ").ends_with(" -"), "{text}");
        assert!(line("0 ").contains("2.0 KiB/s"), "{text}");
    }

    #[test]
    fn a_restarted_daemon_has_no_rates() {
        let before = Status { pid: 1, uptime_ms: 10, ..sample() };
        assert!(!render(&sample(), Some(&before)).contains("/s  "));
    }

    #[test]
    fn an_idle_daemon_has_no_empty_tables() {
        let text = render(&Status::default(), None);
        assert!(!text.contains("SESSIONS") && !text.contains("ATTENTION"), "{text}");
    }
}

//! A shim that is killed and another one with the same token: what the kernel took for the first is the first's, all
//! else is the second's.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;

use ringway::wire::cc2::Command;
use ringway::wire::hyper::Code;

use super::client::{frame, pattern};
use super::framed::{Framed, exec};
use super::guest::Guest;
use super::harness::{Daemon, until};
use super::scene::Scene;

/// Starts a process for a token of the test's own agent, and returns its session.
fn started(daemon: &Daemon, guest: &mut Guest, runtime: &mut Framed, token: &str) -> u64 {
    runtime.send_hyper("execcmd", &[token], &exec("p", "true"));
    guest.serve(Code::ExecCmd, Code::Ack, b"");
    assert_eq!(runtime.response(Command::Hyper), Ok(Vec::new()));
    let sessions = daemon.status().vms.into_iter().flat_map(|vm| vm.sessions);
    sessions.filter(|session| session.token).map(|session| session.io_base).max().unwrap()
}

/// Everything a socket still has in it, without waiting for more: what the kernel took and was not read.
fn left_in(mut socket: &UnixStream) -> Vec<u8> {
    let mut left = Vec::new();
    socket.set_nonblocking(true).unwrap();
    match socket.read_to_end(&mut left) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => {}
        other => panic!("not still open: {other:?}"),
    }
    left
}

/// The payload of whole frames of stdout.
fn payload_of(mut frames: &[u8]) -> Vec<u8> {
    let mut payload = Vec::new();
    while !frames.is_empty() {
        assert_eq!(frames[..8], [0, 2, 3, 0, 0, 0, 2, 1], "frames are whole");
        let len = usize::try_from(u32::from_be_bytes(frames[8..12].try_into().unwrap())).unwrap();
        payload.extend_from_slice(&frames[12..12 + len]);
        frames = &frames[12 + len..];
    }
    payload
}

#[test]
fn the_second_begins_exactly_behind_what_the_kernel_took_for_the_first() {
    let mut scene = Scene::set(&[]);
    let (mut runtime, tokens) = Framed::attached(&scene.daemon, "witness", 1);
    let token = tokens[0].as_str();
    let mut shim = Framed::shim(&scene.daemon, token);
    let base = started(&scene.daemon, &mut scene.guest, &mut runtime, token);
    let sent = pattern(5, 7 << 20);
    let mut got = Vec::new();
    let frames: Vec<&[u8]> = sent.chunks(7_777).collect();
    frames.iter().for_each(|payload| scene.guest.send(base, payload));
    let has_all = |session: &ringway::wire::admin::SessionStatus| session.to_client.frames == frames.len() as u64;
    until("all of it received", || scene.daemon.session(base).filter(has_all));
    let mut at_risk = 0;
    for round in 0..12 {
        for _ in 0..round {
            got.extend(shim.next_frame().unwrap().1);
        }
        // Nothing moves any more: the socket is full.
        let waits = |session: &ringway::wire::admin::SessionStatus| session.slow;
        until("a full socket", || scene.daemon.session(base).filter(waits));
        // Reading makes room, which a running daemon would fill: all the rest could go to this shim.
        got.extend(payload_of(&stopped_and_left(&scene.daemon, &shim.socket)));
        drop(shim);
        scene.daemon.signal(nix::sys::signal::Signal::SIGCONT);
        let state = |session: &ringway::wire::admin::SessionStatus| session.state == "detached";
        let session = until("detached", || scene.daemon.session(base).filter(state));
        assert!(session.maybe_unread > at_risk && session.maybe_unread - at_risk <= 208 << 10, "{session:?}");
        at_risk = session.maybe_unread;
        shim = Framed::next_shim(&scene.daemon, token);
    }
    let rest = sent.len() - got.len();
    got.extend(shim.take(rest));
    assert!(got == sent, "no byte doubled, none missing");
    scene.daemon.logged(&["shim gone", "vm=\"witness\"", &format!("session={base}"), "at_risk="]);
    scene.serves();
}

/// Stops the daemon, so that nothing is sent while this looks, and reads what is in the socket until it is empty.
fn stopped_and_left(daemon: &Daemon, socket: &UnixStream) -> Vec<u8> {
    daemon.signal(nix::sys::signal::Signal::SIGSTOP);
    until("a stopped daemon", || {
        // Each thread stops by itself, and a shard's is not the first.
        let mut threads = std::fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap();
        let stopped = |thread: std::io::Result<std::fs::DirEntry>| {
            let stat = std::fs::read_to_string(thread.unwrap().path().join("stat")).unwrap();
            stat.rsplit(')').next().unwrap().trim_start().starts_with('T')
        };
        threads.all(stopped).then_some(())
    });
    left_in(socket)
}

#[test]
fn a_shim_gone_before_it_read_anything_leaves_all_that_comes_to_the_next() {
    let mut scene = Scene::set(&[]);
    let (mut runtime, tokens) = Framed::attached(&scene.daemon, "witness", 1);
    let token = tokens[0].as_str();
    let shim = Framed::shim(&scene.daemon, token);
    let base = started(&scene.daemon, &mut scene.guest, &mut runtime, token);
    drop(shim);
    until("detached", || scene.daemon.session(base).filter(|session| session.state == "detached"));
    assert_eq!(scene.daemon.session(base).unwrap().maybe_unread, 0);
    let sent = pattern(6, 3 << 20);
    sent.chunks(8_000).for_each(|payload| scene.guest.send(base, payload));
    scene.guest.send(base, b"");
    scene.guest.send(base, &[3]);
    let mut shim = Framed::next_shim(&scene.daemon, token);
    let seen = shim.rest();
    assert!(seen.stdout == sent && seen.status == 3);
    scene.serves();
}

#[test]
fn a_session_nobody_reads_is_bounded_and_holds_back_its_own_vm_only() {
    let mut scene = Scene::set(&["--session-buffer", "128KiB", "--slow-reader", "block"]);
    let (mut guest, mut runtime, tokens) = super::framed::boot(&scene.daemon, "held", 1);
    let token = tokens[0].as_str();
    drop(Framed::shim(&scene.daemon, token));
    let shim = Framed::next_shim(&scene.daemon, token);
    let base = started(&scene.daemon, &mut guest, &mut runtime, token);
    drop(shim);
    let sent = pattern(8, 4 << 20);
    let wire: Vec<u8> = sent.chunks(8_192).flat_map(|payload| frame(base, payload)).collect();
    let mut io = guest.io.try_clone().unwrap();
    let writer = thread::spawn(move || io.write_all(&wire).unwrap());
    until("held back", || scene.daemon.vm("held").filter(|vm| vm.blocked_by == Some(base)));
    scene.serves();
    let mut shim = Framed::next_shim(&scene.daemon, token);
    assert!(shim.take(sent.len()) == sent);
    writer.join().unwrap();
    scene.serves();
}

#[test]
fn input_goes_on_with_the_next_shim() {
    let mut scene = Scene::set(&[]);
    let (mut runtime, tokens) = Framed::attached(&scene.daemon, "witness", 1);
    let token = tokens[0].as_str();
    let mut shim = Framed::shim(&scene.daemon, token);
    let base = started(&scene.daemon, &mut scene.guest, &mut runtime, token);
    for round in 0..30_u8 {
        shim.stdin(&[round; 100]);
        // Half a frame goes with its shim.
        shim.send_bytes(&[0, 2, 3, 0, 0, 0, 2, 0, 0, 0, 0, 50, 1, 2, 3]);
        drop(shim);
        assert_eq!(scene.guest.take_frame(), (base, vec![round; 100]));
        shim = Framed::next_shim(&scene.daemon, token);
    }
    assert_eq!(scene.daemon.status().counters.shims_lost, 30);
    scene.serves();
}

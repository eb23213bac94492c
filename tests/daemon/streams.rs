//! Frames: cut, whole, in order, to whoever reads, past whoever does not.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::thread;
use std::time::Duration;

use serde_json::Value;

use super::client::{Session, frame, pattern};
use super::guest::Guest;
use super::harness::{Daemon, until};
use super::scene::Scene;

#[test]
fn frames_over_10240_bytes_are_split_for_the_client() {
    let mut scene = Scene::set(&[]);
    let base = scene.session.base;
    for len in [10_228, 10_229, 20_456, 20_457, 100_000] {
        let payload = pattern(len as u64, len);
        scene.guest.send(base + 1, &payload);
        let mut got = Vec::new();
        while got.len() < len {
            let (seq, piece) = scene.session.next_frame().unwrap();
            assert_eq!(seq, base + 1);
            assert!(piece.len() == 10_228 || got.len() + piece.len() == len, "only the last piece is shorter");
            got.extend_from_slice(&piece);
        }
        assert!(got == payload, "{len} bytes");
    }
    scene.guest.send(base, b"");
    scene.session.expect(b"");
    scene.is_sound();
}

#[test]
fn headers_are_never_torn_however_the_agent_sends_and_the_client_reads() {
    let mut scene = Scene::set(&[]);
    let base = scene.session.base;
    let lens = [0, 1, 11, 12, 13, 500, 511, 512, 513, 4_084, 10_228, 10_229, 32_756, 32_757, 40_000];
    let frames: Vec<Vec<u8>> = (0..600).map(|n| pattern(n as u64, lens[n * 7 % lens.len()])).collect();
    let wire: Vec<u8> = frames.iter().flat_map(|payload| frame(base, payload)).collect();
    let mut io = scene.guest.io.try_clone().unwrap();
    let sender = thread::spawn(move || {
        let mut rest = wire.as_slice();
        let mut piece = 1;
        while !rest.is_empty() {
            let n = piece.min(rest.len());
            io.write_all(&rest[..n]).unwrap();
            rest = &rest[n..];
            piece = piece * 3 % 65_521 + 1;
        }
    });
    for (n, payload) in frames.iter().enumerate() {
        let got = scene.session.take(payload.len());
        if payload.is_empty() {
            scene.session.expect(b"");
        }
        assert!(got == *payload, "frame {n}");
        if n % 100 == 50 {
            // Behind by a while, so that both the direct way and the one through memory are taken.
            until("something owed", || scene.daemon.session(base).filter(|session| session.queued_to_client > 0));
        }
    }
    sender.join().unwrap();
    scene.is_sound();
}

#[test]
fn client_frames_over_the_agents_bound_are_cut_and_others_pass_unchanged() {
    for (flags, bound) in [(&[][..], 4_096), (&["--agent-frame-max", "1000"], 1_000)] {
        let mut scene = Scene::set(flags);
        let base = scene.session.base;
        for len in [0, 1, 100, bound - 12] {
            let payload = pattern(len as u64, len);
            scene.session.send(&payload);
            assert_eq!(scene.guest.take_frame(), (base, payload));
        }
        for len in [bound - 11, 10_228, 10_229, 100_000] {
            let payload = pattern(len as u64, len);
            scene.session.send(&payload);
            let mut got = Vec::new();
            while got.len() < len {
                let (seq, piece) = scene.guest.take_frame();
                assert!(seq == base && piece.len() + 12 <= bound);
                assert!(piece.len() + 12 == bound || got.len() + piece.len() == len, "only the last piece is shorter");
                got.extend_from_slice(&piece);
            }
            assert!(got == payload, "{len} bytes");
        }
        scene.is_sound();
    }
}

#[test]
fn a_client_that_only_reads_on_after_half_closing_gets_its_output() {
    let mut scene = Scene::set(&[]);
    let mut session = scene.client.allocate(1);
    session.send(b"last words");
    session.socket.shutdown(Shutdown::Write).unwrap();
    assert_eq!(scene.guest.take_frame().1, b"last words");
    until("its half-close", || scene.daemon.session(session.base).filter(|session| session.state == "input-ended"));
    scene.guest.send(session.base, b"an answer");
    session.expect(b"an answer");
    drop(session);
    scene.is_sound();
}

#[test]
fn killing_an_agent_ends_its_sessions_and_commands_at_once_and_no_others() {
    let mut scene = Scene::set(&[]);
    let mut agent = scene.daemon.agent("victim", &[]);
    let mut client = scene.daemon.client();
    client.attach("victim").unwrap();
    let mut sessions: Vec<Session> = (0..4).map(|_| client.allocate(2)).collect();
    let args = |script: &str, base: u64| {
        let process = serde_json::json!({ "stdio": base, "stderr": base + 1, "args": ["sh", "-c", script] });
        serde_json::json!({ "process": process })
    };
    for session in &mut sessions {
        client.send_hyper("execcmd", &args("echo up; exec cat", session.base));
        assert_eq!(client.response(), Ok(Value::Null));
        session.expect(b"up\n");
    }
    agent.child.kill().unwrap();
    agent.child.wait().unwrap();
    client.send_hyper("ping", &Value::Null);
    let error = client.response().unwrap_err();
    assert!(!error.is_empty(), "{error}");
    for session in &mut sessions {
        session.ends();
    }
    scene.daemon.logged(&["VM lost", "vm=\"victim\""]);
    client.bye("victim").unwrap();
    drop((client, sessions));
    scene.is_sound();
}

#[test]
fn what_was_received_before_a_vm_died_reaches_its_client() {
    let mut scene = Scene::set(&[]);
    let mut client = scene.daemon.client();
    let mut guest = Guest::boot(&scene.daemon, &mut client, "vm");
    let mut session = client.allocate(1);
    // It could have output any time, so that the VM is read although the other one's client is behind.
    let idle = client.allocate(1);
    let sent = pattern(1, 2 << 20);
    sent.chunks(8_000).for_each(|payload| guest.send(session.base, payload));
    guest.io.write_all(&frame(session.base, b"half of this is never sent")[..20]).unwrap();
    drop(guest);
    scene.daemon.logged(&["VM lost", "vm=\"vm\""]);
    until("draining", || scene.daemon.session(session.base).filter(|session| session.state == "draining"));
    assert!(session.take(sent.len()) == sent);
    session.expect_end();
    client.bye("vm").unwrap();
    drop((client, session, idle));
    scene.is_sound();
}

/// A VM is not read while its only client is behind: what its socket holds then is received after it has died.
#[test]
fn what_a_vm_had_written_before_it_died_reaches_its_only_client() {
    let mut scene = Scene::set(&[]);
    let mut client = scene.daemon.client();
    let mut guest = Guest::boot(&scene.daemon, &mut client, "vm");
    let mut session = client.allocate(1);
    let sent = pattern(1, 16 << 20);
    let mut frames = sent.chunks(8_000).map(|payload| (payload.len(), frame(session.base, payload)));
    guest.io.set_nonblocking(true).unwrap();
    let mut written = 0;
    let mut refusals = 0;
    let (mut len, mut rest) = frames.next().unwrap();
    while refusals < 20 {
        match guest.io.write(&rest) {
            Ok(n) => drop(rest.drain(..n)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                refusals += 1;
                thread::sleep(Duration::from_millis(10));
            }
            Err(error) => panic!("{error}"),
        }
        if rest.is_empty() {
            written += len;
            (len, rest) = frames.next().expect("the VM is not read for ever");
        }
    }
    drop(guest);
    scene.daemon.logged(&["VM lost", "vm=\"vm\""]);
    assert!(session.take(written) == sent[..written]);
    session.expect_end();
    client.bye("vm").unwrap();
    drop((client, session));
    scene.is_sound();
}

#[test]
fn input_for_a_dead_vm_does_not_cost_its_last_output() {
    let mut scene = Scene::set(&["--session-buffer", "64KiB", "--slow-reader", "block"]);
    let mut client = scene.daemon.client();
    let mut guest = Guest::boot(&scene.daemon, &mut client, "vm");
    let (mut stopped, mut other) = (client.allocate(1), client.allocate(1));
    let bytes = frame(stopped.base, &pattern(3, 8_180));
    let wire = bytes.repeat(1_024);
    guest.io.set_nonblocking(true).unwrap();
    let mut written = 0;
    // Until the daemon does not read any more and the socket is full, however long that takes.
    until("held back", || {
        while let Ok(n) = guest.io.write(&wire[written..]) {
            written += n;
        }
        scene.daemon.vm("vm").filter(|vm| vm.blocked_by == Some(stopped.base))
    });
    while let Ok(n) = guest.io.write(&wire[written..]) {
        written += n;
    }
    drop(guest);
    scene.daemon.logged(&["VM lost", "vm=\"vm\""]);
    // What it is told is lost; it must not take along what the VM said.
    for _ in 0..10 {
        let _ = other.socket.write_all(&frame(other.base, b"are you there?"));
        scene.serves();
    }
    let whole = written / bytes.len();
    assert!(whole > 20, "{written} bytes");
    for _ in 0..whole {
        assert!(frame(stopped.base, &stopped.next_frame().expect("all that was written").1) == bytes);
    }
    stopped.expect_end();
    other.expect_end();
    client.bye("vm").unwrap();
    drop((client, stopped, other));
    scene.is_sound();
}

#[test]
fn an_agent_that_closes_its_control_channel_only_is_lost_and_its_output_is_not() {
    let mut scene = Scene::set(&[]);
    let mut client = scene.daemon.client();
    let Guest { ctl, mut io } = Guest::boot(&scene.daemon, &mut client, "vm");
    let mut session = client.allocate(1);
    io.write_all(&frame(session.base, b"last words")).unwrap();
    drop(ctl);
    session.expect(b"last words");
    session.expect_end();
    assert!(super::client::ends(&io));
    client.bye("vm").unwrap();
    drop((client, session, io));
    scene.is_sound();
}

#[test]
fn sixty_four_agents_that_send_one_byte_of_a_header_stall_nobody() {
    let mut scene = Scene::set(&[]);
    let mut client = scene.daemon.client();
    let mut slow: Vec<(Guest, Session)> = (0..64)
        .map(|n| {
            let guest = Guest::boot(&scene.daemon, &mut client, &format!("slow{n}"));
            (guest, client.allocate(1))
        })
        .collect();
    let frames: Vec<Vec<u8>> = slow.iter().map(|(_, session)| frame(session.base, b"at last")).collect();
    for at in 0..frames[0].len() {
        for ((guest, _), frame) in slow.iter_mut().zip(&frames) {
            guest.io.write_all(&frame[at..=at]).unwrap();
        }
        scene.serves();
    }
    for (n, (_, session)) in slow.iter_mut().enumerate() {
        session.expect(b"at last");
        client.bye(&format!("slow{n}")).unwrap();
    }
    drop((client, slow));
    scene.is_sound();
}

#[test]
fn a_reader_that_stops_stalls_none_of_the_fifteen_others_and_loses_nothing() {
    let mut scene = Scene::set(&[]);
    let mut client = scene.daemon.client();
    let mut guest = Guest::boot(&scene.daemon, &mut client, "busy");
    let mut stopped = client.allocate(1);
    let others: Vec<Session> = (0..15).map(|_| client.allocate(1)).collect();
    // 4 MiB each: under --session-buffer, over what sockets hold.
    let len = 4 << 20;
    let bases: Vec<u64> = std::iter::once(&stopped).chain(&others).map(|session| session.base).collect();
    let mut io = guest.io.try_clone().unwrap();
    let sender = thread::spawn(move || {
        let streams: Vec<Vec<u8>> = bases.iter().map(|&base| pattern(base, len)).collect();
        for at in (0..len).step_by(8_192) {
            for (&base, stream) in bases.iter().zip(&streams) {
                io.write_all(&frame(base, &stream[at..at + 8_192])).unwrap();
            }
        }
    });
    let readers: Vec<_> = others
        .into_iter()
        .map(|mut session| thread::spawn(move || assert!(session.take(len) == pattern(session.base, len))))
        .collect();
    readers.into_iter().for_each(|reader| reader.join().unwrap());
    sender.join().unwrap();
    let status = scene.daemon.session(stopped.base).unwrap();
    assert!(status.slow && status.queued_to_client > 3 << 20, "{status:?}");
    assert_eq!(scene.daemon.vm("busy").unwrap().blocked_by, None);
    assert!(stopped.take(len) == pattern(stopped.base, len));
    guest.obeys(&mut client, "ping");
    client.bye("busy").unwrap();
    drop((client, stopped));
    scene.is_sound();
}

#[test]
fn a_reader_past_the_session_buffer_holds_back_its_vm_alone_until_it_reads() {
    let mut scene = Scene::set(&["--session-buffer", "128KiB", "--slow-reader", "block"]);
    let mut client = scene.daemon.client();
    let guest = Guest::boot(&scene.daemon, &mut client, "held");
    let mut stopped = client.allocate(1);
    // It could have output any time, so that the VM is read although the other one's client is behind.
    let idle = client.allocate(1);
    let len = 4 << 20;
    let (mut io, base) = (guest.io.try_clone().unwrap(), stopped.base);
    let sender = thread::spawn(move || {
        pattern(base, len).chunks(8_192).for_each(|payload| io.write_all(&frame(base, payload)).unwrap());
    });
    // What its socket takes at first lets the VM go on now and then; it is at rest when that is full.
    let vm = until("held back", || {
        let vm = scene.daemon.vm("held").filter(|vm| vm.blocked_by == Some(base))?;
        (vm.sessions[0].slow && vm.sessions[0].queued_to_client > 64 << 10).then_some(vm)
    });
    let session = &vm.sessions[0];
    assert!(session.queued_to_client < 2 << 20, "bounded: {session:?}");
    scene.daemon.logged(&["WARN", "held back", "vm=\"held\"", &format!("session={base}")]);
    let metrics = scene.daemon.admin().metrics().unwrap();
    assert!(metrics.contains("ringway_vm_blocked{vm=\"held\"} 1\n"), "{metrics}");
    assert!(metrics.contains("ringway_vm_blocked{vm=\"witness\"} 0\n"), "{metrics}");
    scene.serves();
    assert!(stopped.take(len) == pattern(base, len));
    sender.join().unwrap();
    until("read again", || scene.daemon.vm("held").filter(|vm| vm.blocked_by.is_none()));
    client.bye("held").unwrap();
    drop((client, stopped, idle, guest));
    scene.is_sound();
}

#[test]
fn a_reader_that_goes_away_frees_the_vm_it_held_back() {
    let mut scene = Scene::set(&["--session-buffer", "128KiB", "--slow-reader", "block"]);
    let mut client = scene.daemon.client();
    let guest = Guest::boot(&scene.daemon, &mut client, "held");
    let (stopped, mut other) = (client.allocate(1), client.allocate(1));
    let (mut io, base) = (guest.io.try_clone().unwrap(), stopped.base);
    let last = frame(other.base, b"after all that");
    let sender = thread::spawn(move || {
        pattern(base, 4 << 20).chunks(8_192).for_each(|payload| io.write_all(&frame(base, payload)).unwrap());
        io.write_all(&last).unwrap();
    });
    until("held back", || scene.daemon.vm("held").filter(|vm| vm.blocked_by == Some(base)));
    drop(stopped);
    other.expect(b"after all that");
    sender.join().unwrap();
    client.bye("held").unwrap();
    drop((client, other, guest));
    scene.is_sound();
}

#[test]
fn an_agent_that_does_not_read_holds_back_its_clients_and_no_other_vm() {
    let mut scene = Scene::set(&[]);
    let mut client = scene.daemon.client();
    let mut guest = Guest::boot(&scene.daemon, &mut client, "deaf");
    let (mut one, mut two) = (client.allocate(1), client.allocate(1));
    let payload = pattern(9, 4_084);
    let most = 16_384;
    let (frames, rest) = one.flood(&payload, most);
    assert!(frames < most, "64 MiB went nowhere");
    let (more, more_rest) = two.flood(&payload, most);
    assert!(more < most, "each client is held back");
    let vm = scene.daemon.vm("deaf").unwrap();
    assert!(vm.queued_to_agent > 0 && vm.queued_to_agent < 2 << 20, "bounded: {vm:?}");
    scene.serves();
    // The other direction of the same VM runs on.
    guest.send(one.base, b"still talking");
    one.expect(b"still talking");
    let (base, other) = (one.base, two.base);
    let writers = [(one, rest), (two, more_rest)].map(|(mut session, rest)| {
        thread::spawn(move || {
            session.socket.write_all(&rest).unwrap();
            session.send(b"the end");
            session
        })
    });
    let mut got = [0, 0];
    let mut ends = 0;
    while ends < 2 {
        let (seq, bytes) = guest.take_frame();
        assert!(seq == base || seq == other);
        if bytes == b"the end" {
            ends += 1;
        } else {
            assert!(bytes == payload, "whole frames, in order");
            got[usize::from(seq == other)] += 1;
        }
    }
    let sessions = writers.map(|writer| writer.join().unwrap());
    assert!((frames..=frames + 1).contains(&got[0]) && (more..=more + 1).contains(&got[1]), "{frames} {more} {got:?}");
    client.bye("deaf").unwrap();
    drop((client, sessions, guest));
    scene.is_sound();
}

#[test]
fn a_flood_of_one_session_leaves_others_of_its_vm_their_turn() {
    let daemon = Daemon::start(&[]);
    let mut client = daemon.client();
    let mut guest = Guest::boot(&daemon, &mut client, "vm");
    let (mut flood, mut quiet) = (client.allocate(1), client.allocate(1));
    let (flooding, asking) = (flood.base, quiet.base);
    flood.flood(&[0; 4_084], 16_384);
    quiet.send(b"my turn");
    // What lies before it is bounded by what was in the queues when it came, not by the flood.
    let mut before = 0;
    flood.socket.set_nonblocking(true).unwrap();
    loop {
        let (seq, payload) = guest.take_frame();
        if seq == asking {
            assert_eq!(payload, b"my turn");
            break;
        }
        assert_eq!(seq, flooding);
        before += payload.len();
    }
    assert!(before < 2 << 20, "{before} bytes came first");
    let mut left = [0; 1];
    assert!(flood.socket.read(&mut left).is_err(), "the flood goes on");
}

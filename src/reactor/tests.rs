//! The ring against real sockets.

use super::*;

#[test]
fn what_the_kernel_did_not_take_leaves_in_a_later_turn() {
    let mut reactor = Reactor::new(probe().unwrap(), 4, Waker::new().unwrap()).unwrap();
    // Completions of a socket that is not there are counted.
    let nobody = OpTag { kind: OpKind::Cancel, slot: 3, generation: 0 }.encode();
    let many = 3 * u64::from(SUBMISSIONS);
    reactor.postponed.extend((0..many).map(|_| opcode::AsyncCancel::new(nobody).build().user_data(nobody)));
    while reactor.counters.stale < many {
        reactor.turn(false, &mut Vec::new()).unwrap();
    }
    assert!(reactor.postponed.is_empty());
}

/// What a shard's ring answers to an operation that reads no memory, or none but static memory.
fn answer(ring: &mut IoUring, entry: squeue::Entry) -> i32 {
    // SAFETY: what the entry points to is static.
    unsafe { ring.submission().push(&entry) }.unwrap();
    ring.submit_and_wait(1).unwrap();
    ring.completion().next().unwrap().result()
}

#[test]
fn operations_that_are_not_listed_are_refused() {
    let mut ring = build_ring().unwrap();
    assert_eq!(ring.submit().unwrap_err().raw_os_error(), Some(libc::EBADFD), "not enabled yet");
    restrict_and_enable(&ring).unwrap();
    let cancel = || opcode::AsyncCancel::new(1).build();
    assert_eq!(answer(&mut ring, cancel()), -libc::ENOENT, "a listed one");
    let (here, path) = (types::Fd(libc::AT_FDCWD), c"/".as_ptr());
    let unlisted = [
        opcode::Nop::new().build(),
        opcode::Socket::new(libc::AF_INET, libc::SOCK_STREAM, 0).build(),
        opcode::Connect::new(types::Fd(0), ptr::null(), 0).build(),
        opcode::Accept::new(types::Fd(0), ptr::null_mut(), ptr::null_mut()).build(),
        opcode::Write::new(types::Fd(0), ptr::null(), 0).build(),
        opcode::UnlinkAt::new(here, path).build(),
        opcode::Splice::new(types::Fd(0), -1, types::Fd(0), -1, 0).build(),
        cancel().flags(squeue::Flags::IO_DRAIN),
    ];
    for entry in unlisted {
        let shown = format!("{entry:?}");
        assert_eq!(answer(&mut ring, entry), -libc::EACCES, "{shown}");
    }
    let submitter = ring.submitter();
    for refused in [submitter.register_personality().map(drop), submitter.register_files(&[0])] {
        assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EACCES));
    }
    assert!(restrict_and_enable(&ring).is_err(), "restrictions stay");
}

#[test]
fn at_rest_the_receive_buffers_are_the_kernels_and_go_on_working() {
    let mut reactor = Reactor::new(probe().unwrap(), 4, Waker::new().unwrap()).unwrap();
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let socket = reactor.add(ours.into(), Direction::ToAgent).unwrap();
    reactor.resume(socket);
    let piece = vec![b'x'; 32 * 1024];
    let mut events = Vec::new();
    let mut receive = |reactor: &mut Reactor, bytes: &[u8]| {
        std::io::Write::write_all(&mut &theirs, bytes).unwrap();
        let mut got = Vec::new();
        while got.len() < bytes.len() {
            reactor.turn(true, &mut events).unwrap();
            for event in events.drain(..) {
                let Event::Received(_, view) = event else { panic!("{event:?}") };
                got.extend_from_slice(reactor.mem.bytes(view));
                reactor.mem.release(view.source);
            }
        }
        assert!(got == bytes);
    };
    for _ in 0..40 {
        assert!(!reactor.has_surplus());
        while !reactor.has_surplus() {
            receive(&mut reactor, &piece);
        }
        reactor.set_rest_timer();
        while !reactor.take_rest_timer() {
            reactor.turn(true, &mut Vec::new()).unwrap();
        }
        reactor.rest();
        receive(&mut reactor, b"what comes after a rest");
    }
}

#[test]
fn a_turn_enters_the_kernel_once_however_much_there_is_to_do() {
    let mut reactor = Reactor::new(probe().unwrap(), 64, Waker::new().unwrap()).unwrap();
    let pair = || std::os::unix::net::UnixStream::pair().unwrap();
    let (ours, mut theirs): (Vec<_>, Vec<_>) = (0..64).map(|_| pair()).unzip();
    let sockets: Vec<_> = ours.into_iter().map(|fd| reactor.add(fd.into(), Direction::ToAgent).unwrap()).collect();
    sockets.iter().for_each(|&socket| reactor.resume(socket));
    let mut events = Vec::new();
    for _ in 0..50 {
        theirs.iter_mut().for_each(|theirs| std::io::Write::write_all(theirs, b"there").unwrap());
        reactor.turn(false, &mut events).unwrap();
        for event in events.drain(..) {
            if let Event::Received(socket, view) = event {
                reactor.send(socket, &[view], false);
                reactor.mem.release(view.source);
            }
        }
    }
    assert_eq!(reactor.counters().enters, 50);
}

#[test]
fn the_last_send_ends_a_wait_only_when_it_comes_short() {
    let waker = Waker::new().unwrap();
    let mut reactor = Reactor::new(probe().unwrap(), 4, waker.clone()).unwrap();
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let (fed, mut feeder) = std::os::unix::net::UnixStream::pair().unwrap();
    let socket = reactor.add(ours.into(), Direction::ToAgent).unwrap();
    let fed = reactor.add(fed.into(), Direction::ToClient).unwrap();
    reactor.resume(fed);
    let mut events = Vec::new();
    std::io::Write::write_all(&mut feeder, &[7; 16 * 1024]).unwrap();
    reactor.turn(true, &mut events).unwrap();
    let Some(Event::Received(_, view)) = events.pop() else { panic!("{events:?}") };
    let views = [view; 64];
    let len = 64 * view.len as usize;
    // Taken whole: the timer ends the wait, and nothing else.
    reactor.send(socket, &views[..1], true);
    reactor.set_rest_timer();
    let before = reactor.counters().enters;
    reactor.turn(true, &mut events).unwrap();
    assert_eq!(reactor.counters().enters, before + 1);
    assert!(reactor.take_rest_timer());
    let sent = |event: &Event| matches!(event, Event::Sent(id, Ok(taken)) if *id == socket && *taken > 0);
    assert!(matches!(&events[..], [event] if sent(event)), "{events:?}");
    // Before whatever else happened.
    events.clear();
    reactor.send(socket, &views[..1], true);
    reactor.resume(socket);
    std::io::Write::write_all(&mut &theirs, b"an answer").unwrap();
    reactor.turn(true, &mut events).unwrap();
    let received = |event: &Event| matches!(event, Event::Received(id, _) if *id == socket);
    assert!(matches!(&events[..], [first, second] if sent(first) && received(second)), "{events:?}");
    // Also when the turn was woken.
    events.clear();
    reactor.send(socket, &views[..1], true);
    waker.announce_sleep();
    waker.wake();
    reactor.turn(true, &mut events).unwrap();
    assert!(matches!(&events[..], [event] if sent(event)), "{events:?}");
    // Short, then not at all: each ends the wait with what was taken.
    events.clear();
    reactor.send(socket, &views, true);
    reactor.turn(true, &mut events).unwrap();
    let taken = |events: &[Event]| match events {
        [Event::Sent(id, Ok(taken))] if *id == socket => *taken,
        other => panic!("{other:?}"),
    };
    assert!((1..len).contains(&taken(&events)));
    events.clear();
    reactor.send(socket, &views, true);
    reactor.turn(true, &mut events).unwrap();
    assert_eq!(taken(&events), 0);
    // To nobody.
    drop(theirs);
    events.clear();
    reactor.send(socket, &views, true);
    reactor.turn(true, &mut events).unwrap();
    assert!(matches!(events[..], [Event::Sent(_, Err(Errno::EPIPE)), ..]), "{events:?}");
}

#[test]
fn a_turn_that_does_not_wait_sees_what_has_arrived() {
    let mut reactor = Reactor::new(probe().unwrap(), 4, Waker::new().unwrap()).unwrap();
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let socket = reactor.add(ours.into(), Direction::ToClient).unwrap();
    reactor.resume(socket);
    let mut events = Vec::new();
    reactor.turn(false, &mut events).unwrap();
    assert!(events.is_empty());
    std::io::Write::write_all(&mut &theirs, b"here").unwrap();
    reactor.turn(false, &mut events).unwrap();
    assert!(matches!(events[..], [Event::Received(id, view)] if id == socket && view.len == 4), "{events:?}");
}

//! The library's protocol 2: runtimes and shims.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;

use ringway::client::{Error, RuntimeClient, SHIM_STDIN_MAX, ShimClient, ShimEvent};
use ringway::wire::cc2::{self, Command, Kind, LogEntry, Stream};
use ringway::wire::hyper::{ExecCmd, Process};

use crate::proxy2::Proxy2;

fn execcmd(args: &[&str]) -> ExecCmd {
    let args = args.iter().map(|&arg| arg.to_owned()).collect();
    ExecCmd { container: "c".into(), process: Process { args, ..Process::default() } }
}

/// A shim that has claimed the token.
fn shim(proxy: &Proxy2, token: &str) -> ShimClient {
    let mut shim = ShimClient::connect(proxy.socket()).unwrap();
    shim.connect_shim(token).unwrap();
    shim
}

#[test]
fn a_process_from_register_to_unregister() {
    let proxy = Proxy2::start();
    let mut runtime = RuntimeClient::connect(proxy.socket()).unwrap();
    let (url, tokens) = runtime.register_vm("new", Path::new("/ctl"), Path::new("/io"), None, 2).unwrap();
    assert_eq!((url.as_str(), tokens.len()), ("unix:///the/socket", 2));
    let expected = r#"{"containerId":"new","ctlSerial":"/ctl","ioSerial":"/io","numIOStreams":2}"#;
    assert_eq!(proxy.requests(Command::RegisterVm), [expected]);
    assert_eq!(runtime.hyper("ping", &[], &()).unwrap(), b"");
    assert_eq!(proxy.requests(Command::Hyper), [r#"{"hyperName":"ping"}"#], "no data was sent");

    let mut shim = shim(&proxy, &tokens[0]);
    runtime.hyper("execcmd", &tokens[..1], &execcmd(&["cat"])).unwrap();
    shim.write_stdin(b"hello").unwrap();
    assert_eq!(shim.read_event().unwrap(), ShimEvent::Stdout(b"hello"));
    shim.write_stdin(b"").unwrap();
    shim.write_stdin(b"still there").unwrap();
    assert_eq!(shim.read_event().unwrap(), ShimEvent::Stdout(b"still there"), "writing nothing ends nothing");
    shim.end_stdin().unwrap();
    assert_eq!(shim.read_event().unwrap(), ShimEvent::Exited(0));
    shim.disconnect_shim().unwrap();
    proxy.wait_until(|proxy| proxy.claims(&tokens[0]) == (1, true));
    runtime.unregister_vm("vm").unwrap();
    assert_eq!(proxy.requests(Command::UnregisterVm), [r#"{"containerId":"vm"}"#]);
}

#[test]
fn attaching_without_tokens_returns_none() {
    let proxy = Proxy2::start();
    let mut runtime = RuntimeClient::connect(proxy.socket()).unwrap();
    assert_eq!(runtime.attach_vm("vm", 0).unwrap().1, Vec::<String>::new());
    assert_eq!(runtime.hyper("readfile", &[], &()).unwrap(), vec![0xfe; 200_000], "raw, and longer than a command");
    let entry = LogEntry { source: "runtime".into(), level: "info".into(), msg: "hi".into(), ..LogEntry::default() };
    runtime.log(&entry).unwrap();
    runtime.hyper("ping", &[], &()).unwrap();
    assert_eq!(proxy.log(), [entry]);
}

#[test]
fn signals_are_answered_in_order() {
    let proxy = Proxy2::start();
    let token = proxy.token(&["await-signal"]);
    let mut shim = shim(&proxy, &token);
    assert_eq!(shim.read_event().unwrap(), ShimEvent::Stdout(b"ready\n"));
    shim.signal(12).unwrap();
    let refused = shim.read_event().unwrap();
    assert!(matches!(refused, ShimEvent::Response { command: Command::Signal, error: true, .. }), "{refused:?}");
    assert!(matches!(refused.refused(), Some(Error::Refused(text)) if text == "no such signal here"));
    shim.window_size(120, 40).unwrap();
    let mut rest = Vec::new();
    while rest.len() < 2 {
        match shim.read_event().unwrap() {
            ShimEvent::Exited(status) => rest.push(format!("exited {status}")),
            event @ ShimEvent::Response { .. } => {
                assert!(event.refused().is_none());
                rest.push("taken".to_owned());
            }
            other => panic!("{other:?}"),
        }
    }
    rest.sort();
    assert_eq!(rest, ["exited 128", "taken"]);
    let sent = [r#"{"signalNumber":12}"#, r#"{"signalNumber":28,"columns":120,"rows":40}"#];
    assert_eq!(proxy.requests(Command::Signal), sent);
}

#[test]
fn two_threads_move_more_than_any_buffer_holds() {
    let proxy = Proxy2::start();
    let token = proxy.token(&["cat"]);
    let (mut reader, writer) = shim(&proxy, &token).split();
    let sent: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251).to_le_bytes()[0]).collect();
    let copy = sent.clone();
    let thread = std::thread::spawn(move || {
        writer.write_stdin(&copy).unwrap();
        writer.end_stdin().unwrap();
        writer
    });
    let (mut got, mut status) = (Vec::new(), None);
    while status.is_none() {
        for event in reader.read_batch().unwrap().expect("an exit status before the end") {
            match event.unwrap() {
                ShimEvent::Stdout(bytes) => got.extend_from_slice(bytes),
                ShimEvent::Exited(n) => status = Some(n),
                other => panic!("{other:?}"),
            }
        }
    }
    let writer = thread.join().unwrap();
    writer.shut_down();
    assert!(got == sent);
    assert!(matches!(reader.read_event(), Ok(ShimEvent::Closed)));
}

#[test]
fn errors_say_whose_fault_they_are() {
    let proxy = Proxy2::start();
    let missing = RuntimeClient::connect("/nonexistent/socket").unwrap_err();
    assert!(matches!(&missing, Error::Connect { .. }), "{missing:?}");
    assert!(matches!(ShimClient::connect("/nonexistent/socket"), Err(Error::Connect { .. })));
    let mut runtime = RuntimeClient::connect(proxy.socket()).unwrap();
    let refused = runtime.attach_vm("nobody", 1).unwrap_err();
    assert!(matches!(&refused, Error::Refused(text) if text == "unknown containerID: nobody"), "{refused:?}");
    let long = "x".repeat(200_000);
    assert!(matches!(runtime.hyper("ping", &[], &long), Err(Error::Refused(text)) if text.contains("131072")));
    let refused = runtime.hyper("ping", &["t".into()], &()).unwrap_err();
    assert_eq!(refused.to_string(), "ping doesn't need tokens but 1 token(s) were given");
    assert!(matches!(runtime.attach_vm("dead", 1), Err(Error::Lost)));
    assert!(matches!(runtime.attach_vm("vm", 1), Err(Error::Lost)));

    let token = proxy.token(&["cat"]);
    let first = shim(&proxy, &token);
    for (token, text) in [(token.as_str(), "token already claimed: token-1"), ("no", "unknown token: no")] {
        let refused = ShimClient::connect(proxy.socket()).unwrap().connect_shim(token).unwrap_err();
        assert!(matches!(&refused, Error::Refused(said) if said == text), "{refused:?}");
    }
    drop(first);
    proxy.wait_until(|proxy| ShimClient::connect(proxy.socket()).unwrap().connect_shim(&token).is_ok());
}

/// A shim whose daemon is the other end of the pair.
fn pair() -> (ShimClient, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (ShimClient::from(ours), theirs)
}

/// What a daemon may say to a shim.
fn conversation() -> Vec<u8> {
    let response = |error| Kind::Response { command: Command::Signal, error };
    let mut wire = cc2::encode(Kind::Stream(Stream::Stdout), b"one ");
    wire.extend(cc2::encode(Kind::Stream(Stream::Stderr), b"err"));
    wire.extend(cc2::encode(response(true), br#"{"msg":"no"}"#));
    // A header of 20 bytes.
    let mut longer = cc2::encode(Kind::Stream(Stream::Stdout), b"");
    longer[2] = 5;
    longer[11] = 3;
    wire.extend(longer);
    wire.extend(b"ignored!two");
    wire.extend(cc2::encode(Kind::Notification(77), b"news"));
    wire.extend(cc2::encode(Kind::Stream(Stream::Stdout), b""));
    wire.extend(cc2::encode(response(false), b""));
    wire.extend(cc2::encode(Kind::Notification(cc2::PROCESS_EXITED), &[7]));
    wire
}

#[test]
fn events_do_not_depend_on_where_reads_end() {
    let wire = conversation();
    for cut in 0..=wire.len() {
        let (mut shim, mut daemon) = pair();
        let (mut out, mut err, mut rest) = (Vec::new(), Vec::new(), Vec::new());
        for piece in [&wire[..cut], &wire[cut..]] {
            daemon.write_all(piece).unwrap();
            shim.set_timeout(Some(std::time::Duration::from_micros(1))).unwrap();
            loop {
                match shim.read_event() {
                    Ok(ShimEvent::Stdout(bytes)) => out.extend_from_slice(bytes),
                    Ok(ShimEvent::Stderr(bytes)) => err.extend_from_slice(bytes),
                    Ok(ShimEvent::Exited(status)) => rest.push(format!("exited {status}")),
                    Ok(event) => rest.push(event.refused().map_or("taken".to_owned(), |error| error.to_string())),
                    Err(Error::Overdue) => break,
                    Err(error) => panic!("{error}"),
                }
            }
        }
        assert_eq!((out.as_slice(), err.as_slice()), (&b"one two"[..], &b"err"[..]), "cut at {cut}");
        assert_eq!(rest, ["no", "taken", "exited 7"], "cut at {cut}");
        drop(daemon);
        assert_eq!(shim.read_event().unwrap(), ShimEvent::Closed, "cut at {cut}");
    }
}

#[test]
fn a_connection_that_ends_inside_a_frame_is_lost_and_resumed() {
    let frame = cc2::encode(Kind::Stream(Stream::Stdout), b"0123456789");
    for cut in 1..frame.len() {
        let (shim, mut daemon) = pair();
        let (mut reader, _writer) = shim.split();
        daemon.write_all(&frame[..cut]).unwrap();
        drop(daemon);
        let mut got = Vec::new();
        let lost = loop {
            match reader.read_event() {
                Ok(ShimEvent::Stdout(bytes)) => got.extend_from_slice(bytes),
                Ok(other) => panic!("{other:?}"),
                Err(error) => break error,
            }
        };
        assert!(matches!(lost, Error::Lost), "{lost:?}");
        // The next connection begins with the same frame, itself cut.
        let (shim, mut daemon) = pair();
        let (mut again, _writer) = shim.split();
        again.skip(reader.unfinished());
        daemon.write_all(&frame[..cut.min(14)]).unwrap();
        drop(daemon);
        while let Ok(ShimEvent::Stdout(bytes)) = again.read_event() {
            got.extend_from_slice(bytes);
        }
        let (shim, mut daemon) = pair();
        let (mut last, _writer) = shim.split();
        last.skip(again.unfinished());
        daemon.write_all(&frame).unwrap();
        daemon.write_all(&frame).unwrap();
        drop(daemon);
        while let Ok(ShimEvent::Stdout(bytes)) = last.read_event() {
            got.extend_from_slice(bytes);
        }
        assert_eq!(String::from_utf8_lossy(&got), "01234567890123456789", "cut at {cut}");
        assert_eq!(last.unfinished(), None);
    }
}

#[test]
fn what_only_clients_send_breaks_the_connection() {
    let wrong = [
        cc2::encode(Kind::Stream(Stream::Stdin), b"x"),
        cc2::encode(Kind::Command(Command::Signal), b"{}"),
        cc2::encode(Kind::Notification(cc2::PROCESS_EXITED), b""),
        cc2::encode(Kind::Notification(cc2::PROCESS_EXITED), b"12"),
        vec![0, 1, 3, 0, 0, 0, 2, 1, 0, 0, 0, 0],
    ];
    for bytes in wrong {
        let (mut shim, mut daemon) = pair();
        daemon.write_all(&bytes).unwrap();
        assert!(matches!(shim.read_event(), Err(Error::Protocol(_))), "{bytes:?}");
    }
}

#[test]
fn stdin_is_cut_into_frames_of_one_kernel_buffer() {
    let (shim, mut daemon) = pair();
    let (_, writer) = shim.split();
    let thread = std::thread::spawn(move || writer.write_stdin(&vec![7; SHIM_STDIN_MAX + 1]).unwrap());
    let mut wire = Vec::new();
    std::io::Read::read_to_end(&mut daemon, &mut wire).unwrap();
    thread.join().unwrap();
    let mut decoder = cc2::Decoder::default();
    decoder.push(&wire);
    let lengths: Vec<usize> =
        std::iter::from_fn(|| decoder.next_frame().unwrap()).map(|frame| frame.payload.len()).collect();
    assert_eq!(lengths, [SHIM_STDIN_MAX, 1]);
}

//! The client library and `ringway exec` against a small proxy in this process.

mod exec;
mod proxy;
mod proxy2;
mod shim;
mod token;

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;

use proxy::Proxy;
use ringway::client::admin::AdminClient;
use ringway::client::{Client, Error, Event, Session, Stream};
use ringway::wire::admin::Status;
use ringway::wire::hyper::{ExecCmd, Process, StreamSeq};

fn execcmd(io_base: StreamSeq, args: &[&str]) -> ExecCmd {
    let args = args.iter().map(|&arg| arg.to_owned()).collect();
    let process = Process { id: Some("p".into()), stdio: io_base.0, stderr: io_base.0 + 1, args, ..Process::default() };
    ExecCmd { container: String::new(), process }
}

#[test]
fn a_session_from_hello_to_bye() {
    let proxy = Proxy::start();
    let mut client = Client::connect(proxy.socket()).unwrap();
    client.hello("new", Path::new("/ctl"), Path::new("/io")).unwrap();
    client.hyper("ping", &()).unwrap();
    assert_eq!(proxy.commands(), [("ping".to_owned(), String::new())], "no data was sent");
    let (io_base, fd) = client.allocate_io(2).unwrap();
    let mut session = Session::new(io_base, 2, fd);
    client.hyper("execcmd", &execcmd(io_base, &["cat"])).unwrap();
    session.write_stdin(b"hello").unwrap();
    assert_eq!(session.read_event().unwrap(), Some(Event::Stdout(b"hello")));
    session.end_stdin().unwrap();
    assert_eq!(session.read_event().unwrap(), Some(Event::Ended(Stream::Stderr)));
    assert_eq!(session.read_event().unwrap(), Some(Event::Ended(Stream::Stdout)));
    assert_eq!(session.read_event().unwrap(), Some(Event::ExitStatus(0)));
    client.bye("new").unwrap();
}

#[test]
fn commands_sent_together_are_answered_apart() {
    let proxy = Proxy::start();
    let mut client = Client::connect(proxy.socket()).unwrap();
    client.attach("vm").unwrap();
    let none = || serde_json::value::to_raw_value(&()).unwrap();
    let outcomes = client.hyper_each(vec![("ping", none()), ("nonsense", none()), ("ping", none())]).unwrap();
    assert!(matches!(outcomes[..], [Ok(()), Err(Error::Refused(_)), Ok(())]), "{outcomes:?}");
    let names: Vec<_> = proxy.commands().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["ping", "nonsense", "ping"]);
}

#[test]
fn two_threads_move_more_than_any_buffer_holds() {
    let proxy = Proxy::start();
    let mut client = Client::connect(proxy.socket()).unwrap();
    client.attach("vm").unwrap();
    let (io_base, fd) = client.allocate_io(2).unwrap();
    let (mut reader, mut writer) = Session::new(io_base, 2, fd).split();
    client.hyper("execcmd", &execcmd(io_base, &["cat"])).unwrap();
    let sent: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251).to_le_bytes()[0]).collect();
    let copy = sent.clone();
    let thread = std::thread::spawn(move || {
        writer.write_stdin(&copy).unwrap();
        writer.end_stdin().unwrap();
    });
    let mut got = Vec::new();
    let mut status = None;
    while status.is_none() {
        for event in reader.read_batch().unwrap().expect("an exit status before the end") {
            match event.unwrap() {
                Event::Stdout(bytes) => got.extend_from_slice(bytes),
                Event::ExitStatus(n) => status = Some(n),
                Event::Ended(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }
    thread.join().unwrap();
    assert!(got == sent);
    assert_eq!(status, Some(0));
}

#[test]
fn errors_say_whose_fault_they_are() {
    let proxy = Proxy::start();
    let missing = Client::connect(proxy.dir().join("none")).unwrap_err();
    assert!(matches!(&missing, Error::Connect { .. }) && missing.to_string().contains("is the daemon running"));

    let mut client = Client::connect(proxy.socket()).unwrap();
    let refused = client.attach("nobody").unwrap_err();
    assert!(matches!(&refused, Error::Refused(text) if text == "unknown containerID: nobody"), "{refused:?}");
    client.attach("vm").expect("a refusal leaves the connection sound");
    assert!(matches!(client.allocate_io(3), Err(Error::Refused(text)) if text.contains("streams (3)")));
    assert!(matches!(client.hyper("nonsense", &()), Err(Error::Refused(text)) if text == "unknown command 'nonsense'"));

    assert!(matches!(client.attach("dead"), Err(Error::Lost)));
    assert!(matches!(client.attach("vm"), Err(Error::Lost)));
    let mut client = Client::connect(proxy.socket()).unwrap();
    assert!(matches!(client.attach("babbling"), Err(Error::Protocol(_))));
}

#[test]
fn a_session_that_ends_inside_a_frame_is_lost() {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let mut session = Session::new(StreamSeq(1), 1, ours.into());
    (&theirs).write_all(&[0, 0, 0, 0]).unwrap();
    drop(theirs);
    assert!(matches!(session.read_event(), Err(Error::Lost)));
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    drop(theirs);
    assert!(matches!(Session::new(StreamSeq(1), 1, ours.into()).read_event(), Ok(None)));
}

/// Answers each connection with the next of `answers`; returns the request lines.
fn admin_server(socket: &Path, answers: Vec<String>) -> std::thread::JoinHandle<Vec<String>> {
    let listener = UnixListener::bind(socket).unwrap();
    std::thread::spawn(move || {
        let mut lines = Vec::new();
        for answer in answers {
            let (mut peer, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                peer.read_exact(&mut byte).unwrap();
                request.push(byte[0]);
            }
            lines.push(String::from_utf8_lossy(&request).lines().next().unwrap().to_owned());
            peer.write_all(answer.as_bytes()).unwrap();
        }
        lines
    })
}

fn http(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

#[test]
fn the_admin_socket() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("admin.sock");
    let status = Status { version: "9".into(), pid: 3, ..Status::default() };
    let answers = vec![
        http("200 OK", &serde_json::to_string(&status).unwrap()),
        http("200 OK", "a 1\n"),
        http("200 OK", "ok"),
        http("503 Service Unavailable", "draining\n"),
        http("200 OK", "{}"),
        String::new(),
    ];
    let server = admin_server(&socket, answers);
    let admin = AdminClient::new(&socket).unwrap();
    assert_eq!(admin.status().unwrap(), status);
    assert_eq!(admin.metrics().unwrap(), "a 1\n");
    admin.healthz().unwrap();
    assert!(matches!(admin.healthz(), Err(Error::Refused(text)) if text.contains("503") && text.contains("draining")));
    assert!(matches!(admin.status(), Err(Error::Protocol(_))));
    assert!(matches!(admin.healthz(), Err(Error::Lost)));
    let lines = server.join().unwrap();
    assert_eq!(lines[..3], ["GET /status HTTP/1.1", "GET /metrics HTTP/1.1", "GET /healthz HTTP/1.1"]);
    std::fs::remove_file(&socket).unwrap();
    assert!(matches!(admin.status(), Err(Error::Connect { .. })));
}

//! hello, where the VM's side is missing, silent, forbidden or taken; and what becomes of the name.

use std::os::unix::net::UnixListener;
use std::path::Path;

use nix::unistd::{Uid, chown};
use ringway::wire::hyper::Code;
use serde_json::{Value, json};

use super::client::Client;
use super::guest::{Guest, Ports};
use super::harness::{Daemon, until};
use super::scene::Scene;

/// A hello that must fail with these words, from a connection that goes on.
fn fails(scene: &mut Scene, ctl: &Path, io: &Path, words: &str) {
    let mut client = scene.daemon.client();
    let error = client.hello("bad", ctl, io).unwrap_err();
    assert!(error.starts_with("bad: ") && error.contains(words), "{error}");
    client.is_in_step();
    drop(client);
    scene.daemon.logged(&["WARN", "hello failed", "vm=\"bad\"", &format!("pid={}", std::process::id()), words]);
    assert!(scene.daemon.vm("bad").is_none());
}

#[test]
fn a_missing_socket() {
    let mut scene = Scene::set(&[]);
    let ports = Ports::open(&scene.daemon, "bad");
    let missing = scene.daemon.path("missing");
    fails(&mut scene, &missing, &ports.io_path, "missing: ENOENT");
    fails(&mut scene, &ports.ctl_path, &missing, "missing: ENOENT");
    fails(&mut scene, Path::new("bad.ctl"), &ports.io_path, "bad.ctl: not an absolute path");
    drop(ports);
    scene.is_sound();
}

#[test]
fn a_socket_nobody_listens_on() {
    let mut scene = Scene::set(&[]);
    let ports = Ports::open(&scene.daemon, "bad");
    let (ctl, io) = (ports.ctl_path.clone(), ports.io_path.clone());
    drop(ports);
    fails(&mut scene, &ctl, &io, "Connection refused");
    scene.is_sound();
}

#[test]
fn a_socket_nobody_answers_on() {
    let mut scene = Scene::set(&["--deadline", "1"]);
    let ports = Ports::open(&scene.daemon, "bad");
    let mut client = scene.daemon.client();
    ports.send_hello(&mut client, "bad");
    scene.serves();
    let error = client.response().unwrap_err();
    assert_eq!(error, "bad: the agent gave no sign of life within 1 s");
    scene.daemon.logged(&["hello failed", "vm=\"bad\"", "no sign of life"]);
    // The name is free again, and an agent that comes late is taken.
    drop((ports.ctl.accept(), ports.io.accept()));
    ports.boot(&mut client, "bad");
    client.bye("bad").unwrap();
    drop((client, ports));
    scene.is_sound();
}

#[test]
fn a_socket_whose_backlog_stays_full() {
    let mut scene = Scene::set(&["--deadline", "1"]);
    let ports = Ports::open(&scene.daemon, "bad");
    // The smallest backlog there is, filled: further connects would wait.
    nix::sys::socket::listen(&ports.ctl, nix::sys::socket::Backlog::new(0).unwrap()).unwrap();
    let _first = std::os::unix::net::UnixStream::connect(&ports.ctl_path).unwrap();
    let (ctl, io) = (ports.ctl_path.clone(), ports.io_path.clone());
    fails(&mut scene, &ctl, &io, "cannot connect to");
    drop(ports);
    scene.is_sound();
}

#[test]
fn a_file_that_is_no_socket() {
    let mut scene = Scene::set(&[]);
    let file = scene.daemon.path("file");
    std::fs::write(&file, "").unwrap();
    fails(&mut scene, &file, &file, "file: not a socket");
    let directory = scene.daemon.path(".");
    fails(&mut scene, &directory, &file, "not a socket");
    scene.is_sound();
}

#[test]
fn a_path_of_200_bytes() {
    let mut scene = Scene::set(&[]);
    let long = format!("/{}", "x".repeat(199));
    fails(&mut scene, Path::new(&long), Path::new(&long), "socket path of 200 bytes: at most 107");
    scene.is_sound();
}

#[test]
fn a_name_that_is_too_long() {
    let mut scene = Scene::set(&[]);
    let error = scene.client.hello(&"v".repeat(257), Path::new("/c"), Path::new("/i")).unwrap_err();
    assert_eq!(error, "containerId of 257 bytes: at most 256");
    scene.is_sound();
}

#[test]
fn the_same_id_twice_at_once() {
    let mut scene = Scene::set(&[]);
    let ports = Ports::open(&scene.daemon, "twin");
    let (mut first, mut second) = (scene.daemon.client(), scene.daemon.client());
    ports.send_hello(&mut first, "twin");
    until("the first under way", || scene.daemon.vm("twin"));
    ports.send_hello(&mut second, "twin");
    assert_eq!(second.response(), Err("twin: container already registered".to_owned()));
    let mut guest = ports.accept();
    guest.say(Code::Ready, b"");
    assert_eq!(first.response(), Ok(json!({ "version": 1 })));
    ports.send_hello(&mut second, "twin");
    assert_eq!(second.response(), Err("twin: container already registered".to_owned()));
    // The second is not attached by it, and may be.
    second.send_hyper("ping", &Value::Null);
    assert_eq!(second.response(), Err("client not attached to a vm".to_owned()));
    second.attach("twin").unwrap();
    guest.obeys(&mut second, "ping");
    first.bye("twin").unwrap();
    drop((first, second, guest, ports));
    scene.is_sound();
}

#[test]
fn an_agent_that_hangs_up_during_hello_is_an_error() {
    let mut scene = Scene::set(&[]);
    let ports = Ports::open(&scene.daemon, "bad");
    for early in [true, false] {
        let mut client = scene.daemon.client();
        ports.send_hello(&mut client, "bad");
        if early {
            drop(ports.ctl.accept());
            let error = client.response().unwrap_err();
            assert!(error.starts_with("bad: ") && error.contains("closed its control channel"), "{error}");
            drop(ports.io.accept());
        } else {
            let mut guest = ports.accept();
            drop(guest.io);
            guest.ctl.set_nonblocking(false).unwrap();
            std::io::Write::write_all(&mut guest.ctl, &[0, 0, 0, 8, 0, 0, 0, 8]).unwrap();
            let error = client.response().unwrap_err();
            assert!(error.starts_with("bad: ") && error.contains("closed its stream channel"), "{error}");
        }
    }
    scene.daemon.logged(&["hello failed", "vm=\"bad\""]);
    assert!(scene.daemon.vm("bad").is_none());
    drop(ports);
    scene.is_sound();
}

#[test]
fn a_vm_that_has_died_gives_its_name_to_the_next() {
    let mut scene = Scene::set(&[]);
    let mut client = scene.daemon.client();
    let guest = Guest::boot(&scene.daemon, &mut client, "phoenix");
    drop(guest);
    until("its end", || scene.daemon.vm("phoenix").filter(|vm| vm.state == "gone"));
    let ports = Ports::open(&scene.daemon, "ashes");
    let mut next = scene.daemon.client();
    let mut guest = ports.boot(&mut next, "phoenix");
    // Who was attached to the dead one is not attached to its successor.
    client.send_hyper("ping", &Value::Null);
    assert_eq!(client.response(), Err("unknown containerID: phoenix".to_owned()));
    guest.obeys(&mut next, "ping");
    next.bye("phoenix").unwrap();
    drop((client, next, guest));
    scene.is_sound();
}

#[test]
fn an_agent_that_was_up_before_is_recognised_by_a_ping() {
    let mut scene = Scene::set(&[]);
    let ports = Ports::open(&scene.daemon, "old");
    let mut client = scene.daemon.client();
    ports.send_hello(&mut client, "old");
    let mut guest = ports.accept();
    guest.serve(Code::Ping, Code::Ack, b"");
    assert_eq!(client.response(), Ok(json!({ "version": 1 })));
    guest.obeys(&mut client, "ping");
    let mut session = client.allocate(1);
    assert!(session.base > 1 << 32, "sequence {}: an earlier daemon's processes may have the small ones", session.base);
    guest.send(session.base, b"stream I/O works");
    session.expect(b"stream I/O works");
    client.bye("old").unwrap();
    drop((client, session, guest));
    scene.is_sound();
}

#[test]
fn a_ready_that_comes_after_the_ping_is_taken_too() {
    let mut scene = Scene::set(&[]);
    let ports = Ports::open(&scene.daemon, "slow");
    let mut client = scene.daemon.client();
    ports.send_hello(&mut client, "slow");
    let mut guest = ports.accept();
    assert_eq!(guest.next_command(), (Code::Ping, vec![]));
    guest.say(Code::Ready, b"");
    assert_eq!(client.response(), Ok(json!({ "version": 1 })));
    // The PING is still in flight: its answer is not the next command's.
    client.send_hyper("startpod", &serde_json::json!({}));
    guest.say(Code::Ack, b"");
    guest.serve(Code::StartPod, Code::Error, b"no pod");
    assert_eq!(client.response(), Err("no pod".to_owned()));
    client.bye("slow").unwrap();
    drop((client, guest));
    scene.is_sound();
}

fn hello_at_anothers(flags: &[&str]) -> Result<Value, String> {
    let daemon = Daemon::start(flags);
    let mut client: Client = daemon.client();
    let ports = Ports::open(&daemon, "vm");
    for path in [&ports.ctl_path, &ports.io_path] {
        chown(path, Some(Uid::from_raw(65_534)), None).unwrap();
    }
    ports.send_hello(&mut client, "vm");
    // READY before anybody asks whether it may: who is refused never sees it.
    let accept = |listener: &UnixListener| {
        listener.set_nonblocking(true).unwrap();
        until("a connection or an answer", || match listener.accept() {
            Ok((socket, _)) => Some(Some(socket)),
            Err(_) if daemon.log().contains("hello failed") => Some(None),
            Err(_) => None,
        })
    };
    let guest = accept(&ports.ctl).zip(accept(&ports.io));
    if let Some((ctl, io)) = guest {
        ctl.set_nonblocking(false).unwrap();
        let mut guest = Guest { ctl, io };
        guest.say(Code::Ready, b"");
        return client.response();
    }
    client.response()
}

#[test]
fn sockets_of_other_users_need_a_vm_dir() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: only root can give a socket to another user");
        return;
    }
    let refused = hello_at_anothers(&[]).unwrap_err();
    assert!(refused.contains("owned by uid 65534, not by the client (uid 0)"), "{refused}");
    assert!(refused.contains("not below any --vm-dir"), "{refused}");
    let elsewhere = tempfile::tempdir().unwrap();
    let refused = hello_at_anothers(&["--vm-dir", elsewhere.path().to_str().unwrap()]).unwrap_err();
    assert!(refused.contains("not below any --vm-dir"), "{refused}");
    let temporary = std::env::temp_dir();
    assert_eq!(hello_at_anothers(&["--vm-dir", temporary.to_str().unwrap()]), Ok(json!({ "version": 1 })));
}

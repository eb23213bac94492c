//! What one user and one VM may have: at each limit the one who asks for more is refused with an error that names the
//! limit and its flag, everybody else is served, and there is room again when something goes.

use std::os::fd::AsFd;

use ringway::os::fds;
use ringway::wire::cc2::Command;
use ringway::wire::hyper::Code;
use serde_json::{Value, json};

use super::client::{Client, ends};
use super::framed::{Framed, register};
use super::guest::{Guest, Ports};
use super::harness::{Daemon, until};
use super::scene::Scene;

/// Asks for a session and drops it: the refusal, if there is one.
fn refusal(client: &mut Client) -> Option<String> {
    let answer = client.ask("allocateIO", &json!({ "nStreams": 1 }));
    answer.map(|_| drop(fds::recv_with_fd(client.socket.as_fd()).unwrap())).err()
}

#[test]
fn sessions_of_a_vm_are_bounded_for_both_protocols_together() {
    let mut scene = Scene::set(&["--max-sessions-per-vm", "4"]);
    let mut client = scene.daemon.client();
    let _guest = Guest::boot(&scene.daemon, &mut client, "small");
    let sessions = [client.allocate(1), client.allocate(2)];
    let (mut runtime, tokens) = Framed::attached(&scene.daemon, "small", 2);
    let full = "small: the VM would have over 4 sessions, the most one may have (--max-sessions-per-vm)";
    assert_eq!(refusal(&mut client).as_deref(), Some(full));
    let refused = runtime.ask(Command::AttachVm, &json!({ "containerId": "small", "numIOStreams": 1 }));
    assert_eq!(refused, Err(full.to_owned()));
    scene.serves();
    drop(sessions);
    until("room", || refusal(&mut client).is_none().then_some(()));
    client.bye("small").unwrap();
    drop((client, runtime, tokens));
    scene.is_sound();
}

#[test]
fn sessions_of_a_user_are_bounded_over_all_vms_and_protocols() {
    // The witness has one of them.
    let mut scene = Scene::set(&["--max-sessions-per-user", "4"]);
    let mut clients = [scene.daemon.client(), scene.daemon.client()];
    let [one, other] = &mut clients;
    let (_guest, _other_guest) = (Guest::boot(&scene.daemon, one, "one"), Guest::boot(&scene.daemon, other, "other"));
    let sessions = [one.allocate(1), other.allocate(1)];
    let (mut runtime, _token) = Framed::attached(&scene.daemon, "one", 1);
    let full =
        |uid: u32| format!("user {uid} would have over 4 sessions, the most one may have (--max-sessions-per-user)");
    let full = full(nix::unistd::geteuid().as_raw());
    for client in [&mut *one, other] {
        assert_eq!(refusal(client).as_ref(), Some(&full));
    }
    let refused = runtime.ask(Command::AttachVm, &json!({ "containerId": "other", "numIOStreams": 1 }));
    assert_eq!(refused, Err(full));
    scene.serves();
    drop(sessions);
    until("room", || refusal(other).is_none().then_some(()));
    one.bye("one").unwrap();
    other.bye("other").unwrap();
    drop((clients, runtime));
    scene.is_sound();
}

#[test]
fn a_user_at_his_bound_of_connections_is_told_so_in_either_protocol() {
    let mut scene = Scene::set(&["--max-clients-per-user", "3"]);
    let full = |uid: u32| format!("user {uid} has 3 connections, the most one may have (--max-clients-per-user)");
    let full = full(nix::unistd::geteuid().as_raw());
    let kept = [scene.daemon.client(), scene.daemon.client()];
    let mut one = scene.daemon.client();
    assert_eq!(one.attach("witness"), Err(full.clone()));
    one.expect_end();
    let mut two = Framed::connect(&scene.daemon);
    let refused = two.ask(Command::AttachVm, &json!({ "containerId": "witness", "numIOStreams": 0 }));
    assert_eq!(refused, Err(full.clone()));
    two.expect_end();
    scene.daemon.logged(&["WARN", "a client was turned away", &full]);
    assert_eq!(scene.daemon.status().counters.clients_refused, 2);
    scene.serves();
    drop(kept);
    until("room", || scene.daemon.client().attach("witness").ok());
    scene.is_sound();
}

#[test]
fn a_storm_of_refused_connections_is_counted_and_does_not_fill_the_log() {
    let mut scene = Scene::set(&["--max-clients-per-user", "1"]);
    for _ in 0..1_000 {
        drop(scene.daemon.client());
    }
    let counted = || (scene.daemon.status().counters.clients_refused >= 1_000).then_some(());
    until("all of them counted", counted);
    let lines = scene.daemon.log().matches("turned away").count();
    assert!((1..=200).contains(&lines), "{lines} lines");
    scene.is_sound();
}

#[test]
fn commands_that_wait_for_a_vm_are_bounded() {
    let mut scene = Scene::set(&["--max-commands-per-vm", "2"]);
    let mut owner = scene.daemon.client();
    let mut guest = Guest::boot(&scene.daemon, &mut owner, "busy");
    let mut waiting: Vec<Client> = (0..3).map(|_| scene.daemon.client()).collect();
    for (n, client) in waiting.iter_mut().enumerate() {
        client.attach("busy").unwrap();
        client.send_hyper("ping", &Value::Null);
        until("a command that waits", || {
            let vm = scene.daemon.vm("busy").unwrap();
            (vm.command.is_some() && vm.commands_queued == n as u64).then_some(())
        });
    }
    owner.send_hyper("ping", &Value::Null);
    let full = "2 commands wait for this VM, the most that may (--max-commands-per-vm)";
    assert_eq!(owner.response(), Err(full.to_owned()));
    scene.serves();
    for client in &mut waiting {
        guest.serve(Code::Ping, Code::Ack, b"");
        assert_eq!(client.response(), Ok(Value::Null));
    }
    guest.obeys(&mut owner, "ping");
    owner.bye("busy").unwrap();
    drop((owner, waiting));
    scene.is_sound();
}

#[test]
fn a_client_has_one_command_under_way_however_many_it_sends() {
    let mut scene = Scene::set(&[]);
    let mut client = scene.daemon.client();
    let mut guest = Guest::boot(&scene.daemon, &mut client, "vm");
    let ping = json!({ "id": "hyper", "data": { "hyperName": "ping" } }).to_string();
    client.send_bytes(&super::client::message(&ping).repeat(200));
    for _ in 0..200 {
        guest.serve(Code::Ping, Code::Ack, b"");
        assert_eq!(scene.daemon.vm("vm").unwrap().commands_queued, 0, "the next is not looked at before");
    }
    (0..200).for_each(|_| assert_eq!(client.response(), Ok(Value::Null)));
    client.bye("vm").unwrap();
    drop(client);
    scene.is_sound();
}

#[test]
fn unfinished_requests_of_a_user_are_bounded_together() {
    let mut scene = Scene::set(&["--user-buffer", "256KiB"]);
    let half = 100_000;
    let mut clients: Vec<Client> = (0..4).map(|_| scene.daemon.client()).collect();
    for client in &mut clients {
        // One that was refused before it had sent all of it has hung up.
        let _ = std::io::Write::write_all(
            &mut client.socket,
            &[&[0, 1, 0xff, 0xff, 0, 0, 0, 0][..], &vec![b' '; half]].concat(),
        );
    }
    let excess =
        |uid: u32| format!("requests and responses of user {uid} would hold over 262144 bytes (--user-buffer)");
    let excess = excess(nix::unistd::geteuid().as_raw());
    scene.daemon.logged(&["WARN", "connection ended", &excess]);
    until("two that ended", || (scene.daemon.status().counters.clients_faulty == 2).then_some(()));
    // Whoever holds nothing is served, and when those are gone there is room for the like of them.
    scene.serves();
    drop(clients);
    let mut client = scene.daemon.client();
    until("room", || {
        let mut client = scene.daemon.client();
        client.send_text(&json!({ "id": "nothing", "padding": "x".repeat(half) }).to_string());
        (client.response() == Err("no payload named 'nothing'".to_owned())).then_some(())
    });
    client.is_in_step();
    drop(client);
    scene.is_sound();
}

#[test]
fn a_response_that_a_user_may_not_hold_is_an_error() {
    let mut scene = Scene::set(&["--user-buffer", "256KiB"]);
    let ports = Ports::open(&scene.daemon, "vm");
    let mut runtime = Framed::connect(&scene.daemon);
    runtime.command(Command::RegisterVm, &register("vm", &ports, 0));
    let mut guest = ports.accept();
    guest.say(Code::Ready, b"");
    runtime.response(Command::RegisterVm).unwrap();
    for (len, fits) in [(200_000, true), (300_000, false), (200_000, true)] {
        runtime.send_hyper("readfile", &[], &Value::Null);
        guest.serve(Code::ReadFile, Code::Ack, &vec![b'x'; len]);
        let answer = runtime.response(Command::Hyper);
        assert_eq!(answer.as_ref().map(Vec::len).ok(), fits.then_some(len));
        assert!(fits || answer.unwrap_err().contains("--user-buffer"));
    }

    runtime.ask(Command::UnregisterVm, &json!({ "containerId": "vm" })).unwrap();
    drop(runtime);
    scene.is_sound();
}

#[test]
fn max_clients_keeps_a_part_for_others_and_the_rest_waits() {
    let daemon = Daemon::start(&["--max-clients", "8", "--max-clients-per-user", "8"]);
    let mut kept: Vec<Client> = (0..8).map(|_| daemon.client()).collect();
    for client in &mut kept {
        client.is_in_step();
    }
    let mut late = daemon.client();
    late.send("attach", &json!({ "containerId": "nobody" }));
    assert_eq!(daemon.status().clients, 8, "the ninth waits");
    kept.pop();
    assert_eq!(late.response(), Err("unknown containerID: nobody".to_owned()));
    // Without a flag for the user's part: seven of eight.
    let daemon = Daemon::start(&["--max-clients", "8"]);
    let mut kept: Vec<Client> = (0..7).map(|_| daemon.client()).collect();
    for client in &mut kept {
        client.is_in_step();
    }
    let refused = daemon.client().attach("nobody").unwrap_err();
    assert!(refused.contains("has 7 connections") && refused.contains("--max-clients-per-user"), "{refused}");
    assert!(!ends_now(&kept[0]));
}

/// Whether the daemon has closed a connection.
fn ends_now(client: &Client) -> bool {
    client.socket.set_nonblocking(true).unwrap();
    ends(&client.socket)
}

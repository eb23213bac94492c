//! Protocol 1 to the byte and to the word, and commands on their way to the agent and back.

use std::os::fd::AsFd;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{SockType, getsockopt, sockopt};
use ringway::os::fds;
use ringway::wire::hyper::Code;
use serde_json::{Value, json};

use super::guest::{Guest, Ports};
use super::harness::{Daemon, until};
use super::scene::Scene;

#[test]
fn responses_are_these_bytes() {
    let daemon = Daemon::start(&[]);
    let mut client = daemon.client();
    let ports = Ports::open(&daemon, "vm");
    ports.send_hello(&mut client, "vm");
    let mut guest = ports.accept();
    guest.say(Code::Ready, b"");
    let registered = "{\"success\":true,\"data\":{\"version\":1}}".to_owned();
    assert_eq!(client.response_bytes(), ([0, 0, 0, 0x25, 0, 0, 0, 0], registered.clone()));
    client.send("attach", &json!({ "containerId": "vm" }));
    assert_eq!(client.response_bytes(), ([0, 0, 0, 0x25, 0, 0, 0, 0], registered));
    client.send("allocateIO", &json!({ "nStreams": 2 }));
    let allocated = client.response_bytes();
    assert_eq!(allocated, ([0, 0, 0, 0x24, 0, 0, 0, 0], "{\"success\":true,\"data\":{\"ioBase\":1}}".to_owned()));
    let (byte, _fd) = fds::recv_with_fd(client.socket.as_fd()).unwrap();
    assert_eq!(byte, b'F');
    client.send("attach", &json!({ "containerId": "x" }));
    let refused = "{\"success\":false,\"error\":\"unknown containerID: x\"}";
    let len = u8::try_from(refused.len()).unwrap();
    assert_eq!(client.response_bytes(), ([0, 0, 0, len, 0, 0, 0, 0], refused.to_owned()));
    client.send("bye", &json!({ "containerId": "vm" }));
    assert_eq!(client.response_bytes(), ([0, 0, 0, 16, 0, 0, 0, 0], "{\"success\":true}".to_owned()));
}

#[test]
fn the_descriptor_comes_alone_and_is_a_blocking_stream_socket() {
    let mut scene = Scene::set(&[]);
    scene.client.send("allocateIO", &json!({ "nStreams": 1 }));
    // Plain reads: a descriptor that came with the response would be lost by them.
    scene.client.response().unwrap();
    let (byte, fd) = fds::recv_with_fd(scene.client.socket.as_fd()).unwrap();
    assert_eq!(byte, b'F');
    let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL).unwrap());
    assert!(!flags.contains(OFlag::O_NONBLOCK), "{flags:?}");
    assert_eq!(getsockopt(&fd, sockopt::SockType).unwrap(), SockType::Stream);
    scene.client.is_in_step();
    drop(fd);
    scene.is_sound();
}

#[test]
fn a_refused_allocation_sends_no_descriptor() {
    let mut scene = Scene::set(&[]);
    let mut client = scene.daemon.client();
    let refused = |client: &mut super::client::Client, streams: i64, error: &str| {
        assert_eq!(client.ask("allocateIO", &json!({ "nStreams": streams })), Err(error.to_owned()));
        client.is_in_step();
    };
    refused(&mut client, 2, "client not attached to a vm");
    client.attach("witness").unwrap();
    refused(&mut client, 3, "asking for unexpected number of streams (3)");
    drop(client);
    scene.is_sound();
    assert_eq!(scene.daemon.status().counters.sessions_opened, 1, "the witness's");
}

#[test]
fn what_needs_a_vm_says_so_without_one() {
    let mut scene = Scene::set(&[]);
    let mut client = scene.daemon.client();
    client.send_hyper("ping", &Value::Null);
    assert_eq!(client.response(), Err("client not attached to a vm".to_owned()));
    assert_eq!(client.attach("nobody"), Err("unknown containerID: nobody".to_owned()));
    assert_eq!(client.bye("nobody"), Err("unknown containerID: nobody".to_owned()));
    drop(client);
    scene.is_sound();
}

#[test]
fn sequences_come_from_one_counter_for_all_vms() {
    let daemon = Daemon::start(&[]);
    let (mut one, mut two) = (daemon.client(), daemon.client());
    let _guests = (Guest::boot(&daemon, &mut one, "one"), Guest::boot(&daemon, &mut two, "two"));
    let bases = [one.allocate(2), two.allocate(1), one.allocate(1), two.allocate(2)].map(|session| session.base);
    assert_eq!(bases, [1, 3, 4, 5]);
    one.bye("one").unwrap();
    two.bye("two").unwrap();
    let _guest = Guest::boot(&daemon, &mut one, "three");
    assert_eq!(one.allocate(1).base, 7, "never reused");
}

#[test]
fn bye_ends_every_session_and_both_channels() {
    let mut scene = Scene::set(&[]);
    let mut client = scene.daemon.client();
    let guest = Guest::boot(&scene.daemon, &mut client, "vm");
    let mut sessions: Vec<_> = (0..5).map(|_| client.allocate(2)).collect();
    // From any connection.
    scene.daemon.client().bye("vm").unwrap();
    sessions.iter_mut().for_each(super::client::Session::expect_end);
    assert!(super::client::ends(&guest.ctl) && super::client::ends(&guest.io));
    assert_eq!(client.bye("vm"), Err("unknown containerID: vm".to_owned()));
    drop((client, sessions));
    scene.is_sound();
}

#[test]
fn a_client_that_leaves_without_bye_leaves_its_vm_and_its_sessions() {
    let mut scene = Scene::set(&[]);
    let mut client = scene.daemon.client();
    let mut guest = Guest::boot(&scene.daemon, &mut client, "vm");
    let mut session = client.allocate(1);
    drop(client);
    until("one client less", || (scene.daemon.status().clients == 1).then_some(()));
    guest.send(session.base, b"still here");
    session.expect(b"still here");
    session.send(b"so am I");
    assert_eq!(guest.take_frame().1, b"so am I");
    let mut other = scene.daemon.client();
    other.attach("vm").unwrap();
    guest.obeys(&mut other, "ping");
    assert_eq!(other.allocate(1).base, session.base + 1);
    other.bye("vm").unwrap();
    session.expect_end();
    drop((other, session));
    scene.is_sound();
}

#[test]
fn hello_and_bye_in_one_breath() {
    let mut scene = Scene::set(&[]);
    let ports = Ports::open(&scene.daemon, "vm");
    for _ in 0..20 {
        let mut client = scene.daemon.client();
        ports.send_hello(&mut client, "vm");
        client.send("bye", &json!({ "containerId": "vm" }));
        let mut guest = ports.accept();
        guest.say(Code::Ready, b"");
        assert_eq!((client.response(), client.response()), (Ok(json!({ "version": 1 })), Ok(Value::Null)));
    }
    // And from a client that does not wait to see it.
    let mut client = scene.daemon.client();
    ports.send_hello(&mut client, "vm");
    client.send("bye", &json!({ "containerId": "vm" }));
    drop(client);
    let mut guest = ports.accept();
    guest.say(Code::Ready, b"");
    assert!(super::client::ends(&guest.ctl));
    drop((guest, ports));
    scene.is_sound();
}

#[test]
fn hyper_from_a_client_still_attached_after_anothers_bye() {
    let mut scene = Scene::set(&[]);
    let (mut one, mut two) = (scene.daemon.client(), scene.daemon.client());
    let guest = Guest::boot(&scene.daemon, &mut one, "vm");
    two.attach("vm").unwrap();
    one.bye("vm").unwrap();
    two.send_hyper("ping", &Value::Null);
    assert_eq!(two.response(), Err("unknown containerID: vm".to_owned()));
    assert_eq!(two.ask("allocateIO", &json!({ "nStreams": 1 })), Err("unknown containerID: vm".to_owned()));
    two.is_in_step();
    drop((one, two, guest));
    scene.is_sound();
}

#[test]
fn bye_answers_a_command_in_flight_with_an_error() {
    let mut scene = Scene::set(&[]);
    let (mut one, mut two) = (scene.daemon.client(), scene.daemon.client());
    let mut guest = Guest::boot(&scene.daemon, &mut one, "vm");
    one.send_hyper("ping", &Value::Null);
    guest.next_command();
    two.bye("vm").unwrap();
    assert_eq!(one.response(), Err("the VM was unregistered".to_owned()));
    drop((one, two, guest));
    scene.is_sound();
}

#[test]
fn a_vm_that_hangs_up_in_a_command_is_an_error_at_once() {
    let mut scene = Scene::set(&[]);
    let (mut one, mut two) = (scene.daemon.client(), scene.daemon.client());
    let mut guest = Guest::boot(&scene.daemon, &mut one, "vm");
    two.attach("vm").unwrap();
    let mut session = one.allocate(1);
    one.send_hyper("startpod", &json!({}));
    guest.next_command();
    two.send_hyper("ping", &Value::Null);
    until("the second waits", || scene.daemon.vm("vm").filter(|vm| vm.commands_queued == 1));
    drop(guest);
    assert!(one.response().is_err() && two.response().is_err());
    session.expect_end();
    scene.daemon.logged(&["VM lost", "vm=\"vm\""]);
    one.bye("vm").unwrap();
    drop((one, two, session));
    scene.is_sound();
}

#[test]
fn a_stream_channel_that_hangs_up_ends_the_command_on_the_other() {
    let mut scene = Scene::set(&[]);
    let mut client = scene.daemon.client();
    let mut guest = Guest::boot(&scene.daemon, &mut client, "vm");
    client.send_hyper("startpod", &json!({}));
    guest.next_command();
    let Guest { ctl, io } = guest;
    drop(io);
    assert_eq!(client.response(), Err("vm: the VM is gone: stream channel: closed by the peer".to_owned()));
    assert!(super::client::ends(&ctl));
    client.bye("vm").unwrap();
    drop((client, ctl));
    scene.is_sound();
}

#[test]
fn the_agents_error_is_the_clients_and_an_acks_payload_is_nobodys() {
    let mut scene = Scene::set(&[]);
    scene.client.send_hyper("newcontainer", &json!({ "id": "x", "unknown member": [1, 2] }));
    let payload = scene.guest.serve(Code::NewContainer, Code::Error, b"no such image\0\n");
    assert_eq!(payload, b"{\"id\":\"x\",\"unknown member\":[1,2]}", "as it came");
    assert_eq!(scene.client.response(), Err("no such image".to_owned()));
    scene.client.send_hyper("ping", &Value::Null);
    scene.guest.serve(Code::Ping, Code::Error, b"");
    assert_eq!(scene.client.response(), Err("the agent refused 'ping'".to_owned()));
    scene.client.send_hyper("version", &Value::Null);
    scene.guest.serve(Code::Version, Code::Ack, &4242_u32.to_be_bytes());
    assert_eq!(scene.client.response_bytes().1, "{\"success\":true}");
    scene.is_sound();
}

#[test]
fn only_ack_and_error_are_answers() {
    let mut scene = Scene::set(&[]);
    scene.client.send_hyper("startpod", &json!({}));
    assert_eq!(scene.guest.next_command(), (Code::StartPod, b"{}".to_vec()));
    scene.guest.say(Code::Next, &8_u32.to_be_bytes());
    scene.guest.say(Code::Ready, b"");
    scene.guest.say(Code::ProcessAsyncEvent, b"{\"event\":\"finished\"}");
    scene.guest.say(Code::SignalProcess, b"{\"event\":\"finished\"}");
    scene.guest.say(Code::Next, &10_u32.to_be_bytes());
    // None of them was taken for the answer: a status that comes after them still shows the command in flight.
    let vm = scene.daemon.vm("witness").unwrap();
    assert_eq!(vm.command.as_deref(), Some("startpod"));
    scene.guest.say(Code::Error, b"this is it");
    assert_eq!(scene.client.response(), Err("this is it".to_owned()));
    // Events with no command in flight are nobody's answer either.
    scene.guest.say(Code::ProcessAsyncEvent, b"{}");
    scene.guest.say(Code::SignalProcess, b"{}");
    scene.is_sound();
}

#[test]
fn commands_of_many_clients_go_out_one_at_a_time_and_in_order() {
    let mut scene = Scene::set(&[]);
    let mut clients: Vec<_> = (0..8).map(|_| scene.daemon.client()).collect();
    for (n, client) in clients.iter_mut().enumerate() {
        client.attach("witness").unwrap();
        client.send_hyper("execcmd", &json!(n));
        let waits = |vm: &ringway::wire::admin::VmStatus| vm.command.is_some() && vm.commands_queued == n as u64;
        until("its turn in the queue", || scene.daemon.vm("witness").filter(waits));
    }
    for (n, client) in clients.iter_mut().enumerate() {
        let payload = scene.guest.serve(Code::ExecCmd, Code::Error, format!("the answer to {n}").as_bytes());
        assert_eq!(payload, n.to_string().as_bytes());
        assert_eq!(client.response(), Err(format!("the answer to {n}")));
    }
    drop(clients);
    scene.is_sound();
}

#[test]
fn a_dead_agents_command_is_an_error_and_its_late_answer_is_nobodys() {
    let mut scene = Scene::set(&["--deadline", "1"]);
    let (mut one, mut two) = (scene.daemon.client(), scene.daemon.client());
    let mut guest = Guest::boot(&scene.daemon, &mut one, "dead");
    two.attach("dead").unwrap();
    one.send_hyper("startpod", &json!({}));
    guest.next_command();
    two.send_hyper("ping", &Value::Null);
    scene.serves();
    assert_eq!(one.response(), Err("the agent has not answered 'startpod' within 1 s".to_owned()));
    let refused = two.response().unwrap_err();
    assert_eq!(refused, "the agent still works on 'startpod': no turn for this one within 1 s");
    assert_eq!(scene.daemon.vm("dead").unwrap().state, "unresponsive");
    scene.serves();
    // It comes to. The late answer belongs to the first command, which nobody waits for.
    guest.say(Code::Error, b"too late");
    guest.obeys(&mut two, "ping");
    assert_eq!(scene.daemon.vm("dead").unwrap().state, "ready");
    assert_eq!(scene.daemon.status().counters.commands_overdue, 2);
    one.bye("dead").unwrap();
    drop((one, two, guest));
    scene.is_sound();
}

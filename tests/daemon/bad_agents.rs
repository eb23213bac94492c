//! Agents that break hyperstart: their VM ends, with the reason in the log, and no other VM notices.

use std::io::Write;

use ringway::wire::hyper::Code;
use serde_json::Value;

use super::client::frame;
use super::guest::Guest;
use super::harness::until;
use super::scene::Scene;

/// A VM whose agent sends these bytes on a channel: it is lost, its session ends, the log names it.
fn loses_its_vm(bytes: &[u8], on_control: bool, why: &str) {
    let mut scene = Scene::set(&[]);
    let mut client = scene.daemon.client();
    let mut guest = Guest::boot(&scene.daemon, &mut client, "bad");
    let mut session = client.allocate(1);
    guest.send(session.base, b"before");
    session.expect(b"before");
    let channel = if on_control { &mut guest.ctl } else { &mut guest.io };
    channel.write_all(bytes).unwrap();
    session.expect_end();
    scene.daemon.logged(&["VM lost", why, "vm=\"bad\""]);
    client.send_hyper("ping", &Value::Null);
    let error = client.response().unwrap_err();
    assert!(error.starts_with("bad: the VM is gone: ") && error.contains(why), "{error}");
    client.bye("bad").unwrap();
    drop(client);
    scene.is_sound();
    assert_eq!(scene.daemon.status().counters.vms_lost, 1);
}

#[test]
fn an_unknown_sequence_is_skipped_and_counted() {
    let mut scene = Scene::set(&[]);
    let base = scene.session.base;
    scene.guest.send(999, b"whose is this?");
    scene.guest.send(1 << 60, b"");
    scene.guest.send(999, &[1; 50_000]);
    scene.guest.send(base, b"mine");
    scene.session.expect(b"mine");
    let skipped: u64 = scene.daemon.status().shards.iter().map(|shard| shard.skipped_frames).sum();
    assert_eq!(skipped, 3);
    scene.is_sound();
}

#[test]
fn a_frame_of_length_0() {
    loses_its_vm(&[0; 12], false, "length 0 is shorter");
}

#[test]
fn a_frame_over_the_bound() {
    loses_its_vm(&[0xff; 12], false, "length 4294967295 is over the bound");
}

#[test]
fn a_message_of_length_0() {
    loses_its_vm(&[0, 0, 0, 9, 0, 0, 0, 0], true, "length 0 is shorter");
}

#[test]
fn a_message_over_the_bound() {
    loses_its_vm(&[0, 0, 0, 9, 0xff, 0xff, 0xff, 0xff], true, "length 4294967295 is over the bound");
}

#[test]
fn half_a_header_and_then_silence_holds_up_nobody() {
    let mut scene = Scene::set(&["--deadline", "1"]);
    let mut client = scene.daemon.client();
    let mut guest = Guest::boot(&scene.daemon, &mut client, "bad");
    let mut session = client.allocate(1);
    let whole = frame(session.base, b"late");
    guest.io.write_all(&whole[..6]).unwrap();
    guest.ctl.write_all(&[0, 0, 0]).unwrap();
    scene.serves();
    client.send_hyper("ping", &Value::Null);
    assert_eq!(client.response(), Err("the agent has not answered 'ping' within 1 s".to_owned()));
    scene.daemon.logged(&["the agent does not answer", "vm=\"bad\""]);
    // It comes to: the rest is taken as if nothing had been.
    guest.io.write_all(&whole[6..]).unwrap();
    session.expect(b"late");
    client.bye("bad").unwrap();
    session.expect_end();
    drop((client, session));
    scene.is_sound();
}

#[test]
fn half_a_header_and_then_the_end() {
    let mut scene = Scene::set(&[]);
    let mut client = scene.daemon.client();
    let mut guest = Guest::boot(&scene.daemon, &mut client, "bad");
    guest.ctl.write_all(&[0, 0, 0]).unwrap();
    drop(guest);
    scene.daemon.logged(&["VM lost", "vm=\"bad\""]);
    client.bye("bad").unwrap();
    drop(client);
    scene.is_sound();
}

#[test]
fn acks_nobody_asked_for_are_skipped() {
    let mut scene = Scene::set(&[]);
    for _ in 0..3 {
        scene.guest.say(Code::Ack, b"unasked");
        scene.guest.say(Code::Error, b"unasked");
    }
    scene.daemon.logged(&["WARN", "nobody asked for", "vm=\"witness\"", "code=9"]);
    until("all of them skipped", || (scene.daemon.log().matches("nobody asked for").count() >= 2).then_some(()));
    scene.is_sound();
}

#[test]
fn codes_that_do_not_exist_are_skipped() {
    let mut scene = Scene::set(&[]);
    scene.guest.ctl.write_all(&[0, 0, 4, 0, 0, 0, 0, 12, 1, 2, 3, 4]).unwrap();
    scene.daemon.logged(&["WARN", "vm=\"witness\"", "code=1024"]);
    scene.is_sound();
}

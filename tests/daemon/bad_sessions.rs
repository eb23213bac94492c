//! Clients that break the stream protocol: their session ends, with the reason in the log, and nothing else does.

use std::io::Write;

use super::client::frame;
use super::scene::Scene;

/// Sends these bytes on a session of its own: it ends, and the log names session and VM.
fn ends_its_session(bytes: impl Fn(u64) -> Vec<u8>, why: &str) {
    let mut scene = Scene::set(&[]);
    let mut session = scene.client.allocate(2);
    session.send(b"sound");
    session.socket.write_all(&bytes(session.base)).unwrap();
    session.ends();
    assert_eq!(scene.guest.take_frame(), (session.base, b"sound".to_vec()), "what came before goes out");
    scene.daemon.logged(&["WARN", why, &format!("session={}", session.base), "vm=\"witness\""]);
    scene.is_sound();
    let faults: u64 = scene.daemon.status().shards.iter().map(|shard| shard.faulty_peers).sum();
    assert_eq!(faults, 1);
}

#[test]
fn a_foreign_sequence() {
    ends_its_session(|base| frame(base - 2, b"another's"), "sequence 1 in a session that owns 3");
}

#[test]
fn its_own_stderr_sequence() {
    ends_its_session(|base| frame(base + 1, b"stderr is not for clients"), "sequence 4 in a session that owns 3");
}

#[test]
fn a_length_of_11() {
    ends_its_session(|base| [&base.to_be_bytes()[..], &11_u32.to_be_bytes()].concat(), "length 11 is shorter");
}

#[test]
fn a_length_of_2_to_the_32_minus_1() {
    let bytes = |base: u64| [&base.to_be_bytes()[..], &u32::MAX.to_be_bytes(), b"and some payload"].concat();
    ends_its_session(bytes, "length 4294967295 is over the bound");
}

#[test]
fn a_client_gone_in_the_middle_of_a_frame_sends_the_agent_nothing_of_it() {
    let mut scene = Scene::set(&[]);
    let mut session = scene.client.allocate(1);
    session.send(b"whole");
    let half = frame(session.base, b"this frame has no end");
    session.socket.write_all(&half[..20]).unwrap();
    drop(session);
    assert_eq!(scene.guest.take_frame().1, b"whole");
    scene.is_sound();
}

#[test]
fn a_client_that_vanishes_with_output_pending_does_not_end_the_output_of_others() {
    let mut scene = Scene::set(&[]);
    let session = scene.client.allocate(1);
    for _ in 0..400 {
        scene.guest.send(session.base, &[7; 5_000]);
    }
    drop(session);
    scene.is_sound();
}

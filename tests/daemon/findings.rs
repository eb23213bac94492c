//! What a review found, where only the real daemon shows it.

use std::os::unix::net::UnixStream;

use nix::sys::signal::Signal;

use super::client::pattern;
use super::guest::Guest;
use super::harness::until;
use super::scene::Scene;

#[test]
fn sighup_ends_nothing() {
    let mut scene = Scene::set(&[]);
    scene.daemon.signal(Signal::SIGHUP);
    scene.daemon.logged(&["INFO", "SIGHUP: there is nothing to reload"]);
    scene.is_sound();
    scene.daemon.stop();
}

#[test]
fn new_clients_are_refused_while_it_stops() {
    let mut scene = Scene::set(&["--stop-timeout", "3600"]);
    let mut client = scene.daemon.client();
    let mut guest = Guest::boot(&scene.daemon, &mut client, "owing");
    let mut session = client.allocate(1);
    // More than the sockets hold: the daemon waits for this client.
    let len = 4 << 20;
    pattern(3, len).chunks(8_192).for_each(|payload| guest.send(session.base, payload));
    until("all of it received", || {
        scene.daemon.session(session.base).filter(|session| session.to_client.frames == len as u64 / 8_192)
    });
    scene.daemon.signal(Signal::SIGTERM);
    scene.daemon.logged(&["stopping"]);
    until("a refusal", || UnixStream::connect(scene.daemon.socket()).is_err().then_some(()));
    assert!(scene.daemon.is_running());
    assert!(session.take(len) == pattern(3, len));
    assert_eq!(scene.daemon.wait().code(), Some(0));
}

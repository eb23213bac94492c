//! What a review found, where only the real daemon shows it.

use nix::sys::signal::Signal;

use super::scene::Scene;

#[test]
fn sighup_ends_nothing() {
    let mut scene = Scene::set(&[]);
    scene.daemon.signal(Signal::SIGHUP);
    scene.daemon.logged(&["INFO", "SIGHUP: there is nothing to reload"]);
    scene.is_sound();
    scene.daemon.stop();
}

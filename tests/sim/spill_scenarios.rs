//! Slow clients with a disk, by name: what spills, what stops it, and who notices.
//!
//! The asymmetry to know: everything is held against the model as ever, so a scenario asserts only what is its own.

use ringway::wire::SlowReader;

use crate::disk::DiskShape;
use crate::model::HEADER;
use crate::peers::At;
use crate::scenarios::tuned;
use crate::shape::Shape;
use crate::world::World;

/// Bytes of one frame here.
const FRAME: usize = 4_000 + HEADER;

fn with_disk(disk: DiskShape) -> Shape {
    Shape { disk: Some(disk), ..tuned(64 * 1024, 1 << 30) }
}

/// A world with an agent and two clients, the first of which does not read.
fn family(shape: Shape) -> (World, At, At, At) {
    let mut world = World::scripted(shape);
    let (agent, clients) = world.family(2);
    world.socket(clients[0]).reads = false;
    (world, agent, clients[0], clients[1])
}

/// Frames for both, until the agent is not read or there were enough; how many for each.
fn writes_to_both(world: &mut World, (agent, slow, quick): (At, At, At), most: usize) -> usize {
    let mut frames = 0;
    while frames < most && !world.is_paused(agent) {
        world.writes(agent, slow, 4_000);
        world.writes(agent, quick, 4_000);
        frames += 1;
        world.turns(4);
    }
    frames
}

#[test]
fn a_reader_that_stops_spills_and_stalls_nobody() {
    let (mut world, agent, slow, quick) = family(with_disk(DiskShape::calm()));
    let frames = writes_to_both(&mut world, (agent, slow, quick), 500);
    assert_eq!((frames, world.taken(quick)), (500, 500 * FRAME));
    assert!(world.disk.written > 1 << 20, "{} bytes written", world.disk.written);
    world.socket(slow).reads = true;
    world.come_to_rest();
    assert_eq!(world.taken(slow), 500 * FRAME);
    world.ends_well();
}

#[test]
fn a_file_at_its_bound_holds_the_vm_back_and_lets_it_go() {
    for (session, total) in [(512 << 10, 1 << 30), (1 << 30, 512 << 10)] {
        let (mut world, agent, slow, quick) = family(with_disk(DiskShape { session, total, ..DiskShape::calm() }));
        let frames = writes_to_both(&mut world, (agent, slow, quick), 500);
        assert!((128..500).contains(&frames) && world.is_paused(agent), "{frames} frames");
        world.socket(slow).reads = true;
        world.come_to_rest();
        assert!(!world.is_paused(agent));
        assert_eq!((world.taken(slow), world.taken(quick)), (frames * FRAME, frames * FRAME));
        world.ends_well();
    }
}

#[test]
fn a_disk_that_takes_nothing_loses_nothing() {
    let (mut world, agent, slow, quick) = family(with_disk(DiskShape { fails: 100, ..DiskShape::calm() }));
    world.healed = false;
    let frames = writes_to_both(&mut world, (agent, slow, quick), 500);
    assert!(frames < 500 && world.disk.written == 0, "{frames} frames, {} bytes", world.disk.written);
    world.socket(slow).reads = true;
    world.heal();
    world.come_to_rest();
    assert_eq!((world.taken(slow), world.taken(quick)), (frames * FRAME, frames * FRAME));
    world.ends_well();
}

#[test]
fn output_that_cannot_be_read_back_ends_its_session_and_no_other() {
    let (mut world, agent, slow, quick) = family(with_disk(DiskShape::calm()));
    let frames = writes_to_both(&mut world, (agent, slow, quick), 200);
    world.shape.disk = Some(DiskShape { fails: 100, ..DiskShape::calm() });
    world.healed = false;
    world.socket(slow).reads = true;
    world.turns(100);
    assert!(world.disk.lost == 1 && world.has_ended(slow) && !world.has_ended(quick));
    world.heal();
    world.come_to_rest();
    assert_eq!(world.taken(quick), frames * FRAME);
    world.ends_well();
}

#[test]
fn what_had_spilled_when_its_agent_died_is_delivered() {
    let (mut world, agent, slow, quick) = family(with_disk(DiskShape::calm()));
    let frames = writes_to_both(&mut world, (agent, slow, quick), 200);
    world.close_peer(agent);
    world.turns(10);
    assert!(world.has_ended(quick) && !world.has_ended(slow));
    world.socket(slow).reads = true;
    world.come_to_rest();
    assert!(world.has_ended(slow) && world.taken(slow) == frames * FRAME);
    world.ends_well();
}

#[test]
fn policies_are_the_sessions_own() {
    for policy in [SlowReader::Block, SlowReader::Disconnect] {
        let (mut world, agent, slow, quick) = family(with_disk(DiskShape::calm()));
        world.reads_slowly(slow, policy);
        let frames = writes_to_both(&mut world, (agent, slow, quick), 100);
        assert_eq!(world.disk.written, 0);
        assert_eq!(world.has_ended(slow), policy == SlowReader::Disconnect);
        assert_eq!(frames < 100, policy == SlowReader::Block, "{frames} frames with {policy}");
        world.socket(slow).reads = true;
        world.ends_well();
    }
}

//! Worlds with a script for sessions with tokens: each is something a seed found, or a bound it seldom reaches.
//!
//! The asymmetry to know: as in the other scenarios every turn is audited, so that only what is a scenario's own is
//! said here.

use ringway::limits::{SHIM_INPUT_BUFFER, SHIM_MESSAGES_MAX};

use crate::model::HEADER;
use crate::peers::At;
use crate::random::payload;
use crate::shape::Shape;
use crate::shim::{COMMAND, RESPONSE, STDIN, STREAM, frame};
use crate::world::World;

/// One agent, and one of its processes whose token a shim has.
struct Process {
    agent: At,
    index: usize,
    shim: At,
    connection: u64,
}

impl World {
    fn process(&mut self) -> Process {
        let agent = self.open_agent();
        let index = self.open_token(agent);
        let connection = self.connects(index);
        Process { agent: At::Agent(agent), index, shim: At::Client(index), connection }
    }

    fn connects(&mut self, index: usize) -> u64 {
        self.connect_shim(index, &reply(0), &[]).expect("its token is free")
    }

    fn shim_writes(&mut self, shim: At, kind: u8, opcode: u8, len: usize) {
        let bytes = frame(kind, opcode, 0, payload(&mut self.random, len));
        self.socket(shim).inbox.extend(bytes);
    }

    /// Bytes of output and of answers that a shim's socket took.
    fn heard(&mut self, index: usize) -> (usize, usize) {
        (self.clients[index].to_client.taken, self.shim(index).replies.taken)
    }
}

fn reply(len: usize) -> Vec<u8> {
    frame(RESPONSE, 6, 0, &vec![b'r'; len])
}

#[test]
fn output_waits_for_the_next_shim_and_nothing_is_doubled() {
    let mut world = World::scripted(crate::scenarios::tuned(16 * 1024, 1 << 30));
    let Process { agent, index, shim, .. } = world.process();
    world.started(index, false);
    (0..10).for_each(|_| world.writes(agent, shim, 1_000));
    world.turns(10);
    world.kill_peer(shim);
    world.turns(5);
    (0..40).for_each(|_| world.writes(agent, shim, 1_000));
    world.turns(20);
    assert!(world.is_paused(agent), "nobody takes its output");
    assert_eq!(world.heard(index).0, 10 * (HEADER + 1_000));
    world.connects(index);
    world.come_to_rest();
    assert_eq!(world.heard(index).0, 50 * (HEADER + 1_000));
    world.ends_well();
}

#[test]
fn the_exit_status_comes_once_and_last() {
    for terminal in [false, true] {
        let mut world = World::scripted(Shape::calm());
        let Process { agent, index, shim, .. } = world.process();
        world.started(index, terminal);
        world.exited(index, 3);
        world.writes(agent, shim, 40_000);
        world.writes(agent, shim, 0);
        world.turns(10);
        let output = 2 * HEADER + 40_000;
        let told = HEADER + 1;
        assert_eq!(world.heard(index).0, output + if terminal { told } else { 0 });
        let error = world.base(shim) + 1;
        world.socket(agent).inbox.extend(crate::model::frame(error, &[]));
        world.writes(agent, shim, 1);
        world.turns(10);
        assert_eq!(world.heard(index).0, output + told);
        world.ends_well();
    }
}

#[test]
fn input_waits_for_its_process_within_a_bound() {
    let mut world = World::scripted(Shape::calm());
    let Process { agent, index, shim, connection } = world.process();
    let mut sent = 0;
    while !world.is_paused(shim) {
        world.shim_writes(shim, STREAM, STDIN, 4_000);
        sent += HEADER + 4_000;
        world.turns(1);
    }
    assert!((SHIM_INPUT_BUFFER..SHIM_INPUT_BUFFER + 64 * 1024).contains(&sent));
    assert_eq!(world.taken(agent), 0, "nothing reads it yet");
    world.drop_shim(index, connection, ringway::relay::Gone::TooLate);
    world.connects(index);
    world.shim_writes(shim, STREAM, STDIN, 0);
    world.started(index, false);
    world.come_to_rest();
    assert_eq!(world.taken(agent), HEADER, "input of a shim that was dropped");
    world.ends_well();
}

#[test]
fn a_shim_with_too_many_unanswered_messages_is_not_read() {
    let mut world = World::scripted(Shape::calm());
    let Process { index, shim, connection, .. } = world.process();
    (0..SHIM_MESSAGES_MAX).for_each(|_| world.shim_writes(shim, COMMAND, 6, 20));
    world.turns(3);
    assert!(world.is_paused(shim));
    world.answer_shim(index, connection, &[]);
    assert!(!world.is_paused(shim));
    world.ends_well();
}

/// Found by seeds: an answer of more than 32 KiB was one send, of more than a socket takes whole.
#[test]
fn an_answer_of_any_size_leaves_in_sends_of_at_most_32_kib() {
    let mut world = World::scripted(Shape::calm());
    let Process { index, connection, .. } = world.process();
    for len in [10, 32 * 1024, 100_000, 0] {
        world.answer_shim(index, connection, &reply(len));
    }
    world.come_to_rest();
    assert_eq!(world.heard(index).1, 5 * HEADER + 10 + 32 * 1024 + 100_000);
    world.ends_well();
}

/// Found by seeds: the bytes of answers being sent were taken off the output that counts against the bound.
#[test]
fn output_behind_answers_counts_against_its_bound() {
    let mut world = World::scripted(crate::scenarios::tuned(48 * 1024, 1 << 30));
    let Process { agent, index, shim, connection } = world.process();
    world.turns(2);
    (0..64).for_each(|_| world.writes(agent, shim, 1_000));
    world.answer_shim(index, connection, &reply(30_000));
    world.turns(1);
    assert!(world.is_paused(agent));
    world.ends_well();
}

/// Found by seeds: output that nobody would get any more held its link back until the shim had read its answers.
#[test]
fn a_token_given_up_holds_no_link_back() {
    let mut world = World::scripted(crate::scenarios::tuned(16 * 1024, 1 << 30));
    let Process { agent, index, shim, .. } = world.process();
    world.socket(shim).reads = false;
    (0..120).for_each(|_| world.writes(agent, shim, 1_000));
    world.turns(20);
    assert!(world.is_paused(agent));
    world.release_token(index, &reply(0));
    assert!(!world.is_paused(agent) && !world.has_ended(shim));
    (0..120).for_each(|_| world.writes(agent, shim, 1_000));
    world.turns(20);
    assert!(!world.is_paused(agent));
    world.ends_well();
}

/// Found with a real shim: output held the VM back, hence the process and its input, hence the dead shim's last bytes.
#[test]
fn a_shim_gone_whose_input_is_held_back_frees_its_token() {
    let mut world = World::scripted(crate::scenarios::tuned(16 * 1024, 1 << 30));
    let Process { agent, index, shim, .. } = world.process();
    world.started(index, false);
    world.socket(agent).reads = false;
    world.socket(shim).reads = false;
    (0..200).for_each(|_| world.shim_writes(shim, STREAM, STDIN, 8_000));
    (0..120).for_each(|_| world.writes(agent, shim, 1_000));
    world.turns(200);
    assert!(world.is_paused(agent) && world.is_paused(shim));
    world.kill_peer(shim);
    world.turns(20);
    assert!(world.shim(index).connection.is_none(), "its token is still claimed");
    world.connects(index);
    world.ends_well();
}

#[test]
fn what_is_behind_input_that_nobody_takes_is_seen_after_two_beats() {
    let mut world = World::scripted(Shape::calm());
    let Process { agent, index, shim, connection } = world.process();
    world.started(index, false);
    world.socket(agent).reads = false;
    (0..125).for_each(|_| world.shim_writes(shim, STREAM, STDIN, 4_000));
    world.shim_writes(shim, COMMAND, 6, 20);
    world.turns(20);
    assert!(world.is_paused(shim), "there is nothing to be gained by reading more");
    world.beat();
    world.turns(5);
    assert!(world.is_paused(shim) && world.shim(index).unanswered == 0);
    world.beat();
    world.turns(20);
    assert!(!world.is_paused(shim) && world.shim(index).unanswered == 1);
    world.socket(agent).reads = true;
    world.answer_shim(index, connection, &[]);
    world.come_to_rest();
    assert_eq!(world.taken(agent), 125 * (HEADER + 4_000));
    world.ends_well();
}

/// Found by seeds: answers nobody could get any more stayed for as long as the agent did not take the input.
#[test]
fn answers_are_forgotten_with_their_connection() {
    let mut world = World::scripted(Shape::calm());
    let Process { agent, index, shim, connection } = world.process();
    world.started(index, false);
    (world.socket(agent).reads, world.socket(shim).reads) = (false, false);
    (0..30).for_each(|_| world.shim_writes(shim, STREAM, STDIN, 4_000));
    world.turns(10);
    (0..40).for_each(|_| world.answer_shim(index, connection, &reply(30_000)));
    world.release_token(index, &reply(0));
    world.turns(3);
    world.kill_peer(shim);
    world.turns(10);
    assert!(!world.has_ended(shim), "its agent is owed input");
    assert!(world.mem.chunks.in_use() < 8, "{} chunks", world.mem.chunks.in_use());
    world.ends_well();
}

/// Found by seeds: a status that waited for the end of a frame was never told when the VM went instead.
#[test]
fn a_status_that_waits_for_a_frame_is_told_when_the_vm_goes() {
    let mut world = World::scripted(Shape::calm());
    let Process { agent, index, shim, .. } = world.process();
    world.started(index, true);
    world.writes(agent, shim, 0);
    world.writes_part(agent, shim, 3_000, 100);
    world.turns(3);
    world.exited(index, 7);
    world.turns(3);
    assert_eq!(world.heard(index).0, 0, "a frame that has begun comes first");
    world.close_peer(agent);
    world.come_to_rest();
    assert_eq!(world.heard(index).0, HEADER + 1);
    world.ends_well();
}

/// A shim that asks and never reads made answers pile up without a bound.
#[test]
fn a_shim_that_reads_no_answers_is_not_read() {
    let mut world = World::scripted(Shape::calm());
    let Process { index, shim, connection, .. } = world.process();
    world.socket(shim).reads = false;
    let mut answers = 0;
    while !world.is_paused(shim) {
        world.shim_writes(shim, COMMAND, 6, 20);
        world.turns(1);
        world.answer_shim(index, connection, &reply(1_000));
        answers += 1;
        assert!(answers < 1_000, "{} bytes of answers", world.shim(index).replies.owed());
        world.turns(1);
    }
    world.socket(shim).reads = true;
    world.come_to_rest();
    assert!(!world.is_paused(shim));
    assert_eq!(world.heard(index).1, HEADER + answers * (HEADER + 1_000));
    world.ends_well();
}

/// Found by seeds: a shim that gave its token up and left, with messages nobody would answer, was never noticed.
#[test]
fn a_shim_that_gave_up_and_left_is_noticed_whatever_is_unanswered() {
    let mut world = World::scripted(Shape::calm());
    let Process { index, shim, connection, .. } = world.process();
    world.socket(shim).reads = false;
    (0..5).for_each(|_| world.answer_shim(index, connection, &reply(30_000)));
    (0..70).for_each(|_| world.shim_writes(shim, COMMAND, 6, 20));
    world.turns(10);
    assert!(world.is_paused(shim));
    world.release_token(index, &reply(0));
    world.kill_peer(shim);
    world.turns(10);
    assert!(world.has_ended(shim));
    world.ends_well();
}

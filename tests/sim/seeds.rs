//! Runs seeds: one by number, a fixed range, and fresh ones for a while.
//!
//! A failing seed prints itself and its last steps; `RINGWAY_SIM_SEED` replays it. The asymmetry to know: a seed's
//! world depends on the simulator too, so a seed that found a bug is kept as a scenario, not as a number.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use crate::random::Random;
use crate::sabotage::Saboteur;
use crate::shape::Shape;
use crate::world::{Log, World};

/// Seeds that every run of the tests replays.
const FIXED_SEEDS: u64 = 600;
/// For how many seconds it tries fresh ones.
const FRESH_SECONDS: u64 = 5;

/// What the seeds came to, so that a simulator that does nothing shows.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    turns: u64,
    sessions: usize,
    to_clients: usize,
    to_agents: usize,
    blocked: u64,
    skipped: u64,
    faults: u64,
}

impl Stats {
    fn add(&mut self, world: &World) {
        let totals = world.plane.totals();
        self.turns += world.turns;
        self.sessions += world.clients.len();
        self.to_clients += world.clients.iter().map(|client| client.to_client.taken).sum::<usize>();
        self.to_agents += world.clients.iter().map(|client| client.to_agent.taken).sum::<usize>();
        self.blocked += totals.blocked;
        self.skipped += totals.skipped;
        self.faults += totals.faults;
    }
}

/// One seed from beginning to end; its last steps when it fails.
pub(crate) fn run_seed(seed: u64, saboteur: Saboteur, stats: &mut Stats) -> Result<(), Log> {
    let log: Log = Rc::new(RefCell::new(VecDeque::new()));
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let mut random = Random::new(seed);
        let shape = Shape::random(&mut random);
        let mut world = World::new(random, shape, saboteur, Rc::clone(&log));
        for _ in 0..world.shape.turns {
            world.act();
            world.turn();
        }
        world.heal();
        world.come_to_rest();
        world.farewell();
        stats.add(&world);
    }));
    outcome.map_err(|_| log)
}

fn must_pass(seed: u64, stats: &mut Stats) {
    let Err(log) = run_seed(seed, Saboteur::default(), stats) else { return };
    eprintln!("{:#?}", Shape::random(&mut Random::new(seed)));
    for step in log.borrow().iter() {
        eprintln!("{step:?}");
    }
    panic!("{}", replays(seed));
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().expect("a number"))
}

/// What `RINGWAY_SIM_SEEDS` says: `N` for the first N, `A..B` for those from A to below B.
fn range() -> Option<Range<u64>> {
    let said = std::env::var("RINGWAY_SIM_SEEDS").ok()?;
    let (first, end) = said.split_once("..").unwrap_or(("0", &said));
    Some(first.parse().expect("a number")..end.parse().expect("a number"))
}

/// How to see a seed that fails again.
pub(crate) fn replays(seed: u64) -> String {
    format!("seed {seed} fails; RINGWAY_SIM_SEED={seed} cargo test --test sim replays it")
}

/// Runs the seeds that the environment chooses, or the first so many. Which those were.
pub(crate) fn for_each_seed(usual: u64, run: impl FnMut(u64)) -> Range<u64> {
    let one = number("RINGWAY_SIM_SEED").map(|seed| seed..seed + 1);
    let seeds = one.or_else(range).unwrap_or(0..usual);
    seeds.clone().for_each(run);
    seeds
}

#[test]
fn fixed_seeds() {
    let mut stats = Stats::default();
    let seeds = for_each_seed(FIXED_SEEDS, |seed| must_pass(seed, &mut stats));
    println!("seeds {seeds:?}: {stats:?}");
    if seeds.count() as u64 >= FIXED_SEEDS {
        assert!(stats.blocked > 0 && stats.skipped > 0 && stats.faults > 0, "nothing went wrong in {stats:?}");
        assert!(stats.to_clients > 0 && stats.to_agents > 0, "nothing moved in {stats:?}");
    }
}

#[test]
fn fresh_seeds() {
    if number("RINGWAY_SIM_SEED").is_some() || range().is_some() {
        return;
    }
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a clock after 1970");
    let time = Duration::from_secs(number("RINGWAY_SIM_SECONDS").unwrap_or(FRESH_SECONDS));
    let base = now.as_secs() << 20;
    let (begin, mut stats, mut seed) = (Instant::now(), Stats::default(), base);
    println!("fresh seeds from {base}");
    while begin.elapsed() < time {
        must_pass(seed, &mut stats);
        seed += 1;
    }
    println!("{} fresh seeds: {stats:?}", seed - base);
}

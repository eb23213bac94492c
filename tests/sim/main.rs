//! A seeded simulator of the data plane's rules: one thread, no descriptor, no clock, every byte held against a model.
//!
//! `RINGWAY_SIM_SEED=N` replays one seed, `RINGWAY_SIM_SEEDS=N` runs seeds 0 to N. `world` drives a plane as a shard
//! does, `kernel` and `leases` play the kernel, `chaos` the peers; `model` and `expect` say what must come out and
//! `audit` what must hold; `disk` has the files that slow clients' output spills to. `tokens` and its kin do all that
//! for sessions with tokens. The asymmetry to know: the model
//! reads bytes when the plane is told of them, not when they are written, because who wants a frame is decided then.

mod audit;
mod chaos;
mod control;
mod disk;
mod driver;
mod expect;
mod kernel;
mod leases;
mod model;
mod peers;
mod random;
mod sabotage;
mod scenarios;
mod seeds;
mod shape;
mod shim;
mod spill_scenarios;
mod token_chaos;
mod token_scenarios;
mod tokens;
mod world;

//! The daemon's own thread and its shards, from start to stop.

use crate::config::Config;

/// Runs the daemon until it is told to stop.
///
/// # Errors
/// Always, in this build: the data plane is not part of it.
pub fn run(config: Config) -> anyhow::Result<()> {
    drop(config);
    anyhow::bail!("the daemon is not linked yet")
}

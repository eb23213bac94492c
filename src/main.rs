//! The `ringway` command. Everything it does is in the library, so that tests reach it too.

use std::process::ExitCode;

use clap::Parser;

/// Host-side I/O multiplexer for the guests of a container host.
#[derive(Debug, Parser)]
#[command(version)]
enum Ringway {
    Agent(ringway::cli::agent::Args),
}

fn main() -> anyhow::Result<ExitCode> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    match Ringway::parse() {
        Ringway::Agent(args) => ringway::cli::agent::run(args),
    }
}

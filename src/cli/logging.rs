//! Where log lines go: standard error, or the journal when standard error is the journal.
//!
//! Owns the one subscriber of the process. The asymmetry to know: JSON always goes to standard error as asked for;
//! only the format for people is replaced by the journal's fields.

use std::io::{self, IsTerminal};
use std::os::fd::AsFd;

use anyhow::Context;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt};

use crate::config::LogFormat;

/// Starts logging. `filter` is a level or a list of `target=level`.
///
/// # Errors
/// A filter that makes no sense, or a second call.
pub(super) fn init(filter: &str, format: LogFormat) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(filter).with_context(|| format!("log filter '{filter}'"))?;
    let lines: Box<dyn Layer<Registry> + Send + Sync> = match format {
        LogFormat::Json => fmt::layer().json().flatten_event(true).with_writer(io::stderr).boxed(),
        LogFormat::Text => match journal() {
            Some(journal) => journal.boxed(),
            None => fmt::layer().with_ansi(io::stderr().is_terminal()).with_writer(io::stderr).boxed(),
        },
    };
    tracing_subscriber::registry().with(lines.with_filter(filter)).try_init().context("logging was started before")
}

/// The journal, when the service manager connected standard error to it (systemd.exec(5), `JOURNAL_STREAM`).
fn journal() -> Option<tracing_journald::Layer> {
    let told = std::env::var("JOURNAL_STREAM").ok()?;
    let stderr = nix::sys::stat::fstat(io::stderr().as_fd()).ok()?;
    if !is_journal(&told, stderr.st_dev, stderr.st_ino) {
        return None;
    }
    tracing_journald::layer().ok()
}

fn is_journal(told: &str, device: u64, inode: u64) -> bool {
    let parsed = told.split_once(':').and_then(|(dev, ino)| Some((dev.parse().ok()?, ino.parse().ok()?)));
    parsed == Some((device, inode))
}

#[cfg(test)]
mod tests {
    use super::is_journal;

    #[test]
    fn only_the_very_stream_is_the_journal() {
        assert!(is_journal("8:42", 8, 42));
        for told in ["8:43", "9:42", "", "8", "8:", "a:b", "8:42:1"] {
            assert!(!is_journal(told, 8, 42), "{told:?}");
        }
    }
}

//! The configuration file: TOML whose keys are the flags' names.
//!
//! Owns the file's text, so that every complaint can name the line and the key; never writes. The asymmetry to know:
//! TOML's own errors carry a place, errors about a value's meaning have the place looked up afterwards.

use std::ops::Range;
use std::path::{Path, PathBuf};

use super::{ConfigError, Settings};

/// A file that was read and whose keys and values have the right types.
#[derive(Debug, Clone)]
pub struct ConfigFile {
    path: PathBuf,
    text: String,
    settings: Settings,
}

impl ConfigFile {
    /// Reads `path`.
    ///
    /// # Errors
    /// Names the file, and the line and key where it can be read but not understood.
    pub fn read(path: &Path) -> Result<ConfigFile, ConfigError> {
        let text = std::fs::read_to_string(path);
        let text = text.map_err(|e| ConfigError(format!("cannot read {}: {e}", path.display())))?;
        ConfigFile::parse(path, text)
    }

    /// Takes `text` as the contents of `path`.
    ///
    /// # Errors
    /// Names the file, line and key.
    pub fn parse(path: &Path, text: String) -> Result<ConfigFile, ConfigError> {
        match toml::from_str(&text) {
            Ok(settings) => Ok(ConfigFile { path: path.to_path_buf(), text, settings }),
            Err(e) => Err(ConfigError(describe(path, &text, e.span(), e.message()))),
        }
    }

    /// The settings, each checked on its own.
    pub(super) fn checked(self) -> Result<Settings, ConfigError> {
        match self.settings.check() {
            Ok(()) => Ok(self.settings),
            Err(bad) => {
                let line = self.text.lines().position(|line| key_of(line) == Some(bad.key)).map_or(1, |n| n + 1);
                Err(ConfigError(format!("{}:{line}: {}: {}", self.path.display(), bad.key, bad.why)))
            }
        }
    }
}

/// `file:line: key: what is wrong`.
fn describe(path: &Path, text: &str, span: Option<Range<usize>>, message: &str) -> String {
    let before = span.and_then(|span| text.get(..span.start)).unwrap_or_default();
    let line = before.matches('\n').count();
    let key = text.lines().nth(line).and_then(key_of);
    let key = key.map(|key| format!("{key}: ")).unwrap_or_default();
    format!("{}:{}: {key}{message}", path.display(), line + 1)
}

fn key_of(line: &str) -> Option<&str> {
    let (key, _) = line.split_once('=')?;
    let key = key.trim().trim_matches('"');
    (!key.is_empty() && !key.starts_with('#')).then_some(key)
}

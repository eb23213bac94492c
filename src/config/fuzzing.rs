//! What holds for the text of any configuration file.

use std::fmt::Write as _;
use std::path::Path;

use super::{Config, ConfigError, ConfigFile, LogFormat, Settings};
use crate::limits;

/// The file's name in complaints.
const NAME: &str = "ringway.toml";

/// A file is taken or complained about in one line that names a line of it; what is taken is within the bounds, and
/// written out in full it means the same.
pub fn config_file(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    match resolve(text) {
        Ok(config) => {
            check(&config);
            let again = written(&config).map(|text| resolve(&text).expect("what was taken"));
            assert!(again.is_none_or(|again| again == config), "written out in full it means something else");
        }
        Err(error) => check_complaint(text, &error.to_string()),
    }
}

fn resolve(text: &str) -> Result<Config, ConfigError> {
    let file = ConfigFile::parse(Path::new(NAME), text.to_owned())?;
    Config::resolve(Settings::default(), Some(file))
}

fn check_complaint(text: &str, error: &str) {
    assert!(!error.contains('\n'), "a complaint of several lines: {error}");
    let Some(place) = error.strip_prefix(NAME) else {
        // About settings that do not go together; each may be in the file or not.
        return assert!(error.contains("socket") || error.contains("buffer"), "{error}");
    };
    let line = place.split(':').nth(1).and_then(|line| line.parse().ok());
    assert!(line.is_some_and(|line: usize| (1..=text.lines().count() + 1).contains(&line)), "{error}");
}

fn check(config: &Config) {
    assert!((1..=limits::SHARDS_MAX).contains(&config.shards));
    assert!(config.cpus.is_sorted_by(|a, b| a < b) && config.cpus.iter().all(|&cpu| cpu < limits::CPUS_END));
    assert!((limits::AGENT_FRAME_FLOOR..=limits::AGENT_FRAME_CEILING).contains(&config.agent_frame_max));
    assert!((limits::CC1_FRAME_MAX..=limits::STREAM_FRAME_MAX).contains(&config.stream_frame_max));
    assert!((limits::CONTROL_MESSAGE_FLOOR..=limits::CC1_MESSAGE_MAX).contains(&config.control_message_max));
    assert!(config.session_buffer >= limits::SESSION_BUFFER_FLOOR);
    assert!(config.session_buffer <= config.total_buffer / config.shards);
    assert!((1..=limits::CLIENTS_CEILING).contains(&config.max_clients));
    for seconds in [config.deadline, config.shim_patience, config.stop_timeout] {
        assert!(seconds.as_secs() <= limits::SECONDS_MAX);
    }
    for path in [&config.socket, &config.admin_socket] {
        assert!(path.file_name().is_some() && path.as_os_str().len() <= limits::UNIX_PATH_MAX);
    }
    assert_ne!(config.socket, config.admin_socket);
}

/// A file that says everything; `None` when it has a path that is no text.
fn written(config: &Config) -> Option<String> {
    let quoted = |text: &str| toml::Value::from(text).to_string();
    let path = |path: &Path| path.to_str().map(quoted);
    let dirs: Option<Vec<String>> = config.vm_dirs.iter().map(|dir| path(dir)).collect();
    let mut text = String::new();
    let mut say = |key: &str, value: &dyn std::fmt::Display| {
        writeln!(text, "{key} = {value}").expect("text grows");
    };
    say("socket", &path(&config.socket)?);
    say("admin-socket", &path(&config.admin_socket)?);
    say("vm-dir", &format_args!("[{}]", dirs?.join(", ")));
    say("shards", &config.shards);
    if !config.cpus.is_empty() {
        let cpus: Vec<String> = config.cpus.iter().map(u32::to_string).collect();
        say("cpus", &quoted(&cpus.join(",")));
    }
    say("no-pin", &!config.pin);
    say("log", &quoted(&config.log));
    say("log-format", &quoted(if config.log_format == LogFormat::Json { "json" } else { "text" }));
    say("agent-frame-max", &config.agent_frame_max);
    say("stream-frame-max", &config.stream_frame_max);
    say("control-message-max", &config.control_message_max);
    say("session-buffer", &config.session_buffer);
    say("total-buffer", &config.total_buffer);
    say("deadline", &config.deadline.as_secs());
    say("shim-patience", &config.shim_patience.as_secs());
    say("stop-timeout", &config.stop_timeout.as_secs());
    say("max-clients", &config.max_clients);
    Some(text)
}

//! Tests of merging and checking settings.

use super::*;

fn file(text: &str) -> Result<ConfigFile, ConfigError> {
    ConfigFile::parse(Path::new("ringway.toml"), text.to_owned())
}

fn from_file(text: &str) -> Result<Config, ConfigError> {
    Config::resolve(Settings::default(), Some(file(text)?))
}

fn from_flags(args: &[&str]) -> Result<Config, String> {
    #[derive(clap::Parser)]
    struct Flags {
        #[command(flatten)]
        settings: Settings,
    }
    let flags = <Flags as clap::Parser>::try_parse_from([&["serve"], args].concat()).map_err(|e| e.to_string())?;
    Config::resolve(flags.settings, None).map_err(|e| e.to_string())
}

#[test]
fn defaults_are_the_limits() {
    let config = Config::resolve(Settings::default(), None).unwrap();
    assert_eq!(config.socket, default_socket());
    assert_eq!(config.admin_socket, default_socket().with_file_name("admin.sock"));
    assert_eq!(config.agent_frame_max, limits::AGENT_FRAME_DEFAULT);
    assert_eq!(config.stream_frame_max, limits::STREAM_FRAME_MAX);
    assert_eq!(config.control_message_max, limits::CONTROL_MESSAGE_MAX);
    assert_eq!((config.session_buffer, config.total_buffer), (limits::SESSION_BUFFER, limits::TOTAL_BUFFER));
    assert_eq!((config.deadline, config.stop_timeout), (Duration::from_secs(30), Duration::from_secs(5)));
    assert_eq!(config.shim_patience, Duration::from_secs(30));
    assert_eq!((config.max_clients, config.max_clients_per_user), (limits::CLIENTS_MAX, 3_584));
    assert_eq!(config.max_sessions_per_user, limits::SESSIONS_PER_USER);
    assert_eq!(config.max_sessions_per_vm, limits::SESSIONS_PER_VM);
    assert_eq!(config.max_commands_per_vm, limits::COMMANDS_PER_VM);
    assert_eq!(config.user_buffer, limits::USER_BUFFER);
    assert!(config.allow_uids.is_empty() && config.allow_gids.is_empty());
    assert!(config.pin && config.shards >= 1 && config.cpus.is_empty() && config.vm_dirs.is_empty());
    assert_eq!((config.log.as_str(), config.log_format), ("info", LogFormat::Text));
    assert_eq!(config.sandbox, Sandbox::On);
}

#[test]
fn flags_weigh_more_than_the_file() {
    let text =
        "deadline = 60\nshards = 2\nno-pin = true\nvm-dir = [\"/a\"]\nsession-buffer = \"1MiB\"\ncpus = \"1,0\"\n";
    let flags = Settings { shards: Some(3), vm_dir: vec!["/b".into(), "/c".into()], ..Settings::default() };
    let config = Config::resolve(flags, Some(file(text).unwrap())).unwrap();
    assert_eq!(config.deadline, Duration::from_secs(60));
    assert_eq!(config.shards, 3);
    assert!(!config.pin);
    assert_eq!(config.vm_dirs, [PathBuf::from("/b"), PathBuf::from("/c")]);
    assert_eq!(config.session_buffer, 1 << 20);
    assert_eq!(config.cpus, [0, 1]);
}

#[test]
fn a_list_of_cpus_decides_the_number_of_shards() {
    assert_eq!(from_file("cpus = \"0-2,7\"").unwrap().shards, 4);
}

#[test]
fn the_admin_socket_is_next_to_the_proxy_socket() {
    let config = from_flags(&["--socket", "/x/y/z.sock"]).unwrap();
    assert_eq!(config.admin_socket, Path::new("/x/y/admin.sock"));
    assert!(from_flags(&["--socket", "/x/admin.sock"]).unwrap_err().contains("are both /x/admin.sock"));
}

#[test]
fn the_file_s_errors_name_file_line_and_key() {
    let cases = [
        ("shards = 2\nspeed = 9\n", "ringway.toml:2: speed: unknown field `speed`"),
        ("shards = 2\n\ndeadline = \"soon\"\n", "ringway.toml:3: deadline: invalid type: string \"soon\""),
        ("# deadline = 1\ndeadline = 0\n", "ringway.toml:2: deadline: 0 is too little; the least is 1, the most 3600"),
        ("agent-frame-max = \"11KiB\"", "ringway.toml:1: agent-frame-max: 11264 is too much; the least is 512"),
        ("session-buffer = \"8MB\"", "ringway.toml:1: session-buffer: '8MB' is no size"),
        ("log-format = \"xml\"", "ringway.toml:1: log-format: unknown variant `xml`"),
        ("cpus = \"3-1\"", "ringway.toml:1: cpus: the range 3-1 runs backwards"),
        ("shards = 2\nshards = 3\n", "ringway.toml:2: shards: duplicate key"),
        ("shards = ", "ringway.toml:1: shards: "),
        ("log = \"ringway=loud\"", "ringway.toml:1: log: 'ringway=loud'"),
        ("log = \"ringway=loud\\nb\"", "ringway.toml:1: log: 'ringway=loud; b'"),
    ];
    for (text, expected) in cases {
        let error = from_file(text).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{text:?}: {error}");
        assert!(!error.contains('\n'), "{error}");
    }
}

#[test]
fn flags_errors_name_the_flag() {
    let long = format!("/{}", "x".repeat(limits::UNIX_PATH_MAX));
    let cases: [(&[&str], &str); 8] = [
        (&["--agent-frame-max", "10241"], "--agent-frame-max: 10241 is too much; the least is 512, the most 10240"),
        (&["--shards", "0"], "--shards: 0 is too little"),
        (&["--socket", &long], "--socket: /xxx"),
        (&["--socket", "/"], "--socket: '/' does not name a socket"),
        (
            &["--session-buffer", "8MiB", "--total-buffer", "1MiB", "--shards", "1"],
            "session-buffer (8388608 bytes) is over one shard's part of total-buffer (1048576 bytes for 1 shards",
        ),
        (
            &["--session-buffer", "8MiB", "--total-buffer", "31MiB", "--shards", "4"],
            "session-buffer (8388608 bytes) is over one shard's part of total-buffer (32505856 bytes for 4 shards: \
             8126464 each)",
        ),
        (&["--log", ""], "--log: it is empty"),
        (&["--total-buffer", "x"], "error: invalid value 'x' for '--total-buffer <BYTES>': 'x' is no size"),
    ];
    for (args, expected) in cases {
        let error = from_flags(args).unwrap_err();
        assert!(error.starts_with(expected), "{args:?}: {error}");
    }
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let error = ConfigFile::read(Path::new("/nonexistent/ringway.toml")).unwrap_err().to_string();
    assert!(error.starts_with("cannot read /nonexistent/ringway.toml: "), "{error}");
}

#[test]
fn the_file_has_the_flags_names() {
    use clap::Args as _;
    let command = Settings::augment_args(clap::Command::new("serve"));
    for arg in command.get_arguments() {
        let key = arg.get_long().unwrap();
        let error = file(&format!("{key} = {{}}")).unwrap_err().to_string();
        assert!(!error.contains("unknown field"), "{key}: {error}");
    }
}

#[test]
fn without_a_total_each_shard_has_room_for_one_session() {
    let config = from_flags(&["--session-buffer", "1GiB", "--shards", "4"]).unwrap();
    assert_eq!(config.total_buffer, 4 << 30);
}

//! Runtimes of protocol 2: registered VMs, tokens, and processes started with and without them.

use ringway::wire::cc2::{Command, Kind, PROCESS_EXITED, Stream};
use ringway::wire::hyper::Code;
use serde_json::json;

use super::framed::{Framed, boot, exec, process, register, tokens_of, vm};
use super::guest::Ports;
use super::harness::{Daemon, until};
use super::scene::Scene;

const NEVER: &[&str] = &["--shim-patience", "3600"];
const SOON: &[&str] = &["--shim-patience", "1"];

#[test]
fn the_response_of_register_and_attach_is_exact() {
    let daemon = Daemon::start(&[]);
    let url = format!("unix://{}", daemon.socket().display());
    let (_guest, mut runtime, tokens) = boot(&daemon, "vm", 2);
    assert_eq!(tokens.len(), 2);
    assert!(tokens[0] != tokens[1]);
    for token in &tokens {
        assert!(token.len() == 44 && token.ends_with('='), "32 bytes: {token}");
        assert!(token.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_=".contains(&b)), "URL-safe: {token}");
    }
    for payload in [json!({ "containerId": "vm" }), json!({ "containerId": "vm", "numIOStreams": 0 })] {
        let answer = runtime.ask(Command::AttachVm, &payload).unwrap();
        let want = format!("{{\"io\":{{\"URL\":\"{url}\",\"tokens\":null}}}}");
        assert_eq!(String::from_utf8(answer).unwrap(), want);
    }
    let answer = runtime.ask(Command::AttachVm, &json!({ "containerId": "vm", "numIOStreams": 1 })).unwrap();
    let token = &tokens_of(&answer)[0];
    let want = format!("{{\"io\":{{\"URL\":\"{url}\",\"tokens\":[\"{token}\"]}}}}");
    assert_eq!(String::from_utf8(answer).unwrap(), want);
}

#[test]
fn too_many_tokens_are_refused_and_the_vm_can_be_registered_again() {
    let daemon = Daemon::start(&[]);
    let ports = Ports::open(&daemon, "vm");
    let mut runtime = Framed::connect(&daemon);
    for count in [-1, 1_025, i64::MAX] {
        let error = runtime.ask(Command::RegisterVm, &register("vm", &ports, count)).unwrap_err();
        assert_eq!(error, format!("asking for {count} tokens: at most 1024"));
    }
    assert_eq!(daemon.status().vms.len(), 0);
    runtime.command(Command::RegisterVm, &register("vm", &ports, 1_024));
    let mut guest = ports.accept();
    guest.say(Code::Ready, b"");
    assert_eq!(tokens_of(&runtime.response(Command::RegisterVm).unwrap()).len(), 1_024);
    for _ in 0..7 {
        assert_eq!(runtime.attach("vm", 1_024).len(), 1_024);
    }
    let error = runtime.ask(Command::AttachVm, &json!({ "containerId": "vm", "numIOStreams": 1 })).unwrap_err();
    assert!(error.contains("over 8192 sessions") && error.contains("--max-sessions-per-vm"), "{error}");
}

#[test]
fn a_token_is_claimed_once_free_after_a_drop_and_gone_after_disconnect() {
    let mut scene = Scene::set(NEVER);
    let (mut runtime, tokens) = Framed::attached(&scene.daemon, "witness", 2);
    let token = tokens[0].as_str();
    let mut shim = Framed::shim(&scene.daemon, token);
    let mut other = Framed::connect(&scene.daemon);
    assert_eq!(other.claim(token), Err(format!("token already claimed: {token}")));
    for bad in ["", "AAAA", "no base64!", &"A".repeat(43), &format!("{}=", "A".repeat(43))] {
        assert_eq!(other.claim(bad), Err(format!("unknown token: {bad}")));
    }
    assert_eq!(shim.claim(token), Err("client is already a shim".to_owned()));
    assert_eq!(shim.claim(&tokens[1]), Err("client is already a shim".to_owned()));
    drop(shim);
    scene.daemon.logged(&["shim gone", "vm=\"witness\""]);
    let mut shim = Framed::next_shim(&scene.daemon, token);
    assert_eq!(scene.daemon.status().counters.shims_lost, 1);
    shim.command(Command::DisconnectShim, &json!({}));
    drop(shim);
    let gone = format!("unknown token: {token}");
    until("a token given up", || other.claim(token).err().filter(|error| *error == gone));
    assert_eq!(runtime.hyper("execcmd", &[token], &exec("p", "true")), Err(gone));
    // The other one, given up politely: the answer comes, then the end.
    let mut shim = Framed::shim(&scene.daemon, &tokens[1]);
    assert_eq!(shim.ask(Command::DisconnectShim, &json!({})), Ok(Vec::new()));
    shim.expect_end();
    assert_eq!(other.ask(Command::DisconnectShim, &json!({})), Err("client isn't a shim".to_owned()));
    assert_eq!(scene.daemon.status().counters.shims_lost, 1, "those that disconnected are not lost");
    drop((runtime, shim, other));
    scene.is_sound();
}

#[test]
fn a_token_that_was_used_or_is_another_vms_is_refused_at_once() {
    let scene = Scene::set(NEVER);
    let (mut guest, mut runtime, tokens) = boot(&scene.daemon, "vm", 1);
    let (mut other, others) = Framed::attached(&scene.daemon, "witness", 1);
    let unknown = |token: &str| Err(format!("unknown token: {token}"));
    assert_eq!(runtime.hyper("execcmd", &[&others[0]], &exec("p", "true")), unknown(&others[0]), "no shim");
    let stolen = Framed::shim(&scene.daemon, &others[0]);
    assert_eq!(runtime.hyper("execcmd", &[&others[0]], &exec("p", "true")), unknown(&others[0]), "a shim");
    assert_eq!(other.hyper("newcontainer", &[&tokens[0]], &exec("p", "true")), unknown(&tokens[0]));
    let shim = Framed::shim(&scene.daemon, &tokens[0]);
    runtime.send_hyper("execcmd", &[&tokens[0]], &exec("p", "true"));
    guest.serve(Code::ExecCmd, Code::Ack, b"");
    assert_eq!(runtime.response(Command::Hyper), Ok(Vec::new()));
    let used = Err(format!("token already used: {}", tokens[0]));
    assert_eq!(runtime.hyper("execcmd", &[&tokens[0]], &exec("q", "true")), used);
    drop(shim);
    until("detached", || scene.daemon.vm("vm")?.sessions.iter().any(|s| s.state == "detached").then_some(()));
    assert_eq!(runtime.hyper("execcmd", &[&tokens[0]], &exec("q", "true")), used, "no shim either");
    other.command(Command::UnregisterVm, &json!({ "containerId": "vm" }));
    drop((guest, runtime, other, stolen));
    until("gone", || scene.daemon.vm("vm").is_none().then_some(()));
}

#[test]
fn what_hyper_refuses() {
    let mut scene = Scene::set(NEVER);
    let (mut runtime, tokens) = Framed::attached(&scene.daemon, "witness", 2);
    let (one, two) = (tokens[0].as_str(), tokens[1].as_str());
    let data = exec("p", "true");
    let mut refuses = |name: &str, tokens: &[&str], data: &serde_json::Value, error: &str| {
        assert_eq!(runtime.hyper(name, tokens, data), Err(error.to_owned()), "{name} {data}");
    };
    for name in ["newcontainer", "execcmd"] {
        refuses(name, &[one, two], &data, "expected 0 or 1 token, got 2");
        refuses(name, &[one, one, one], &data, "expected 0 or 1 token, got 3");
        for tokens in [&[][..], &[one]] {
            refuses(name, tokens, &json!({ "id": "c" }), "malformed hyper data: no process");
            refuses(name, tokens, &json!(null), "malformed hyper data: expected an object");
            let prefilled = json!({ "id": "c", "process": { "stdio": 7 } });
            refuses(name, tokens, &prefilled, "expected process.Stdio to be 0, got 7");
            let prefilled = json!({ "id": "c", "process": { "stdio": 0, "stderr": 8 } });
            refuses(name, tokens, &prefilled, "expected process.Stderr to be 0, got 8");
        }
    }
    refuses("startpod", &[one], &json!({}), "startpod doesn't need tokens but 1 token(s) were given");
    refuses("ping", &[one, two], &json!({}), "ping doesn't need tokens but 2 token(s) were given");
    refuses("frobnicate", &[], &json!({}), "unknown command 'frobnicate'");
    refuses("startpod", &[], &json!("x".repeat(10_231)), "message too long 10241");
    // With a token too, and before anybody waits for its shim.
    let long = exec("p", &"x".repeat(10_240));
    let error = runtime.hyper("execcmd", &[one], &long).unwrap_err();
    assert!(error.starts_with("message too long 10"), "{error}");
    let mut nobody = Framed::connect(&scene.daemon);
    assert_eq!(nobody.hyper("ping", &[], &json!({})), Err("client not attached to a vm".to_owned()));
    drop((runtime, nobody));
    scene.serves();
}

#[test]
fn data_passes_byte_for_byte_and_the_answer_comes_raw() {
    let mut scene = Scene::set(NEVER);
    let (mut runtime, tokens) = Framed::attached(&scene.daemon, "witness", 2);
    let bases: Vec<u64> = scene.daemon.vm("witness").unwrap().sessions.iter().map(|s| s.io_base).collect();
    let (base, terminal) = (bases[1], bases[2]);
    let _shims: Vec<Framed> = tokens.iter().map(|token| Framed::shim(&scene.daemon, token)).collect();
    let hyper = |tokens: &str, data: &str, name: &str| {
        format!("{{\"hyperName\":\"{name}\",\"tokens\":[{tokens}],\"data\":{data}}}")
    };
    let quoted = |at: usize| format!("\"{}\"", tokens[at]);
    let data = r#"{"z":[1, 2.50],"id":"c","process":{"x":1e3,"args":["\u00e9",  "é"],"user":null},"A":{"b" :{}}}"#;
    let mut passes = |request: String, code: Code, want: String| {
        runtime.send(Kind::Command(Command::Hyper), request.as_bytes());
        let got = scene.guest.serve(code, Code::Ack, b"\x00\xffraw");
        assert_eq!(String::from_utf8(got).unwrap(), want);
        assert_eq!(runtime.response(Command::Hyper), Ok(b"\x00\xffraw".to_vec()));
    };
    let sequences = format!("\"user\":null,\"stdio\":{base},\"stderr\":{}", base + 1);
    let want = data.replace("\"user\":null", &sequences);
    passes(hyper(&quoted(0), data, "newcontainer"), Code::NewContainer, want);
    let data = r#"{"container":"c","process":{"terminal":true,"stdio":0,"id":"p"}}"#;
    let want = data.replace("\"stdio\":0", &format!("\"stdio\":{terminal}"));
    passes(hyper(&quoted(1), data, "execcmd"), Code::ExecCmd, want);
    let data = r#"{"hostname": "h" , "n":1.0}"#;
    passes(hyper("", data, "startpod"), Code::StartPod, data.to_owned());
    passes("{\"hyperName\":\"ping\"}".to_owned(), Code::Ping, String::new());
    runtime.send_hyper("ping", &[], &json!(null));
    scene.guest.serve(Code::Ping, Code::Error, b"not today");
    assert_eq!(runtime.response(Command::Hyper), Err("not today".to_owned()));
}

#[test]
fn processes_without_a_token_run_and_their_output_is_nobodys() {
    let daemon = Daemon::start(&[]);
    let (_agent, mut runtime, tokens) = vm(&daemon, &["--ignore-rootfs"], 1);
    for n in 0..3 {
        let container = json!({ "id": format!("c{n}"), "process": process("init", "echo lost; echo too >&2") });
        assert_eq!(runtime.hyper("newcontainer", &[], &container), Ok(Vec::new()));
        assert_eq!(runtime.hyper("execcmd", &[], &exec(&format!("p{n}"), "seq 20000")), Ok(Vec::new()));
    }
    let mut shim = Framed::shim(&daemon, &tokens[0]);
    runtime.run(&tokens[0], "p", "echo mine");
    shim.exits("mine\n", "", 0);
    let skipped = || daemon.status().shards.iter().map(|shard| shard.skipped_frames).sum::<u64>();
    until("discarded", || (skipped() >= 3 * 20).then_some(()));
}

#[test]
fn a_start_without_a_shim_ends_in_time() {
    let mut scene = Scene::set(SOON);
    let (mut runtime, tokens) = Framed::attached(&scene.daemon, "witness", 1);
    let error = format!("timeout waiting for shim with token {}", tokens[0]);
    assert_eq!(runtime.hyper("execcmd", &[&tokens[0]], &exec("p", "true")), Err(error));
    // The token is as it was.
    let _shim = Framed::shim(&scene.daemon, &tokens[0]);
    runtime.send_hyper("execcmd", &[&tokens[0]], &exec("p", "true"));
    scene.guest.serve(Code::ExecCmd, Code::Ack, b"");
    assert_eq!(runtime.response(Command::Hyper), Ok(Vec::new()));
    scene.serves();
}

#[test]
fn a_shim_that_comes_later_starts_the_process_at_once() {
    let mut scene = Scene::set(NEVER);
    let (mut runtime, tokens) = Framed::attached(&scene.daemon, "witness", 1);
    runtime.send_hyper("execcmd", &[&tokens[0]], &exec("p", "true"));
    scene.serves();
    let mut shim = Framed::shim(&scene.daemon, &tokens[0]);
    scene.guest.serve(Code::ExecCmd, Code::Ack, b"");
    assert_eq!(runtime.response(Command::Hyper), Ok(Vec::new()));
    let base = scene.daemon.vm("witness").unwrap().sessions[1].io_base;
    scene.guest.send(base, b"up");
    shim.expect(Kind::Stream(Stream::Stdout), b"up");
}

#[test]
fn input_before_the_start_waits_for_it() {
    let daemon = Daemon::start(NEVER);
    let (_agent, mut runtime, tokens) = vm(&daemon, &[], 1);
    let mut shim = Framed::shim(&daemon, &tokens[0]);
    shim.stdin(b"early\n");
    shim.stdin(&[b'x'; 100_000]);
    shim.stdin(b"");
    runtime.run(&tokens[0], "p", "cat");
    shim.exits(&format!("early\n{}", "x".repeat(100_000)), "", 0);
}

#[test]
fn input_that_no_process_takes_ends_its_shim_in_time() {
    let mut scene = Scene::set(SOON);
    let (mut runtime, tokens) = Framed::attached(&scene.daemon, "witness", 1);
    let mut shim = Framed::shim(&scene.daemon, &tokens[0]);
    shim.stdin(b"for nobody");
    shim.expect_end();
    scene.daemon.logged(&["shim gone", "no process was started", "vm=\"witness\""]);
    // The token is free, and what came in vain is forgotten.
    let mut shim = Framed::next_shim(&scene.daemon, &tokens[0]);
    runtime.send_hyper("execcmd", &[&tokens[0]], &exec("p", "true"));
    scene.guest.serve(Code::ExecCmd, Code::Ack, b"");
    assert_eq!(runtime.response(Command::Hyper), Ok(Vec::new()));
    shim.stdin(b"for somebody");
    assert_eq!(scene.guest.take_frame().1, b"for somebody");
    scene.serves();
}

#[test]
fn kill_and_term_before_the_start_end_the_shim_before_they_are_answered() {
    for number in [9, 15] {
        let mut scene = Scene::set(NEVER);
        let (mut runtime, tokens) = Framed::attached(&scene.daemon, "witness", 1);
        let mut shim = Framed::shim(&scene.daemon, &tokens[0]);
        shim.command(Command::Signal, &json!({ "signalNumber": number }));
        shim.expect(Kind::Notification(PROCESS_EXITED), &[0]);
        shim.expect(Kind::Response { command: Command::Signal, error: false }, b"");
        let used = format!("token already used: {}", tokens[0]);
        assert_eq!(runtime.hyper("execcmd", &[&tokens[0]], &exec("p", "true")), Err(used));
        drop((shim, runtime));
        scene.serves();
    }
}

#[test]
fn other_signals_before_the_start_wait_for_it() {
    let mut scene = Scene::set(NEVER);
    let (mut runtime, tokens) = Framed::attached(&scene.daemon, "witness", 1);
    let mut shim = Framed::shim(&scene.daemon, &tokens[0]);
    shim.command(Command::Signal, &json!({ "signalNumber": 1 }));
    scene.serves();
    runtime.send_hyper("newcontainer", &[&tokens[0]], &json!({ "id": "c", "process": {} }));
    scene.guest.serve(Code::NewContainer, Code::Ack, b"");
    let kill = scene.guest.serve(Code::KillContainer, Code::Ack, b"");
    assert_eq!(kill, br#"{"container":"c","signal":1}"#);
    assert_eq!(shim.response(Command::Signal), Ok(Vec::new()));
}

#[test]
fn a_signal_whose_process_does_not_start_ends_its_shim_in_time() {
    let mut scene = Scene::set(SOON);
    let (_runtime, tokens) = Framed::attached(&scene.daemon, "witness", 1);
    let mut shim = Framed::shim(&scene.daemon, &tokens[0]);
    shim.command(Command::Signal, &json!({ "signalNumber": 2 }));
    while let Some((kind, _)) = shim.next_frame() {
        assert_eq!(kind, Kind::Response { command: Command::Signal, error: true });
    }
    Framed::next_shim(&scene.daemon, &tokens[0]);
    scene.serves();
}

#[test]
fn a_shim_that_leaves_takes_its_waiting_signal_with_it() {
    let mut scene = Scene::set(NEVER);
    let (mut runtime, tokens) = Framed::attached(&scene.daemon, "witness", 1);
    let mut shim = Framed::shim(&scene.daemon, &tokens[0]);
    shim.command(Command::Signal, &json!({ "signalNumber": 1 }));
    let clients = scene.daemon.status().clients;
    drop(shim);
    until("its end", || (scene.daemon.status().clients < clients).then_some(()));
    let _shim = Framed::next_shim(&scene.daemon, &tokens[0]);
    runtime.send_hyper("newcontainer", &[&tokens[0]], &json!({ "id": "c", "process": {} }));
    scene.guest.serve(Code::NewContainer, Code::Ack, b"");
    assert_eq!(runtime.response(Command::Hyper), Ok(Vec::new()));
    scene.serves();
}

#[test]
fn a_vm_that_dies_ends_registrations_and_commands_with_an_error() {
    let mut scene = Scene::set(NEVER);
    let ports = Ports::open(&scene.daemon, "still");
    let mut runtime = Framed::connect(&scene.daemon);
    runtime.command(Command::RegisterVm, &register("still", &ports, 1));
    drop(ports.accept());
    let error = runtime.response(Command::RegisterVm).unwrap_err();
    assert!(error.starts_with("still: the VM is gone: "), "{error}");
    drop(runtime);
    let (guest, mut runtime, tokens) = boot(&scene.daemon, "vm", 2);
    let shim = Framed::shim(&scene.daemon, &tokens[0]);
    runtime.send_hyper("execcmd", &[&tokens[0]], &exec("p", "true"));
    let mut waiting = Framed::connect(&scene.daemon);
    waiting.attach("vm", 0);
    waiting.send_hyper("execcmd", &[&tokens[1]], &exec("q", "true"));
    until("in flight", || scene.daemon.vm("vm")?.command);
    drop(guest);
    for client in [&mut runtime, &mut waiting] {
        let error = client.response(Command::Hyper).unwrap_err();
        assert!(error.starts_with("vm: the VM is gone: "), "{error}");
    }
    assert_eq!(runtime.ask(Command::UnregisterVm, &json!({ "containerId": "vm" })), Ok(Vec::new()));
    drop((runtime, waiting, shim));
    scene.is_sound();
}

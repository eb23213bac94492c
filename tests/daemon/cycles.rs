//! A thousand short lives: hello, allocateIO, execcmd, exit, bye, many VMs at a time.

use std::thread;
use std::time::Duration;

use ringway::client::{Client, Event, Session};
use ringway::wire::hyper::{ExecCmd, Process};

use super::harness::{Agent, PATIENCE, until};
use super::scene::Scene;

const VMS: u8 = 50;
const CYCLES: u8 = 20;

/// One cycle: the process says who it is and ends with `status`.
fn cycle(socket: &std::path::Path, agent: &Agent, id: &str, status: u8) {
    let mut client = Client::connect(socket).unwrap();
    client.set_timeout(Some(PATIENCE)).unwrap();
    until("an agent that answers", || match client.hello(id, &agent.ctl, &agent.io) {
        Ok(()) => Some(()),
        Err(error) if error.to_string().contains("connect") || error.to_string().contains("ENOENT") => None,
        Err(error) => panic!("{id}: {error}"),
    });
    let (base, fd) = client.allocate_io(2).unwrap();
    let (mut reader, _writer) = Session::new(base, 2, fd).split();
    reader.set_timeout(Some(PATIENCE + Duration::from_secs(1))).unwrap();
    let script = format!("echo {id} says {status}; exit {status}");
    let process = Process {
        id: Some(format!("{id}-{status}")),
        stdio: base.0,
        stderr: base.0 + 1,
        args: ["/bin/sh", "-c", &script].map(str::to_owned).to_vec(),
        workdir: "/".to_owned(),
        ..Process::default()
    };
    client.hyper("execcmd", &ExecCmd { container: String::new(), process }).unwrap();
    let (mut said, mut ended) = (Vec::new(), None);
    while ended.is_none() {
        match reader.read_event().unwrap().expect("a status before the end") {
            Event::Stdout(bytes) | Event::Stderr(bytes) => said.extend_from_slice(bytes),
            Event::ExitStatus(status) => ended = Some(status),
            _ => {}
        }
    }
    client.bye(id).unwrap();
    assert_eq!((ended, said), (Some(status), format!("{id} says {status}\n").into_bytes()));
}

#[test]
fn a_thousand_cycles_over_fifty_vms_leave_nothing_behind() {
    let mut scene = Scene::set(&[]);
    let dir = tempfile::tempdir().unwrap();
    let socket = scene.daemon.socket();
    thread::scope(|scope| {
        for vm in 0..VMS {
            let (dir, socket) = (dir.path(), socket.as_path());
            scope.spawn(move || {
                let id = format!("vm{vm}");
                let agent = Agent::start(dir, &id, &["--ready-per-connection"]);
                for round in 0..CYCLES {
                    cycle(socket, &agent, &id, round.wrapping_mul(13).wrapping_add(vm));
                }
            });
        }
    });
    scene.is_sound();
    let counters = scene.daemon.status().counters;
    assert_eq!((counters.vms_lost, counters.vms_added, counters.sessions_opened), (0, 1_001, 1_001));
}

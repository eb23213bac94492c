//! Guests and clients that flood, read next to nothing, open sequences and sessions by the thousand or die at any
//! byte: everybody else is served meanwhile, and nothing of them is left behind.

use std::io::{ErrorKind, Read, Write};

use ringway::os::rlimit;
use ringway::wire::cc2::{self, Command, Kind};
use ringway::wire::hyper::Code;
use serde_json::{Value, json};

use super::client::{frame, message};
use super::framed::Framed;
use super::guest::Guest;
use super::scene::Scene;

/// Reads one byte after the other, while others are served.
fn sips(scene: &mut Scene, mut socket: impl Read, bytes: usize) {
    for n in 0..bytes {
        assert_eq!(socket.read(&mut [0]).unwrap(), 1);
        if n % 500 == 0 {
            scene.serves();
        }
    }
}

#[test]
fn a_guest_that_dies_at_any_byte_of_a_frame() {
    let mut scene = Scene::set(&[]);
    let mut client = scene.daemon.client();
    for cut in 0..=16 {
        let id = format!("mortal{cut}");
        let mut guest = Guest::boot(&scene.daemon, &mut client, &id);
        let mut session = client.allocate(1);
        let whole = frame(session.base, b"last");
        guest.io.write_all(&whole[..cut]).unwrap();
        drop(guest);
        if cut == whole.len() {
            session.expect(b"last");
        }
        session.expect_end();
        scene.serves();
        client.bye(&id).unwrap();
    }
    drop(client);
    scene.is_sound();
}

#[test]
fn a_guest_that_dies_at_any_byte_of_an_answer() {
    let mut scene = Scene::set(&[]);
    let mut client = scene.daemon.client();
    let answer = [&9_u32.to_be_bytes()[..], &12_u32.to_be_bytes(), b"done"].concat();
    for cut in 0..answer.len() {
        let id = format!("mortal{cut}");
        let mut guest = Guest::boot(&scene.daemon, &mut client, &id);
        client.send_hyper("ping", &Value::Null);
        assert_eq!(guest.next_command().0, Code::Ping);
        guest.ctl.write_all(&answer[..cut]).unwrap();
        drop(guest);
        let error = client.response().unwrap_err();
        assert!(error.contains("the VM is gone") || error.contains("closed"), "{error}");
        scene.serves();
        client.bye(&id).unwrap();
    }
    drop(client);
    scene.is_sound();
}

#[test]
fn a_client_that_dies_at_any_byte_of_a_request_of_either_protocol() {
    let mut scene = Scene::set(&[]);
    let payload = json!({ "containerId": "witness", "numIOStreams": 1 }).to_string();
    let requests = [
        message(r#"{"id":"attach","data":{"containerId":"witness"}}"#),
        cc2::encode(Kind::Command(Command::AttachVm), payload.as_bytes()),
    ];
    for request in requests {
        for cut in 0..request.len() {
            let mut client = scene.daemon.client();
            client.send_bytes(&request[..cut]);
        }
        scene.serves();
    }
    scene.is_sound();
}

#[test]
fn a_client_that_dies_at_any_byte_of_a_frame() {
    let mut scene = Scene::set(&[]);
    for cut in 0..=16 {
        let mut session = scene.client.allocate(1);
        let whole = frame(session.base, b"last");
        session.socket.write_all(&whole[..cut]).unwrap();
        let base = session.base;
        drop(session);
        if cut == whole.len() {
            assert_eq!(scene.guest.take_frame(), (base, b"last".to_vec()));
        }
        scene.serves();
    }
    scene.is_sound();
}

#[test]
fn a_guest_with_thousands_of_sequences_that_nobody_has() {
    let mut scene = Scene::set(&[]);
    let mut client = scene.daemon.client();
    let mut guest = Guest::boot(&scene.daemon, &mut client, "wild");
    let mut session = client.allocate(1);
    let strays: Vec<u8> = (0..20_000).flat_map(|seq| frame((1 << 40) + seq, b"")).collect();
    for _ in 0..10 {
        guest.io.write_all(&strays).unwrap();
        guest.io.write_all(&frame((1 << 50) + 1, &[7; 50_000])).unwrap();
        guest.send(session.base, b"mine");
        session.expect(b"mine");
        scene.serves();
    }
    let skipped: u64 = scene.daemon.status().shards.iter().map(|shard| shard.skipped_frames).sum();
    assert_eq!(skipped, 10 * 20_001);
    client.bye("wild").unwrap();
    drop((client, session));
    scene.is_sound();
}

#[test]
fn a_flood_of_empty_frames_of_one_session_keeps_its_order_and_stalls_nobody() {
    let mut scene = Scene::set(&["--shards", "1"]);
    let mut client = scene.daemon.client();
    let mut guest = Guest::boot(&scene.daemon, &mut client, "busy");
    let (mut session, other) = (client.allocate(1), client.allocate(1));
    let (base, rounds) = (session.base, 20_u8);
    let flood = std::thread::spawn(move || {
        for n in 0..rounds {
            guest.io.write_all(&frame(base, b"").repeat(10_000)).unwrap();
            guest.send(base, &[n]);
        }
        guest
    });
    for n in 0..rounds {
        for _ in 0..10_000 {
            session.expect(b"");
        }
        session.expect(&[n]);
        scene.serves();
    }
    drop(flood.join().unwrap());
    client.bye("busy").unwrap();
    drop((client, session, other));
    scene.is_sound();
}

#[test]
fn a_guest_that_reads_byte_by_byte() {
    let mut scene = Scene::set(&[]);
    let mut client = scene.daemon.client();
    let guest = Guest::boot(&scene.daemon, &mut client, "slow");
    let mut session = client.allocate(1);
    session.flood(&[1; 4_000], 1_000);
    sips(&mut scene, &guest.io, 3_000);
    client.bye("slow").unwrap();
    drop((client, session, guest));
    scene.is_sound();
}

#[test]
fn a_client_that_reads_byte_by_byte() {
    let mut scene = Scene::set(&[]);
    let mut client = scene.daemon.client();
    let mut guest = Guest::boot(&scene.daemon, &mut client, "quick");
    let session = client.allocate(1);
    for _ in 0..40 {
        guest.send(session.base, &[1; 4_000]);
    }
    sips(&mut scene, &session.socket, 3_000);
    client.bye("quick").unwrap();
    drop((client, session, guest));
    scene.is_sound();
}

#[test]
fn a_client_that_takes_every_session_there_is() {
    rlimit::raise_descriptors().unwrap();
    let mut scene = Scene::set(&["--max-sessions-per-vm", "1000"]);
    let mut client = scene.daemon.client();
    let guest = Guest::boot(&scene.daemon, &mut client, "greedy");
    let sessions: Vec<_> = (0..1_000).map(|_| client.allocate(1)).collect();
    let refused = client.ask("allocateIO", &json!({ "nStreams": 1 })).unwrap_err();
    assert!(refused.contains("--max-sessions-per-vm"), "{refused}");
    scene.serves();
    drop((sessions, guest));
    client.bye("greedy").unwrap();
    drop(client);
    scene.is_sound();
}

#[test]
fn a_client_that_asks_and_never_reads_is_not_read_either() {
    let mut scene = Scene::set(&[]);
    let mut client = scene.daemon.client();
    let mut two = Framed::connect(&scene.daemon);
    let one = message(r#"{"id":"attach","data":{"containerId":"nobody"}}"#).repeat(1_000);
    let other = cc2::encode(Kind::Command(Command::AttachVm), br#"{"containerId":"nobody"}"#).repeat(1_000);
    for (socket, requests) in [(&mut client.socket, one), (&mut two.socket, other)] {
        socket.set_nonblocking(true).unwrap();
        let mut idle = 0;
        let mut taken = 0;
        // What is taken is bounded by what both sockets hold.
        while idle < 20 {
            match socket.write(&requests) {
                Ok(count) => (taken, idle) = (taken + count, 0),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    idle += 1;
                    std::thread::sleep(std::time::Duration::from_millis(10));
                }
                Err(error) => panic!("{error}"),
            }
            assert!(taken < 16 << 20, "it is read all the same");
        }
    }
    scene.serves();
    drop((client, two));
    scene.is_sound();
}

#[test]
fn garbage_of_many_clients_in_turn() {
    let mut scene = Scene::set(&[]);
    for round in 0..64_u8 {
        let mut client = scene.daemon.client();
        let lead = if round % 2 == 0 { [0, 2] } else { [0xff, 0xff] };
        client.send_bytes(&[&lead[..], &[round | 0x80; 62]].concat());
        client.expect_end();
        scene.serves();
    }
    assert_eq!(scene.daemon.status().counters.clients_faulty, 64);
    scene.is_sound();
}

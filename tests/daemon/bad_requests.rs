//! Clients that break protocol 1, or use it wrongly: their own connection pays, nobody else.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;

use ringway::os::rlimit;
use ringway::wire::hyper::Code;
use serde_json::{Value, json};

use super::client::{message, patient};
use super::scene::Scene;

fn me() -> String {
    format!("pid={}", std::process::id())
}

/// Sends these bytes on a connection of their own: it ends without an answer, and the log names the client.
fn is_cut_off(bytes: &[u8], why: &str) {
    let mut scene = Scene::set(&[]);
    let mut client = scene.daemon.client();
    // The daemon may close before it has everything.
    let _ = client.socket.write_all(bytes);
    client.expect_end();
    drop(client);
    scene.daemon.logged(&["connection ended", why, &me()]);
    scene.is_sound();
    assert_eq!(scene.daemon.status().counters.clients_faulty, 1);
}

/// Sends this request to an attached client's connection: it is refused so, and the connection goes on.
fn is_refused(json: &str, error: &str) {
    let mut scene = Scene::set(&[]);
    let mut client = scene.daemon.client();
    client.attach("witness").unwrap();
    client.send_text(json);
    assert_eq!(client.response(), Err(error.to_owned()), "{json}");
    client.is_in_step();
    drop(client);
    scene.daemon.logged(&["request refused", &me()]);
    scene.is_sound();
}

#[test]
fn a_truncated_header_ends_its_connection() {
    for bytes in [&[0; 5][..], &message("{\"id\":\"hello\"}")[..12]] {
        let mut scene = Scene::set(&[]);
        let mut client = scene.daemon.client();
        client.send_bytes(bytes);
        client.socket.shutdown(std::net::Shutdown::Write).unwrap();
        client.expect_end();
        drop(client);
        scene.daemon.logged(&["in the middle of a message", &me()]);
        scene.is_sound();
    }
}

#[test]
fn a_length_over_the_bound_ends_its_connection() {
    is_cut_off(b"\x7f\xff\xff\xff\0\0\0\0{}", "length 2147483647 is over the bound of 131071");
    is_cut_off(b"\xff\xff\xff\xff\0\0\0\0", "length 4294967295 is over the bound");
    is_cut_off(b"\0\x03\0\0\0\0\0\0", "length 196608 is over the bound");
}

#[test]
fn protocol_2_is_told_from_protocol_1_by_the_first_two_bytes() {
    let mut scene = Scene::set(&[]);
    let mut client = scene.daemon.client();
    let payload = b"{\"containerId\":\"nobody\"}";
    let len = u8::try_from(payload.len()).unwrap();
    // AttachVM, byte by byte: what speaks is known before the header is whole.
    for byte in [&[0, 2, 3, 0, 0, 0, 0, 2, 0, 0, 0, len][..], payload].concat() {
        client.send_bytes(&[byte]);
    }
    let mut header = [0; 12];
    client.socket.read_exact(&mut header).unwrap();
    assert_eq!(header[..8], [0, 2, 3, 0, 0, 0, 0x11, 2], "a response of the same protocol, with the error bit");
    drop(client);
    scene.is_sound();
    is_cut_off(&[0, 2, 3, 0, 0, 0, 5, 0, 0, 0, 0, 0], "protocol broken by the client");
}

#[test]
fn invalid_json_ends_its_connection() {
    is_cut_off(&message("{\"id\":"), "invalid JSON");
    is_cut_off(&message("\0\0\0\0"), "invalid JSON");
    is_cut_off(&message("{\"id\":\"bye\"} and more"), "invalid JSON");
}

#[test]
fn a_request_of_a_wrong_type_ends_its_connection() {
    is_cut_off(&message("[\"hello\"]"), "invalid JSON");
    is_cut_off(&message("{\"id\":5,\"data\":{}}"), "invalid JSON");
}

#[test]
fn data_of_a_wrong_type_is_refused() {
    let mut scene = Scene::set(&[]);
    let mut client = scene.daemon.client();
    client.attach("witness").unwrap();
    for (id, data) in [
        ("hello", json!({ "containerId": 5, "ctlSerial": "/c", "ioSerial": "/i" })),
        ("attach", json!("witness")),
        ("allocateIO", json!({ "nStreams": "2" })),
        ("allocateIO", json!({ "nStreams": 1.5 })),
        ("hyper", json!({ "hyperName": ["ping"] })),
        ("bye", json!([])),
    ] {
        let error = client.ask(id, &data).unwrap_err();
        assert!(error.starts_with(&format!("malformed {id} command: ")), "{error}");
        client.is_in_step();
    }
    drop(client);
    scene.daemon.logged(&["request refused", "allocateIO", &me()]);
    scene.is_sound();
}

#[test]
fn an_unknown_id_is_refused() {
    is_refused("{\"id\":\"helo\",\"data\":{}}", "no payload named 'helo'");
}

#[test]
fn a_missing_id_is_refused() {
    is_refused("{\"data\":{}}", "no 'id' field in request");
    is_refused("{}", "no 'id' field in request");
}

#[test]
fn missing_data_is_refused() {
    is_refused("{\"id\":\"hello\"}", "malformed hello command");
    is_refused("{\"id\":\"attach\"}", "unknown containerID: ");
    is_refused("{\"id\":\"allocateIO\"}", "asking for unexpected number of streams (0)");
    is_refused("{\"id\":\"hyper\",\"data\":null}", "unknown command ''");
    is_refused("{\"id\":\"bye\"}", "unknown containerID: ");
}

#[test]
fn hello_with_an_empty_field_is_refused() {
    let whole = json!({ "containerId": "v", "ctlSerial": "/c", "ioSerial": "/i" });
    for field in ["containerId", "ctlSerial", "ioSerial"] {
        let mut data = whole.clone();
        data[field] = json!("");
        is_refused(&json!({ "id": "hello", "data": data }).to_string(), "malformed hello command");
    }
}

#[test]
fn an_unexpected_number_of_streams_is_refused() {
    for count in ["0", "3", "-1", "9223372036854775807"] {
        is_refused(
            &format!("{{\"id\":\"allocateIO\",\"data\":{{\"nStreams\":{count}}}}}"),
            &format!("asking for unexpected number of streams ({count})"),
        );
    }
}

#[test]
fn two_to_the_63_streams_are_refused() {
    let mut scene = Scene::set(&[]);
    let mut client = scene.daemon.client();
    client.attach("witness").unwrap();
    for count in ["9223372036854775808", "1e400"] {
        client.send_text(&format!("{{\"id\":\"allocateIO\",\"data\":{{\"nStreams\":{count}}}}}"));
        let error = client.response().unwrap_err();
        assert!(error.starts_with("malformed allocateIO command: "), "{error}");
        client.is_in_step();
    }
    drop(client);
    scene.is_sound();
}

#[test]
fn hyper_with_an_unknown_name_is_refused() {
    is_refused("{\"id\":\"hyper\",\"data\":{\"hyperName\":\"frobnicate\"}}", "unknown command 'frobnicate'");
}

#[test]
fn hyper_with_10_mb_of_data_ends_its_connection() {
    let data = "x".repeat(10 << 20);
    let request = json!({ "id": "hyper", "data": { "hyperName": "execcmd", "data": data } });
    is_cut_off(&message(&request.to_string()), "is over the bound of 131071");
}

#[test]
fn a_control_message_over_10240_bytes_is_refused_and_one_of_10240_passes_whole() {
    let mut scene = Scene::set(&[]);
    // A JSON string of n letters is n + 2 bytes long, the header 8.
    let data = |total: usize| json!("x".repeat(total - 10));
    scene.client.send_hyper("execcmd", &data(10_241));
    assert_eq!(scene.client.response(), Err("message too long 10241".to_owned()));
    scene.client.send_hyper("execcmd", &data(100_000));
    assert_eq!(scene.client.response(), Err("message too long 100000".to_owned()));
    scene.client.send_hyper("execcmd", &data(10_240));
    let payload = scene.guest.serve(Code::ExecCmd, Code::Ack, b"");
    assert_eq!(payload, data(10_240).to_string().as_bytes());
    assert_eq!(scene.client.response(), Ok(Value::Null));
    scene.daemon.logged(&["request refused", "message too long 10241", &me()]);
    scene.is_sound();
}

#[test]
fn a_client_that_sends_byte_by_byte_is_served_and_delays_nobody() {
    let mut scene = Scene::set(&[]);
    let mut slow = scene.daemon.client();
    for byte in message("{\"id\":\"attach\",\"data\":{\"containerId\":\"witness\"}}") {
        slow.send_bytes(&[byte]);
        scene.serves();
    }
    assert_eq!(slow.response(), Ok(json!({ "version": 1 })));
    drop(slow);
    scene.is_sound();
}

#[test]
fn a_client_killed_before_the_descriptor_leaves_nothing_behind() {
    let mut scene = Scene::set(&[]);
    for round in 0..60 {
        let mut client = scene.daemon.client();
        client.attach("witness").unwrap();
        client.send("allocateIO", &json!({ "nStreams": 2 }));
        match round % 3 {
            0 => {}
            1 => drop(client.response()),
            _ => drop(client.socket.shutdown(std::net::Shutdown::Read)),
        }
    }
    scene.is_sound();
    assert!(scene.daemon.status().counters.sessions_opened > 1);
}

#[test]
fn a_thousand_silent_connections_keep_nobody_out() {
    rlimit::raise_descriptors().unwrap();
    let mut scene = Scene::set(&[]);
    let socket = scene.daemon.socket();
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let socket = socket.clone();
            thread::spawn(move || (0..250).map(|_| patient(UnixStream::connect(&socket).unwrap())).collect::<Vec<_>>())
        })
        .collect();
    let silent: Vec<UnixStream> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
    assert_eq!(silent.len(), 1_000);
    scene.serves();
    let mut late = scene.daemon.client();
    late.attach("witness").unwrap();
    drop(late);
    drop(silent);
    scene.is_sound();
}

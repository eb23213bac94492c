//! Protocol 1: golden requests and responses, in every cut, at every bound.

use proptest::collection::vec;
use proptest::prelude::*;
use ringway::limits;
use ringway::wire::DecodeError;
use ringway::wire::cc1::{AllocateIo, ContainerRef, Decoder, FD_BYTE, Hello, Hyper, Request, Response, encode};
use serde_json::value::RawValue;

use crate::{cuts, golden};

/// One request of each kind, as the Go client writes it.
const REQUESTS: [(&str, &str); 6] = [
    (
        "hello",
        "00000085 00000000 |{\"id\":\"hello\",\"data\":{\"containerId\":\"756535dc\",\
         \"ctlSerial\":\"/tmp/sh.hyper.channel.0.sock\",\"ioSerial\":\"/tmp/sh.hyper.channel.1.sock\"}}",
    ),
    ("attach", r#"00000031 00000000 |{"id":"attach","data":{"containerId":"756535dc"}}"#),
    ("allocateIO", r#"00000029 00000000 |{"id":"allocateIO","data":{"nStreams":2}}"#),
    (
        "hyper",
        "00000073 00000000 |{\"id\":\"hyper\",\"data\":{\"hyperName\":\"startpod\",\
         \"data\":{\"hostname\":\"clearlinux\",\"containers\":[],\"shareDir\":\"rootfs\"}}}",
    ),
    ("hyper", r#"0000002a 00000000 |{"id":"hyper","data":{"hyperName":"ping"}}"#),
    ("bye", r#"0000002e 00000000 |{"id":"bye","data":{"containerId":"756535dc"}}"#),
];

/// One response of each kind.
fn responses() -> Vec<(Response, &'static str)> {
    let fail = |error: &str| Response::fail(error);
    vec![
        (Response::ok(), r#"00000010 00000000 |{"success":true}"#),
        (Response::version(), r#"00000025 00000000 |{"success":true,"data":{"version":1}}"#),
        (Response::io_base(1), r#"00000024 00000000 |{"success":true,"data":{"ioBase":1}}"#),
        (
            Response::io_base(limits::SEQ_END - 1),
            r#"00000033 00000000 |{"success":true,"data":{"ioBase":9007199254740991}}"#,
        ),
        (
            fail("no 'id' field in request"),
            r#"00000034 00000000 |{"success":false,"error":"no 'id' field in request"}"#,
        ),
        (fail("no payload named 'X'"), r#"00000030 00000000 |{"success":false,"error":"no payload named 'X'"}"#),
        (fail("malformed hello command"), r#"00000033 00000000 |{"success":false,"error":"malformed hello command"}"#),
        (
            fail("ID: container already registered"),
            r#"0000003c 00000000 |{"success":false,"error":"ID: container already registered"}"#,
        ),
        (fail("unknown containerID: ID"), r#"00000033 00000000 |{"success":false,"error":"unknown containerID: ID"}"#),
        (
            fail("client not attached to a vm"),
            r#"00000037 00000000 |{"success":false,"error":"client not attached to a vm"}"#,
        ),
        (
            fail("asking for unexpected number of streams (3)"),
            r#"00000047 00000000 |{"success":false,"error":"asking for unexpected number of streams (3)"}"#,
        ),
        (fail("unknown command 'X'"), r#"0000002f 00000000 |{"success":false,"error":"unknown command 'X'"}"#),
        (fail("say \"no\"\n"), r#"00000028 00000000 |{"success":false,"error":"say \"no\"\n"}"#),
    ]
}

fn raw<T: serde::Serialize>(value: &T) -> Option<Box<RawValue>> {
    Some(serde_json::value::to_raw_value(value).expect("plain data serializes"))
}

/// The request a client of ours builds for each row of `REQUESTS`.
fn built() -> [Request; 6] {
    let vm = || ContainerRef { container_id: "756535dc".to_owned() };
    let hello = Hello {
        container_id: "756535dc".to_owned(),
        ctl_serial: "/tmp/sh.hyper.channel.0.sock".to_owned(),
        io_serial: "/tmp/sh.hyper.channel.1.sock".to_owned(),
    };
    let pod = r#"{"hostname":"clearlinux","containers":[],"shareDir":"rootfs"}"#.to_owned();
    let start =
        Hyper { hyper_name: "startpod".to_owned(), data: Some(RawValue::from_string(pod).expect("a JSON value")) };
    let ping = Hyper { hyper_name: "ping".to_owned(), data: None };
    let payloads = [
        raw(&hello),
        raw(&vm()),
        raw(&AllocateIo { n_streams: 2, ..AllocateIo::default() }),
        raw(&start),
        raw(&ping),
        raw(&vm()),
    ];
    let mut names = REQUESTS.iter();
    payloads.map(|data| Request { id: names.next().map(|&(id, _)| id.to_owned()).unwrap_or_default(), data })
}

/// The first message of `bytes`.
fn first<T: for<'de> serde::Deserialize<'de>>(bytes: &[u8]) -> Result<Option<T>, DecodeError> {
    let mut decoder = Decoder::new(limits::CC1_MESSAGE_MAX);
    decoder.push(bytes);
    decoder.next_message()
}

#[test]
fn every_request_has_its_bytes() {
    for ((id, written), request) in REQUESTS.iter().zip(built()) {
        assert_eq!(String::from_utf8_lossy(&encode(&request)), String::from_utf8_lossy(&golden(written)), "{id}");
        let read: Request = first(&golden(written)).expect("golden").expect("whole");
        assert_eq!((read.id.as_str(), read.data.map(|d| d.to_string())), (*id, request.data.map(|d| d.to_string())));
    }
}

#[test]
fn every_response_has_its_bytes() {
    for (response, written) in responses() {
        assert_eq!(String::from_utf8_lossy(&encode(&response)), String::from_utf8_lossy(&golden(written)));
        assert_eq!(first(&golden(written)), Ok(Some(response)));
    }
}

#[test]
fn a_descriptor_travels_with_an_f() {
    assert_eq!(golden("46 |"), [FD_BYTE]);
}

#[test]
fn every_cut_gives_the_same_requests() {
    let bytes: Vec<u8> = REQUESTS.iter().flat_map(|(_, written)| golden(written)).collect();
    for pieces in cuts(&bytes) {
        let mut decoder = Decoder::new(limits::CC1_MESSAGE_MAX);
        let mut found = Vec::new();
        for piece in pieces {
            decoder.push(piece);
            while let Some(request) = decoder.next_message::<Request>().expect("golden") {
                found.extend(encode(&request));
            }
        }
        assert_eq!(found, bytes);
        assert_eq!(decoder.pending(), 0);
    }
}

#[test]
fn every_cut_gives_the_same_responses() {
    for (response, written) in responses() {
        let bytes = golden(written);
        for pieces in cuts(&bytes).filter(|pieces| !pieces[pieces.len() - 1].is_empty()) {
            let mut decoder = Decoder::new(limits::CC1_MESSAGE_MAX);
            for piece in &pieces[..pieces.len() - 1] {
                decoder.push(piece);
                assert_eq!(decoder.next_message::<Response>(), Ok(None));
            }
            decoder.push(pieces[pieces.len() - 1]);
            assert_eq!(decoder.next_message(), Ok(Some(response.clone())));
        }
    }
}

#[test]
fn what_waits_is_counted() {
    let mut decoder = Decoder::new(64);
    assert_eq!(decoder.pending(), 0);
    decoder.push(&golden("00000002 00000000 |{}0000"));
    assert_eq!(decoder.pending(), 14);
    assert!(decoder.next_message::<Request>().expect("an object").is_some());
    assert_eq!(decoder.pending(), 4);
}

#[test]
fn lengths_are_checked_before_the_payload_comes() {
    let max = limits::CC1_MESSAGE_MAX as u64;
    let head = |len: u64| golden(&format!("{len:08x} 00000000 |"));
    assert!(matches!(first::<Request>(&head(max)), Ok(None)));
    for len in [max + 1, u64::from(u32::MAX)] {
        assert_eq!(first::<Response>(&head(len)), Err(DecodeError::TooLong { len, max }));
    }
    assert!(matches!(first::<Request>(&head(max + 1)[..7]), Ok(None)), "not before the header is whole");
    assert!(matches!(first::<Request>(&head(0)), Err(DecodeError::Json(_))), "an empty message is no JSON");
}

#[test]
fn a_request_of_exactly_the_bound_is_taken() {
    let request = |fill: usize| Request { id: "a".repeat(fill), data: None };
    let frame = encode(&request(limits::CC1_MESSAGE_MAX - encode(&request(0)).len() + 8));
    assert_eq!(frame.len(), limits::CC1_MESSAGE_MAX + 8);
    assert!(matches!(first::<Request>(&frame), Ok(Some(_))));
}

#[test]
fn the_reserved_word_is_not_looked_at() {
    assert_eq!(first(&golden(r#"00000010 ffffffff |{"success":true}"#)), Ok(Some(Response::ok())));
}

#[test]
fn a_protocol_1_header_is_never_one_of_protocol_2() {
    let longest = u32::try_from(limits::CC1_MESSAGE_MAX).expect("bounded").to_be_bytes();
    assert!(longest[..2] < [0, 2][..], "protocol 2 begins 00 02");
}

fn response() -> impl Strategy<Value = Response> {
    let data = proptest::option::of(any::<u64>().prop_map(|base| serde_json::json!({ "ioBase": base })));
    (any::<bool>(), any::<String>(), data).prop_map(|(success, error, data)| Response { success, error, data })
}

proptest! {
    #[test]
    fn responses_survive_any_pieces(responses in vec(response(), 0..6), lengths in vec(1_usize..20, 1..16)) {
        let bytes: Vec<u8> = responses.iter().flat_map(encode).collect();
        let (mut rest, mut found, mut decoder) = (&bytes[..], Vec::new(), Decoder::new(limits::CC1_MESSAGE_MAX));
        for len in lengths.into_iter().cycle().take(bytes.len()) {
            let (piece, after) = rest.split_at(len.min(rest.len()));
            decoder.push(piece);
            while let Some(response) = decoder.next_message::<Response>().expect("encoded by us") {
                found.push(response);
            }
            rest = after;
        }
        prop_assert_eq!(found, responses);
    }

    #[test]
    fn payloads_survive_a_round_trip(id in any::<String>(), ctl in any::<String>(), n in any::<i64>()) {
        let hello = Hello { container_id: id.clone(), ctl_serial: ctl, io_serial: String::new() };
        let request = Request { id, data: raw(&hello) };
        let read: Request = first(&encode(&request)).expect("encoded by us").expect("whole");
        prop_assert_eq!(&read.id, &request.id);
        let data = read.data.expect("as sent");
        prop_assert_eq!(serde_json::from_str::<Hello>(data.get()).expect("as sent"), hello);
        let allocate = AllocateIo { n_streams: n, ..AllocateIo::default() };
        let text = raw(&allocate).expect("as built");
        prop_assert_eq!(serde_json::from_str::<AllocateIo>(text.get()).expect("as sent"), allocate);
    }

    #[test]
    fn no_bytes_make_a_decoder_panic(bytes in vec(any::<u8>(), 0..200), len in 0_u32..64) {
        let with_head = [&len.to_be_bytes()[..], &[0; 4], &bytes].concat();
        for bytes in [bytes, with_head] {
            let mut decoder = Decoder::new(64);
            decoder.push(&bytes);
            while let Ok(Some(_)) = decoder.next_message::<Request>() {}
        }
    }
}

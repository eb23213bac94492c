//! Protocol 2's frames: golden bytes of every kind, in every cut, at every bound.

use proptest::collection::vec;
use proptest::prelude::*;
use ringway::limits::{CC2_MESSAGE_MAX, CC2_RESPONSE_MAX, STREAM_FRAME_MAX};
use ringway::wire::DecodeError;
use ringway::wire::cc2::{Command, Decoder, Frame, HEADER_LEN, Header, Kind, PROCESS_EXITED, Stream, encode};

use crate::{cuts, golden};

const COMMANDS: [Command; 7] = [
    Command::RegisterVm,
    Command::UnregisterVm,
    Command::AttachVm,
    Command::Hyper,
    Command::ConnectShim,
    Command::DisconnectShim,
    Command::Signal,
];

const STREAMS: [Stream; 4] = [Stream::Stdin, Stream::Stdout, Stream::Stderr, Stream::Log];

const fn answer(command: Command) -> Kind {
    Kind::Response { command, error: false }
}

const fn refusal(command: Command) -> Kind {
    Kind::Response { command, error: true }
}

/// One frame of each kind: version, words of header, reserved, type, opcode, length, payload.
const FRAMES: [(Kind, &str); 27] = [
    (
        Kind::Command(Command::RegisterVm),
        "0002 03 000000 00 00 00000064 |{\"containerId\":\"756535dc\",\"ctlSerial\":\"/ctl\",\
         \"ioSerial\":\"/io\",\"console\":\"/console\",\"numIOStreams\":2}",
    ),
    (Kind::Command(Command::UnregisterVm), r#"0002 03 000000 00 01 0000001a |{"containerId":"756535dc"}"#),
    (Kind::Command(Command::AttachVm), r#"0002 03 000000 00 02 0000002b |{"containerId":"756535dc","numIOStreams":1}"#),
    (Kind::Command(Command::Hyper), r#"0002 03 000000 00 03 00000014 |{"hyperName":"ping"}"#),
    (
        Kind::Command(Command::ConnectShim),
        r#"0002 03 000000 00 04 00000038 |{"token":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="}"#,
    ),
    (Kind::Command(Command::DisconnectShim), "0002 03 000000 00 05 00000000 |"),
    (Kind::Command(Command::Signal), r#"0002 03 000000 00 06 00000013 |{"signalNumber":15}"#),
    (answer(Command::RegisterVm), r#"0002 03 000000 01 00 00000028 |{"io":{"URL":"unix:///p","tokens":null}}"#),
    (refusal(Command::RegisterVm), r#"0002 03 000000 11 00 0000000c |{"msg":"no"}"#),
    (answer(Command::UnregisterVm), "0002 03 000000 01 01 00000000 |"),
    (refusal(Command::UnregisterVm), r#"0002 03 000000 11 01 0000000c |{"msg":"no"}"#),
    (answer(Command::AttachVm), r#"0002 03 000000 01 02 00000028 |{"io":{"URL":"unix:///p","tokens":null}}"#),
    (refusal(Command::AttachVm), r#"0002 03 000000 11 02 0000000c |{"msg":"no"}"#),
    (answer(Command::Hyper), "0002 03 000000 01 03 00000000 |"),
    (refusal(Command::Hyper), r#"0002 03 000000 11 03 0000000c |{"msg":"no"}"#),
    (answer(Command::ConnectShim), "0002 03 000000 01 04 00000000 |"),
    (refusal(Command::ConnectShim), r#"0002 03 000000 11 04 0000000c |{"msg":"no"}"#),
    (answer(Command::DisconnectShim), "0002 03 000000 01 05 00000000 |"),
    (refusal(Command::DisconnectShim), r#"0002 03 000000 11 05 0000000c |{"msg":"no"}"#),
    (answer(Command::Signal), "0002 03 000000 01 06 00000000 |"),
    (refusal(Command::Signal), r#"0002 03 000000 11 06 0000000c |{"msg":"no"}"#),
    (Kind::Stream(Stream::Stdin), "0002 03 000000 02 00 00000003 |ls\n"),
    (Kind::Stream(Stream::Stdout), "0002 03 000000 02 01 00000004 |a b\n"),
    (Kind::Stream(Stream::Stderr), "0002 03 000000 02 02 00000002 |oh"),
    (Kind::Stream(Stream::Log), r#"0002 03 000000 02 03 0000002a |{"source":"shim","level":"info","msg":"m"}"#),
    (Kind::Stream(Stream::Stdin), "0002 03 000000 02 00 00000000 |"),
    (Kind::Notification(PROCESS_EXITED), "0002 03 000000 03 00 00000001 07 |"),
];

/// Every frame of `bytes`, and the error they end with.
fn decode(pieces: &[&[u8]]) -> (Vec<Frame>, Option<DecodeError>) {
    let mut decoder = Decoder::default();
    let mut frames = Vec::new();
    for piece in pieces {
        decoder.push(piece);
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (frames, Some(error)),
            }
        }
    }
    (frames, None)
}

/// The header of the first golden frame of its kind, as bytes to be spoilt.
fn header(kind: Kind, payload: u32) -> [u8; HEADER_LEN] {
    Header::new(kind, payload).encode()
}

#[test]
fn every_frame_has_its_bytes() {
    for (kind, written) in FRAMES {
        let bytes = golden(written);
        let payload = bytes[HEADER_LEN..].to_vec();
        assert_eq!(encode(kind, &payload), bytes, "{kind:?}");
        assert_eq!(decode(&[&bytes]), (vec![Frame { kind, payload }], None), "{kind:?}");
    }
}

#[test]
fn every_cut_gives_the_same_frames() {
    let bytes: Vec<u8> = FRAMES.iter().flat_map(|(_, written)| golden(written)).collect();
    let expected = decode(&[&bytes]);
    assert_eq!((expected.0.len(), &expected.1), (FRAMES.len(), &None));
    for pieces in cuts(&bytes) {
        assert_eq!(decode(&pieces), expected);
    }
}

#[test]
fn what_is_not_yet_a_frame_is_handed_on() {
    let bytes = golden(FRAMES[0].1);
    for len in 0..bytes.len() {
        let mut decoder = Decoder::default();
        decoder.push(&encode(Kind::Notification(0), &[1]));
        decoder.push(&bytes[..len]);
        assert!(decoder.next_frame().expect("golden").is_some());
        assert_eq!(decoder.next_frame(), Ok(None));
        assert_eq!(decoder.rest(), &bytes[..len]);
    }
}

#[test]
fn longer_headers_are_skipped_to_the_payload() {
    for words in 4..=255_u8 {
        let mut bytes = header(Kind::Stream(Stream::Stdout), 2).to_vec();
        bytes[2] = words;
        let decoded = Header::decode(*bytes.first_chunk().expect("whole")).expect("a longer header");
        assert_eq!(decoded.extra, u32::from(words) * 4 - 12);
        bytes.resize(usize::from(words) * 4, 0xee);
        bytes.extend(b"hi");
        bytes.extend(golden(FRAMES[1].1));
        let (frames, error) = decode(&bytes.chunks(7).collect::<Vec<_>>());
        assert_eq!((frames.len(), error), (2, None), "{words} words");
        assert_eq!(frames[0], Frame { kind: Kind::Stream(Stream::Stdout), payload: b"hi".to_vec() }, "{words} words");
    }
}

#[test]
fn shorter_headers_are_refused() {
    for words in 0..3_u8 {
        let mut bytes = header(Kind::Command(Command::Hyper), 0);
        bytes[2] = words;
        let expected = DecodeError::TooShort { len: u64::from(words) * 4, header: HEADER_LEN };
        assert_eq!(Header::decode(bytes), Err(expected.clone()));
        assert_eq!(decode(&[&bytes]), (vec![], Some(expected)));
    }
}

#[test]
fn other_versions_are_refused() {
    for version in [0, 1, 3, 0x0200, 0xffff_u16] {
        let mut bytes = header(Kind::Command(Command::Hyper), 0);
        bytes[..2].copy_from_slice(&version.to_be_bytes());
        assert_eq!(Header::decode(bytes), Err(DecodeError::Version(version)));
    }
}

#[test]
fn unknown_types_and_opcodes_are_refused() {
    for flags in 0..=0x1f_u8 {
        for opcode in 0..=255_u8 {
            let mut bytes = header(Kind::Notification(0), 0);
            (bytes[6], bytes[7]) = (flags, opcode);
            let known = match (flags & 0x0f, flags & 0x10 != 0) {
                (0, false) | (1, _) => opcode < 7,
                (2, false) => opcode < 4,
                // Unknown notifications are allowed, and ignored.
                (3, false) => true,
                // No other type, and no error flag but a response's.
                _ => false,
            };
            match Header::decode(bytes) {
                Ok(header) => assert!(known && header.encode() == bytes, "{flags:#x} {opcode}: {header:?}"),
                Err(error) => assert!(!known && error == DecodeError::Kind { flags, opcode }, "{error}"),
            }
        }
    }
}

#[test]
fn reserved_bits_are_ignored_on_read_and_zero_on_write() {
    for (kind, written) in FRAMES {
        let clean = golden(written);
        let mut bytes = clean.clone();
        bytes[3..6].copy_from_slice(&[0xff, 0x01, 0x80]);
        bytes[6] |= 0xe0;
        let (frames, error) = decode(&[&bytes]);
        assert_eq!((frames.len(), error, frames[0].kind), (1, None, kind));
        assert_eq!(encode(frames[0].kind, &frames[0].payload), clean);
    }
}

#[test]
fn every_kind_has_a_bound_of_payload() {
    let mut bounds = vec![(Kind::Notification(0), CC2_MESSAGE_MAX), (Kind::Notification(9), CC2_MESSAGE_MAX)];
    for command in COMMANDS {
        let response = CC2_RESPONSE_MAX;
        bounds.extend([
            (Kind::Command(command), CC2_MESSAGE_MAX),
            (answer(command), response),
            (refusal(command), response),
        ]);
    }
    let stream_max = |stream| if stream == Stream::Log { CC2_MESSAGE_MAX } else { STREAM_FRAME_MAX };
    bounds.extend(STREAMS.map(|stream| (Kind::Stream(stream), stream_max(stream))));
    for (kind, max) in bounds {
        assert_eq!(Header::decode(header(kind, max)), Ok(Header::new(kind, max)), "{kind:?}");
        for len in [max + 1, u32::MAX] {
            let expected = DecodeError::TooLong { len: u64::from(len), max: u64::from(max) };
            assert_eq!(Header::decode(header(kind, len)), Err(expected.clone()), "{kind:?}");
            assert_eq!(decode(&[&header(kind, len)]), (vec![], Some(expected)), "{kind:?}");
        }
    }
}

#[test]
fn plain_stdin_is_what_a_decoder_finds_it_to_be() {
    let all_but_one_bit = |bit: usize| {
        let mut bytes = header(Kind::Stream(Stream::Stdin), STREAM_FRAME_MAX - 1);
        bytes[bit / 8] ^= 1 << (bit % 8);
        bytes
    };
    let kinds = STREAMS.map(|stream| header(Kind::Stream(stream), 5));
    let lengths = [0, STREAM_FRAME_MAX, STREAM_FRAME_MAX + 1].map(|len| header(Kind::Stream(Stream::Stdin), len));
    let mut plain = 0;
    for bytes in (0..8 * HEADER_LEN).map(all_but_one_bit).chain(kinds).chain(lengths) {
        let is_plain = |header: &Header| header.kind == Kind::Stream(Stream::Stdin) && header.extra == 0;
        let found = Header::decode(bytes).ok().filter(is_plain).map(|header| header.payload);
        assert_eq!(Header::plain_stdin(bytes), found, "{bytes:x?}");
        plain += usize::from(found.is_some());
    }
    assert!((30..60).contains(&plain), "{plain} of 103 were");
}

#[test]
fn the_longest_payload_arrives() {
    let payload = vec![0x5a; STREAM_FRAME_MAX as usize];
    let bytes = encode(Kind::Stream(Stream::Stdin), &payload);
    let (frames, error) = decode(&bytes.chunks(1 << 20).collect::<Vec<_>>());
    assert!(error.is_none() && frames.len() == 1 && frames[0].payload == payload);
}

#[test]
fn errors_say_what_is_wrong() {
    assert_eq!(DecodeError::Version(1).to_string(), "version 1 instead of 2");
    let text = DecodeError::Kind { flags: 0x12, opcode: 1 }.to_string();
    assert_eq!(text, "type 0x12 with opcode 1 is not part of the protocol");
}

fn any_kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        prop::sample::select(COMMANDS.to_vec()).prop_map(Kind::Command),
        (prop::sample::select(COMMANDS.to_vec()), any::<bool>())
            .prop_map(|(command, error)| Kind::Response { command, error }),
        prop::sample::select(STREAMS.to_vec()).prop_map(Kind::Stream),
        any::<u8>().prop_map(Kind::Notification),
    ]
}

proptest! {
    #[test]
    fn frames_survive_a_round_trip(
        frames in vec((any_kind(), vec(any::<u8>(), 0..300)), 0..8),
        cut in 1..64_usize,
    ) {
        let bytes: Vec<u8> = frames.iter().flat_map(|(kind, payload)| encode(*kind, payload)).collect();
        let expected: Vec<Frame> = frames.into_iter().map(|(kind, payload)| Frame { kind, payload }).collect();
        prop_assert_eq!(decode(&bytes.chunks(cut).collect::<Vec<_>>()), (expected, None));
    }

    #[test]
    fn any_header_reads_back_or_is_refused(kind in any_kind(), payload in 0..CC2_MESSAGE_MAX, words in 3..=255_u8) {
        let mut bytes = header(kind, payload);
        bytes[2] = words;
        let decoded = Header::decode(bytes).expect("within bounds");
        prop_assert_eq!((decoded.kind, decoded.payload), (kind, payload));
        prop_assert_eq!(decoded.encode(), header(kind, payload), "the extra part is not written");
    }

    #[test]
    fn any_bytes_decode_or_are_refused(bytes in any::<[u8; HEADER_LEN]>()) {
        if let Ok(header) = Header::decode(bytes) {
            let mut clean = bytes;
            (clean[2], clean[3], clean[4], clean[5]) = (3, 0, 0, 0);
            clean[6] &= 0x1f;
            prop_assert_eq!(header.encode(), clean);
        }
    }
}

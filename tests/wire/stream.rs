//! The stream channel: golden frames of every kind, and the bounds of their lengths.

use proptest::prelude::*;
use ringway::limits;
use ringway::wire::DecodeError;
use ringway::wire::hyper::{FRAME_HEADER_LEN, FrameHeader, StreamSeq};

use crate::golden;

fn decode(bytes: &[u8], max: u32) -> Result<FrameHeader, DecodeError> {
    FrameHeader::decode(*bytes.first_chunk().expect("a whole header"), max)
}

/// A header and the payload after it.
fn frame(seq: u64, payload: &[u8]) -> Vec<u8> {
    let header = FrameHeader::for_payload(StreamSeq(seq), u32::try_from(payload.len()).expect("short"));
    [&header.encode(), payload].concat()
}

#[test]
fn every_kind_has_its_bytes() {
    assert_eq!(frame(1, b"hello\n"), golden("0000000000000001 00000012 |hello\n"), "data");
    assert_eq!(frame(2, b""), golden("0000000000000002 0000000c |"), "end of a stream");
    assert_eq!(frame(1, &[7]), golden("0000000000000001 0000000d 07 |"), "exit status");
    assert_eq!(frame(1, b"\x04"), golden("0000000000000001 0000000d 04 |"), "^D to a terminal");
    let last = limits::SEQ_END - 1;
    assert_eq!(frame(last, b""), golden("001fffffffffffff 0000000c |"), "the last sequence");
}

#[test]
fn headers_read_back() {
    for (written, seq, payload) in [
        ("0000000000000001 00000012 |hello\n", 1, 6),
        ("0000000000000002 0000000c |", 2, 0),
        ("0000000000000001 0000000d 07 |", 1, 1),
        ("ffffffffffffffff 00001000 |", u64::MAX, 4_084),
    ] {
        let header = decode(&golden(written), limits::AGENT_FRAME_DEFAULT).expect("golden");
        assert_eq!((header.seq, header.payload_len()), (StreamSeq(seq), payload));
    }
    assert_eq!(StreamSeq(42).to_string(), "42");
}

#[test]
fn lengths_are_checked() {
    for max in [limits::AGENT_FRAME_DEFAULT, limits::CC1_FRAME_MAX, limits::STREAM_FRAME_MAX] {
        let with_len = |len: u32| decode(&[&[0; 8][..], &len.to_be_bytes()].concat(), max);
        for len in [0, 1, 11] {
            let header = FRAME_HEADER_LEN;
            assert_eq!(with_len(len), Err(DecodeError::TooShort { len: u64::from(len), header }));
        }
        assert_eq!(with_len(12).map(FrameHeader::payload_len), Ok(0));
        assert_eq!(with_len(max).map(FrameHeader::payload_len), Ok(max - 12));
        for len in [max + 1, u32::MAX] {
            assert_eq!(with_len(len), Err(DecodeError::TooLong { len: u64::from(len), max: u64::from(max) }));
        }
    }
}

#[test]
fn the_longest_payload_has_the_longest_length() {
    let header = FrameHeader::for_payload(StreamSeq(1), u32::MAX - 12);
    assert_eq!(header.len, u32::MAX);
    assert_eq!(decode(&header.encode(), u32::MAX), Ok(header));
}

proptest! {
    #[test]
    fn headers_survive_a_round_trip(seq in any::<u64>(), payload in 0..=u32::MAX - 12) {
        let header = FrameHeader::for_payload(StreamSeq(seq), payload);
        prop_assert_eq!(header.payload_len(), payload);
        prop_assert_eq!(decode(&header.encode(), u32::MAX), Ok(header));
    }

    #[test]
    fn any_header_is_taken_or_refused_by_its_length(bytes in any::<[u8; 12]>(), max in 12_u32..) {
        let [.., l0, l1, l2, l3] = bytes;
        let len = u32::from_be_bytes([l0, l1, l2, l3]);
        match FrameHeader::decode(bytes, max) {
            Ok(header) => prop_assert_eq!(header.encode(), bytes),
            Err(_) => prop_assert!(len < 12 || len > max),
        }
    }
}

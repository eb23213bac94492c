//! What holds for any bytes at all, as one function for each fuzz target. Ordinary tests run them on the committed
//! corpora, the fuzzers in `fuzz/` on what they come up with.
//!
//! They panic when a property does not hold. Nothing else of the crate calls them.

use std::fmt::Debug;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::hyper::{self, Code, FRAME_HEADER_LEN, FrameHeader, Message, MessageDecoder};
use super::process::{self, Object, ProcessError};
use super::{DecodeError, cc1, cc2};
use crate::limits::CC1_FRAME_MAX;

/// Bound on messages here: small, so that a fuzzer reaches it.
const MAX: usize = 4_096;

/// What a decoder made of some bytes: messages, and the error it ended with.
type Decoded<T> = (Vec<T>, Option<DecodeError>);

/// The control channel: pieces do not matter, messages encode to the bytes they came from, names and payloads
/// survive a round trip.
pub fn control_messages(data: &[u8]) {
    let push = MessageDecoder::push;
    let decode = |pieces| decode(pieces, MessageDecoder::new(MAX), push, MessageDecoder::next_message);
    let (messages, error) = decode(whole(data));
    for pieces in [bytes(data), uneven(data)] {
        assert_eq!(decode(pieces), (messages.clone(), error.clone()), "pieces change what is decoded");
    }
    let encoded: Vec<u8> = messages.iter().flat_map(Message::encode).collect();
    let rest = data.strip_prefix(&encoded[..]).expect("messages encode to what they came from");
    assert_eq!(error.is_some(), control_length(rest).is_some_and(|len| !(8..=MAX).contains(&len)));
    for message in &messages {
        let code = Code::from_u32(message.code);
        assert_eq!(code.and_then(|code| Code::from_name(code.name())), code);
        assert!(code.is_none_or(|code| code as u32 == message.code));
        agent_payload(&message.payload);
    }
}

/// The length field of the control channel message that `bytes` begin with.
fn control_length(bytes: &[u8]) -> Option<usize> {
    let [_, _, _, _, length @ ..] = bytes.first_chunk::<8>()?;
    usize::try_from(u32::from_be_bytes(*length)).ok()
}

/// Every payload type that can be read from `json` is written so that it reads the same again.
fn agent_payload(json: &[u8]) {
    round_trip::<hyper::ExecCmd>(json);
    round_trip::<hyper::NewContainer>(json);
    round_trip::<hyper::KillContainer>(json);
    round_trip::<hyper::SignalProcess>(json);
    round_trip::<hyper::RemoveContainer>(json);
    round_trip::<hyper::WinSize>(json);
    round_trip::<hyper::FileCommand>(json);
    round_trip::<hyper::ProcessEvent>(json);
    round_trip::<hyper::Process>(json);
}

/// The stream channel: lengths are what the header says, headers encode to the bytes they came from.
pub fn stream_frames(data: &[u8]) {
    let mut rest = data;
    while let Some((header, after)) = rest.split_first_chunk::<FRAME_HEADER_LEN>() {
        let [.., l0, l1, l2, l3] = *header;
        let said = u32::from_be_bytes([l0, l1, l2, l3]);
        let frame = match FrameHeader::decode(*header, CC1_FRAME_MAX) {
            Ok(frame) => frame,
            Err(DecodeError::TooShort { .. }) => return assert!(said < 12),
            Err(DecodeError::TooLong { .. }) => return assert!(said > CC1_FRAME_MAX),
            Err(other) => panic!("a header has lengths only: {other}"),
        };
        assert!((12..=CC1_FRAME_MAX).contains(&said));
        assert_eq!(frame.encode(), *header);
        assert_eq!(FrameHeader::for_payload(frame.seq, frame.payload_len()), frame);
        let payload = usize::try_from(frame.payload_len()).expect("bounded");
        let Some(next) = after.get(payload..) else { return };
        rest = next;
    }
}

/// Protocol 1: pieces do not matter, requests and their payloads survive a round trip, raw data is kept to the byte.
pub fn cc1_requests(data: &[u8]) {
    let next = cc1::Decoder::next_message::<cc1::Request>;
    let decode = |pieces, max| decode(pieces, cc1::Decoder::new(max), cc1::Decoder::push, next);
    let encode = |(requests, error): &Decoded<cc1::Request>| {
        (requests.iter().map(cc1::encode).collect::<Vec<_>>(), error.clone())
    };
    let decoded = decode(whole(data), MAX);
    let expected = encode(&decoded);
    for pieces in [bytes(data), uneven(data)] {
        assert_eq!(encode(&decode(pieces, MAX)), expected, "pieces change what is decoded");
    }
    let again = encode(&decode(whole(&expected.0.concat()), usize::MAX));
    assert_eq!(again, (expected.0, None), "requests do not survive a round trip");
    for payload in decoded.0.iter().filter_map(|request| request.data.as_deref()) {
        assert!(contains(data, payload.get()), "data is not what was sent");
        client_payload(payload.get());
    }
    responses(data);
}

/// The payloads of requests, read from the text of `data`.
fn client_payload(json: &str) {
    round_trip::<cc1::Hello>(json.as_bytes());
    round_trip::<cc1::ContainerRef>(json.as_bytes());
    round_trip::<cc1::AllocateIo>(json.as_bytes());
    let Ok(hyper) = serde_json::from_str::<cc1::Hyper>(json) else { return };
    let again = serde_json::to_string(&hyper).expect("plain data serializes");
    let again = serde_json::from_str::<cc1::Hyper>(&again).expect("what we write we can read");
    assert_eq!(again.hyper_name, hyper.hyper_name);
    assert_eq!(again.data.as_deref().map(|raw| raw.get()), hyper.data.as_deref().map(|raw| raw.get()));
    assert!(hyper.data.is_none_or(|raw| contains(json.as_bytes(), raw.get())), "data is not what was sent");
}

/// Responses, as a client of ours reads them. Numbers with a fraction may differ in their last digit.
fn responses(data: &[u8]) {
    let next = cc1::Decoder::next_message::<cc1::Response>;
    let decode = |data: &[u8]| decode(whole(data), cc1::Decoder::new(usize::MAX), cc1::Decoder::push, next).0;
    for response in decode(data) {
        let again = decode(&cc1::encode(&response)).pop().expect("what we write we can read");
        assert_eq!((again.success, &again.error), (response.success, &response.error));
        assert_eq!(again.data.is_some(), response.data.is_some());
        let data = response.data.map(|data| data.to_string()).unwrap_or_default();
        round_trip::<cc1::AllocateIoResult>(data.as_bytes());
    }
}

/// Protocol 2: pieces do not matter, frames survive a round trip, and so do their payloads and tokens.
pub fn cc2_frames(data: &[u8]) {
    let decode = |pieces| decode(pieces, cc2::Decoder::default(), cc2::Decoder::push, cc2::Decoder::next_frame);
    let (frames, error) = decode(whole(data));
    for pieces in [bytes(data), uneven(data)] {
        assert_eq!(decode(pieces), (frames.clone(), error.clone()), "pieces change what is decoded");
    }
    let encoded: Vec<u8> = frames.iter().flat_map(|frame| cc2::encode(frame.kind, &frame.payload)).collect();
    assert!(encoded.len() <= data.len(), "only longer headers are not written");
    assert_eq!(decode(whole(&encoded)), (frames.clone(), None), "frames do not survive a round trip");
    for frame in &frames {
        frame_payload(&frame.payload);
    }
}

/// Every payload type that can be read from `payload` is written so that it reads the same again.
fn frame_payload(payload: &[u8]) {
    round_trip::<cc2::RegisterVm>(payload);
    round_trip::<cc2::AttachVm>(payload);
    round_trip::<cc2::Registered>(payload);
    round_trip::<cc2::ConnectShim>(payload);
    round_trip::<cc2::Signal>(payload);
    round_trip::<cc2::LogEntry>(payload);
    round_trip::<cc2::ErrorResponse>(payload);
    if let Ok(hyper) = serde_json::from_slice::<cc2::Hyper>(payload) {
        let again = serde_json::to_string(&hyper).expect("plain data serializes");
        let again = serde_json::from_str::<cc2::Hyper>(&again).expect("what we write we can read");
        assert_eq!((again.hyper_name, again.tokens), (hyper.hyper_name, hyper.tokens));
        assert_eq!(again.data.as_deref().map(RawValue::get), hyper.data.as_deref().map(RawValue::get));
    }
    let Ok(text) = str::from_utf8(payload) else { return };
    let token = serde_json::from_str::<cc2::ConnectShim>(text).map_or_else(|_| text.to_owned(), |named| named.token);
    assert!(cc2::SessionToken::parse(&token).is_none_or(|parsed| parsed.to_string() == token), "tokens have one text");
}

/// Sequences put into a command: they are there, the agent reads them, and every other member is what it was.
pub fn process_assign(data: &[u8]) {
    const STDIO: u64 = 9_007_199_254_740_989;
    let Ok(before) = serde_json::from_slice::<Box<RawValue>>(data) else { return };
    let Ok(command) = process::assign(Some(&before), STDIO) else { return };
    let after = String::from_utf8(command.payload).expect("JSON");
    let after = RawValue::from_string(after).expect("what we write we can read");
    let [before, after] = [before, after].map(|text| Object::parse(&text).expect("an object"));
    assert_eq!(before.others(&["process"]), after.others(&["process"]));
    let [old, new] = [&before, &after].map(|command| command.get("process").expect("a process"));
    let [old, new] = [old, new].map(|process| Object::parse(process).expect("an object"));
    let given = ["stdio", "stderr"];
    assert_eq!(old.others(&given), new.others(&given));
    let stderr = (!command.terminal).then(|| (STDIO + 1).to_string());
    let mut expected = vec![("stdio", STDIO.to_string())];
    expected.extend(stderr.map(|stderr| ("stderr", stderr)));
    let mut found: Vec<_> = new.others(&[]).into_iter().filter(|(key, _)| given.contains(key)).collect();
    found.sort_by_key(|&(key, _)| std::cmp::Reverse(key));
    assert_eq!(found, expected.iter().map(|(key, value)| (*key, value.as_str())).collect::<Vec<_>>());
    let again = process::assign(Some(&RawValue::from_string(text_of(&after)).expect("JSON")), STDIO);
    assert!(matches!(again, Err(ProcessError::Prefilled { member: "Stdio", .. })), "{again:?}");
}

fn text_of(object: &Object) -> String {
    serde_json::to_string(object).expect("text serializes")
}

fn round_trip<T: Serialize + DeserializeOwned + PartialEq + Debug>(json: &[u8]) {
    let Ok(value) = serde_json::from_slice::<T>(json) else { return };
    let again = serde_json::to_vec(&value).expect("plain data serializes");
    assert_eq!(serde_json::from_slice::<T>(&again).expect("what we write we can read"), value);
}

/// Choices of a fuzzer: its bytes, one after the other. When they are used up, the first possibility is chosen.
#[derive(Debug)]
pub struct Choices<'a>(&'a [u8]);

impl<'a> Choices<'a> {
    /// The choices that `data` makes.
    pub fn new(data: &'a [u8]) -> Choices<'a> {
        Choices(data)
    }

    /// The next byte; `None` when they are used up.
    #[expect(clippy::should_implement_trait, reason = "nothing iterates over choices")]
    pub fn next(&mut self) -> Option<u8> {
        let (&first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }

    /// A number below `end`; 0 when there is none.
    pub fn below(&mut self, end: usize) -> usize {
        usize::from(self.next().unwrap_or_default()).checked_rem(end).unwrap_or_default()
    }

    /// One of `values`, which are not empty.
    pub fn pick<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.below(values.len())]
    }

    /// The next `len` bytes, or as many as there are.
    pub fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }
}

fn contains(data: &[u8], text: &str) -> bool {
    data.windows(text.len()).any(|window| window == text.as_bytes())
}

pub(crate) fn whole(data: &[u8]) -> Vec<&[u8]> {
    vec![data]
}

pub(crate) fn bytes(data: &[u8]) -> Vec<&[u8]> {
    data.chunks(1).collect()
}

/// Pieces whose lengths follow from the bytes themselves, empty ones among them.
pub(crate) fn uneven(mut data: &[u8]) -> Vec<&[u8]> {
    let mut pieces = vec![&data[..0]];
    while let Some(&first) = data.first() {
        let (piece, rest) = data.split_at(data.len().min(1 + usize::from(first % 16)));
        pieces.push(piece);
        data = rest;
    }
    pieces
}

/// Decodes until the pieces end or the decoder refuses to go on.
fn decode<D, T>(
    pieces: Vec<&[u8]>,
    mut decoder: D,
    push: fn(&mut D, &[u8]),
    next: fn(&mut D) -> Result<Option<T>, DecodeError>,
) -> Decoded<T> {
    let mut found = Vec::new();
    for piece in pieces {
        push(&mut decoder, piece);
        loop {
            match next(&mut decoder) {
                Ok(Some(message)) => found.push(message),
                Ok(None) => break,
                Err(error) => return (found, Some(error)),
            }
        }
    }
    (found, None)
}

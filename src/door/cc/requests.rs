//! Protocol 1's rules of what a client may ask: a request becomes something to do, or what the client is told.
//!
//! Nothing here acts or waits. The asymmetry to know: a request that is wrong inside is refused and the connection
//! goes on; only broken framing ends it, and that is the decoder's to say.

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::coordinator::RequestError;
use crate::limits::ECHO_MAX;
use crate::wire::cc1::{AllocateIo, ContainerRef, Hello, Hyper, Request};

/// What a client asks for.
#[derive(Debug)]
pub(super) enum Ask {
    /// Register a VM.
    Hello(Hello),
    /// Speak about a VM that is registered.
    Attach(ContainerRef),
    /// A session of that VM.
    AllocateIo(AllocateIo),
    /// A command for its agent.
    Hyper(Hyper),
    /// Unregister a VM.
    Bye(ContainerRef),
}

impl Ask {
    /// What `request` asks for.
    pub(super) fn of(request: &Request) -> Result<Ask, Refusal> {
        let data = request.data.as_deref();
        match request.id.as_str() {
            "" => Err(Refusal("no 'id' field in request".to_owned())),
            "hello" => payload("hello", data).map(Ask::Hello),
            "attach" => payload("attach", data).map(|named| Ask::Attach(cut(named))),
            "allocateIO" => payload("allocateIO", data).map(Ask::AllocateIo),
            "hyper" => payload("hyper", data).map(|asked: Hyper| {
                let hyper_name = short(&asked.hyper_name).to_owned();
                Ask::Hyper(Hyper { hyper_name, ..asked })
            }),
            "bye" => payload("bye", data).map(|named| Ask::Bye(cut(named))),
            other => Err(Refusal(format!("no payload named '{}'", short(other)))),
        }
    }
}

/// A name of which answers repeat no more than they may.
fn cut(named: ContainerRef) -> ContainerRef {
    ContainerRef { container_id: short(&named.container_id).to_owned() }
}

/// What a client is told.
#[derive(Debug)]
pub(super) struct Refusal(pub(super) String);

impl From<RequestError> for Refusal {
    fn from(error: RequestError) -> Refusal {
        Refusal(error.to_string())
    }
}

/// The beginning of a text a client chose, for the log and for answers that repeat it. No name of a VM or a command
/// is as long as the bound, so one that was cut is none.
pub(super) fn short(text: &str) -> &str {
    let end = (0..=ECHO_MAX.min(text.len())).rev().find(|&end| text.is_char_boundary(end));
    &text[..end.unwrap_or_default()]
}

/// What a client is told about JSON that is not what it has to be. The parser repeats what it found.
pub(super) fn malformed(what: &str, error: &serde_json::Error) -> Refusal {
    Refusal(format!("malformed {what}: {}", short(&error.to_string())))
}

/// Parses a request's payload. A missing one is an empty one: its members then are.
fn payload<T: for<'de> Deserialize<'de> + Default>(name: &str, data: Option<&RawValue>) -> Result<T, Refusal> {
    let Some(data) = data else { return Ok(T::default()) };
    serde_json::from_str(data.get()).map_err(|error| malformed(&format!("{name} command"), &error))
}

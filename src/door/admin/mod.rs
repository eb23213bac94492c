//! The admin socket's door: HTTP/1.1 for the daemon's owner and root, on a thread of its own.
//!
//! `GET /status` (JSON), `GET /metrics` (OpenMetrics text), `GET /healthz`. It asks the coordinator through a queue
//! and never reaches into it. The asymmetry to know: `/healthz` is about the coordinator's answer, not this thread's.

mod metrics;

use std::convert::Infallible;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;
use tracing::{debug, warn};

use super::sparing::Sparing;
use crate::coordinator::Coordinator;
use crate::limits::ADMIN_CLIENTS_MAX;
use crate::os::fds::peer_credentials;
use crate::wire::admin::Status;

/// How long the coordinator may take to answer before it counts as stuck.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a client may take to send a request's head.
const HEAD_PATIENCE: Duration = Duration::from_secs(10);

/// What the door asks the coordinator.
#[derive(Debug)]
pub enum Question {
    /// How everything is.
    Status(oneshot::Sender<Status>),
    /// Whether it answers at all.
    Health(oneshot::Sender<()>),
}

/// Answers the door's questions until it is gone. Runs on the coordinator's thread.
pub async fn answer(mut questions: mpsc::Receiver<Question>, coordinator: Coordinator) {
    while let Some(question) = questions.recv().await {
        // Where the client has left, nobody misses the answer.
        match question {
            Question::Status(reply) => drop(reply.send(coordinator.status().await)),
            Question::Health(reply) => drop(reply.send(())),
        }
    }
}

/// Starts the door's thread on a listening socket and returns where its questions come out.
///
/// # Errors
/// The kernel refuses the thread or its runtime.
pub fn spawn(listener: std::os::unix::net::UnixListener) -> io::Result<mpsc::Receiver<Question>> {
    let (asking, questions) = mpsc::channel(ADMIN_CLIENTS_MAX);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    thread::Builder::new().name("admin".to_owned()).spawn(move || {
        runtime.block_on(async {
            match UnixListener::from_std(listener) {
                Ok(listener) => tokio::task::LocalSet::new().run_until(serve(listener, asking)).await,
                Err(error) => tracing::error!(%error, "the admin socket cannot be served"),
            }
        });
    })?;
    Ok(questions)
}

async fn serve(listener: UnixListener, asking: mpsc::Sender<Question>) {
    let places = Arc::new(Semaphore::new(ADMIN_CLIENTS_MAX));
    let refusals = Sparing::default();
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) if is_allowed(&stream, &refusals) => {
                let asking = asking.clone();
                tokio::task::spawn_local(async move {
                    converse(stream, asking).await;
                    drop(place);
                });
            }
            Ok(_) => {}
            Err(error) => {
                warn!(%error, "cannot accept an admin client");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// The owner and root may; the socket's mode says so too, but a mode can be changed by accident.
fn is_allowed(stream: &UnixStream, refusals: &Sparing) -> bool {
    let Ok(peer) = peer_credentials(stream.as_fd()) else { return false };
    let allowed = peer.uid == 0 || peer.uid == nix::unistd::getuid().as_raw();
    if !allowed && let Some(unsaid) = refusals.may_say(Instant::now()) {
        warn!(pid = peer.pid, uid = peer.uid, unsaid, "admin client refused: neither the daemon's owner nor root");
    }
    allowed
}

async fn converse(stream: UnixStream, asking: mpsc::Sender<Question>) {
    let service = service_fn(|request| respond(request, &asking));
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_PATIENCE)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        debug!(%error, "admin client lost");
    }
}

async fn respond(
    request: Request<Incoming>,
    asking: &mpsc::Sender<Question>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    if request.method() != Method::GET {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
        response.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static("GET"));
        return Ok(response);
    }
    let path = request.uri().path();
    let answer = match path {
        "/status" => ask(asking, Question::Status)
            .await
            .map(|status| with_type(StatusCode::OK, "application/json", json(&status))),
        "/metrics" => ask(asking, Question::Status)
            .await
            .map(|status| with_type(StatusCode::OK, metrics::CONTENT_TYPE, metrics::render(status))),
        "/healthz" => ask(asking, Question::Health).await.map(|()| text(StatusCode::OK, "ok\n")),
        _ => Some(text(StatusCode::NOT_FOUND, "try /status, /metrics or /healthz\n")),
    };
    Ok(answer.unwrap_or_else(|| text(StatusCode::SERVICE_UNAVAILABLE, "the coordinator does not answer\n")))
}

async fn ask<T>(asking: &mpsc::Sender<Question>, question: fn(oneshot::Sender<T>) -> Question) -> Option<T> {
    let (reply, answer) = oneshot::channel();
    let asked = async {
        asking.send(question(reply)).await.ok()?;
        answer.await.ok()
    };
    timeout(PATIENCE, asked).await.ok().flatten()
}

fn json(status: &Status) -> String {
    let mut body = serde_json::to_string(status).expect("plain data serializes");
    body.push('\n');
    body
}

fn text(code: StatusCode, body: &'static str) -> Response<Full<Bytes>> {
    with_type(code, "text/plain; charset=utf-8", body)
}

fn with_type(code: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    response
}

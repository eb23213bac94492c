//! A blocking reader of the daemon's admin socket: HTTP/1.1 over a Unix socket, one request a connection.
//!
//! Owns a small runtime of its own, so that callers need none; never keeps a connection. The asymmetry to know:
//! it must not be used inside another asynchronous runtime, which cannot block.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;

use super::{Error, Result};
use crate::wire::admin::Status;

/// Seconds one request may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Longest answer accepted, in bytes: far above the status of the most VMs and sessions a daemon serves at once.
const ANSWER_MAX: usize = 256 * 1024 * 1024;

/// Where a daemon tells how it is.
#[derive(Debug)]
pub struct AdminClient {
    path: PathBuf,
    runtime: tokio::runtime::Runtime,
}

impl AdminClient {
    /// For the admin socket at `path`. Connects only when asked something.
    ///
    /// # Errors
    /// [`Error::Io`] when the kernel refuses a runtime's descriptors.
    pub fn new(path: impl Into<PathBuf>) -> Result<AdminClient> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Io)?;
        Ok(AdminClient { path: path.into(), runtime })
    }

    /// The socket's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Everything the daemon tells about itself.
    ///
    /// # Errors
    /// See [`Error`]; [`Error::Refused`] is an HTTP status other than 200.
    pub fn status(&self) -> Result<Status> {
        let body = self.get("/status")?;
        serde_json::from_slice(&body).map_err(|e| Error::Protocol(format!("/status is not what it should be: {e}")))
    }

    /// The counters in the text format of Prometheus.
    ///
    /// # Errors
    /// As for [`AdminClient::status`].
    pub fn metrics(&self) -> Result<String> {
        let body = self.get("/metrics")?;
        String::from_utf8(body.to_vec()).map_err(|e| Error::Protocol(format!("/metrics is not text: {e}")))
    }

    /// Whether the daemon does its work.
    ///
    /// # Errors
    /// As for [`AdminClient::status`].
    pub fn healthz(&self) -> Result<()> {
        self.get("/healthz").map(drop)
    }

    fn get(&self, target: &str) -> Result<Bytes> {
        let answer = async { tokio::time::timeout(PATIENCE, get(&self.path, target)).await };
        self.runtime.block_on(answer).unwrap_or(Err(Error::Overdue))
    }
}

async fn get(path: &Path, target: &str) -> Result<Bytes> {
    let connected = tokio::net::UnixStream::connect(path).await;
    let socket = connected.map_err(|reason| Error::Connect { path: path.to_path_buf(), reason })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(socket)).await.map_err(http)?;
    let request = hyper::Request::get(target).header(hyper::header::HOST, "localhost").body(Empty::<Bytes>::new());
    let request = request.map_err(|e| Error::Protocol(e.to_string()))?;
    let exchange = async move {
        let response = sender.send_request(request).await.map_err(http)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_MAX).collect().await;
        let body = body.map_err(|e| Error::Protocol(e.to_string()))?.to_bytes();
        if status.is_success() {
            return Ok(body);
        }
        Err(Error::Refused(format!("{target} answered {status}: {}", String::from_utf8_lossy(&body).trim())))
    };
    tokio::pin!(exchange);
    tokio::select! {
        answer = &mut exchange => answer,
        // The connection's end is no answer: what it left behind is in the exchange.
        _ = connection => exchange.await,
    }
}

fn http(e: hyper::Error) -> Error {
    if e.is_incomplete_message() || e.is_canceled() {
        return Error::Lost;
    }
    let source = std::error::Error::source(&e).and_then(|s| s.downcast_ref::<io::Error>());
    match source {
        Some(io) => Error::from(io::Error::from(io.kind())),
        None => Error::Protocol(e.to_string()),
    }
}

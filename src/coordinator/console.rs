//! A VM's console in the log: one line at debug level for each line it prints.
//!
//! A line that does not end is cut; nothing is ever sent. It ends with the socket.

use std::io;

use tokio::net::UnixStream;
use tracing::debug;

use crate::limits::CONSOLE_LINE_MAX;

/// Logs the lines of a console until it closes.
pub(super) async fn log_lines(vm: &str, stream: UnixStream) {
    let mut line = Vec::new();
    let mut buffer = [0; 1024];
    loop {
        if stream.readable().await.is_err() {
            return;
        }
        let n = match stream.try_read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(_) => break,
        };
        for &byte in &buffer[..n] {
            if byte != b'\n' {
                line.push(byte);
            }
            if byte == b'\n' || line.len() >= CONSOLE_LINE_MAX {
                log_line(vm, &mut line);
            }
        }
    }
    log_line(vm, &mut line);
}

fn log_line(vm: &str, line: &mut Vec<u8>) {
    let text = String::from_utf8_lossy(line);
    let text = text.trim_end();
    if !text.is_empty() {
        debug!(vm, line = text, "console");
    }
    line.clear();
}

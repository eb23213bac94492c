//! `ringway agent` as a host sees it: the real binary, real processes, two sockets.
//!
//! Nothing here looks inside. The asymmetry to know: parts that need privilege are skipped without it, and say so.

mod channels;
mod host;
mod processes;

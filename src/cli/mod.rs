//! The subcommands of `ringway`: arguments in, exit code out. What they do is in the modules they name.

pub mod agent;

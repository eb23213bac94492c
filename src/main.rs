//! The `ringway` command. Everything it does is in the library, so that tests reach it too.

fn main() -> std::process::ExitCode {
    ringway::cli::run()
}

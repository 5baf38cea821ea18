//! `sheep`, the daemon.

fn main() -> std::process::ExitCode {
    node::daemon::main()
}

//! Tools for those who work on Sheepdog: `cargo xtask tidy` checks the rules of the house that a
//! program can check, `cargo xtask bench` measures.
//!
//! It must never be needed to build or run the product. Its main function is the list of commands.
#![forbid(unsafe_code)]
// Measuring needs a clock, and waiting for other programs needs sleep.
#![allow(clippy::disallowed_methods)]

mod bench;
mod tidy;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser)]
#[command(about = "Tools for those who work on Sheepdog")]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Check the rules of the house; each finding names its remedy.
    Tidy,
    /// Measure the daemon against others on this machine.
    #[command(subcommand)]
    Bench(bench::Bench),
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Task::Bench(bench) => match bench::run(&bench) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("bench: {error:#}");
                ExitCode::FAILURE
            }
        },
        Task::Tidy => match tidy::check_workspace() {
            Ok(findings) if findings.is_empty() => {
                println!("tidy: nothing to mend");
                ExitCode::SUCCESS
            }
            Ok(findings) => {
                for finding in &findings {
                    eprintln!("{finding}");
                }
                eprintln!("tidy: {} findings", findings.len());
                ExitCode::FAILURE
            }
            Err(error) => {
                eprintln!("tidy: {error:#}");
                ExitCode::FAILURE
            }
        },
    }
}

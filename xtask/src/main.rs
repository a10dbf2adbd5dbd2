//! Chores of the house: `cargo xtask <chore>`.
//!
//! Owns how a developer or a CI machine sets up, demonstrates, tests and measures Kiln. It knows
//! the `kiln` binary only from outside, by its command line.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a chore talks to the developer who started it"
)]

mod bench;
mod deadline;
mod demo;
mod deps;
mod kiln;
mod lab;
mod namespace;
mod parity;
mod qemu;
mod setup;
mod soak;
mod step;
mod test;
mod traces;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Chores of the house, in Rust.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", version)]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Debug, Subcommand)]
enum Chore {
    /// Set up what is missing, boot a microVM and run a command in it.
    Demo,
    /// Set up what the tests need, then run the checks and all tests.
    Test(test::Options),
    /// Install the programs that a chore needs and this machine lacks.
    Setup(setup::Options),
    /// Check the arrows between the crates and the rules on dependencies.
    Deps,
    /// Check that every feature of Kiln's predecessors has a test that is named by it.
    Parity(parity::Options),
    /// Run a command in a QEMU machine with emulated SVM, where KVM and Firecracker work.
    Lab(lab::Options),
    /// Live long and at random with real guests, VMMs and a daemon that are killed, and watch.
    Soak(soak::Options),
    /// Measure Kiln against bare engines.
    Bench(bench::Options),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().chore {
        Chore::Demo => demo::run().map_err(boxed),
        Chore::Test(options) => test::run(&options).map_err(boxed),
        Chore::Setup(options) => setup::run(&options)
            .map(|()| ExitCode::SUCCESS)
            .map_err(boxed),
        Chore::Deps => deps::run().map(|()| ExitCode::SUCCESS).map_err(boxed),
        Chore::Parity(options) => parity::run(&options)
            .map(|()| ExitCode::SUCCESS)
            .map_err(boxed),
        Chore::Lab(options) => lab::run(&options).map_err(boxed),
        Chore::Soak(options) => soak::run(&options).map_err(boxed),
        Chore::Bench(options) => bench::run(&options).map_err(boxed),
    };
    outcome.unwrap_or_else(|error| {
        report(error.as_ref());
        ExitCode::from(125)
    })
}

fn boxed(error: impl std::error::Error + 'static) -> Box<dyn std::error::Error> {
    Box::new(error)
}

/// Prints an error with its causes, one per line.
fn report(error: &dyn std::error::Error) {
    eprintln!("xtask: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        eprintln!("  because: {error}");
        cause = error.source();
    }
}

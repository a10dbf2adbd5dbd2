//! `cargo xtask bench`: figures that the README and the issues promise, measured.
//!
//! Owns samples, statistics and how they are shown. A figure that cannot be taken on this machine
//! is left out and said, never filled in.

mod agent;
mod bare;
mod boot;
mod image;
mod network;
mod proc;
mod raw_fork;
mod report;
mod round_trip;
mod stats;
mod timings;
mod transfer;
mod vmm;

use std::process::ExitCode;

use clap::{Args, Subcommand};

pub(crate) use boot::BenchError;

#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    subject: Subject,
}

#[derive(Debug, Subcommand)]
enum Subject {
    /// `kiln run -- true` and what it costs.
    Boot(boot::Options),
    /// A sandbox's network: set-up, tear-down, update, throughput; alone and among 500.
    Network(network::Options),
    /// Images from archives, and machines' own disks.
    Image(image::Options),
    /// What the engines cost beside the bare programs.
    Vmm(vmm::Options),
}

pub(crate) fn run(options: &Options) -> Result<ExitCode, BenchError> {
    match &options.subject {
        Subject::Boot(options) => boot::run(options),
        Subject::Network(options) => network::run(options),
        Subject::Image(options) => Ok(image::run(options)?),
        Subject::Vmm(options) => vmm::run(options),
    }
}

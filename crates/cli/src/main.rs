//! The `tensorpress` program: a thin layer over the library.

mod args;
mod calibration;
mod compress;
mod convert;
mod eval;
mod failure;
mod frontier;
mod imatrix;
mod inspect;
mod interrupt;
mod open;
mod output;
mod pack;
mod page;
mod progress;
mod run;
mod squeeze;
mod stages;
mod unpack;
mod verify;

use std::process::ExitCode;

use clap::Parser;

use args::{Args, Command};

fn main() -> ExitCode {
    // clap ends the program itself where usage is wrong, with code 2.
    let args = Args::parse();
    // A model that is cut while it is mapped is an error that names it.
    tensorpress::tensor::checkpoint::survive_cut_files();
    let done = match &args.command {
        Command::Inspect(args) => inspect::run(args),
        Command::Compress(args) => compress::run(args),
        Command::Frontier(args) => frontier::run(args),
        Command::Convert(args) => convert::run(args),
        Command::Imatrix(args) => imatrix::run(args),
        Command::Eval(args) => eval::run(args),
        Command::Run(args) => run::run(args),
        Command::Squeeze(args) => squeeze::run(args),
        Command::Stages(args) => stages::run(args),
        Command::Pack(args) => pack::run(args),
        Command::Unpack(args) => unpack::run(args),
        Command::Verify(args) => verify::run(args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

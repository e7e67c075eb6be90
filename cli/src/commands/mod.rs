//! One file per command: its arguments, and a call into the libraries.

pub mod archs;
pub mod batch;
mod batch_recipe;
pub mod calibrate;
pub mod check;
pub mod compare;
pub mod completions;
pub mod convert;
pub mod datasets;
pub mod doctor;
pub mod embed;
pub mod eval;
pub mod generate;
pub mod imatrix;
pub mod inspect;
mod job;
pub mod logits;
pub mod man;
pub mod map;
pub mod methods;
pub mod publish;
pub mod pull;
pub mod quantize;
mod recipe;
pub mod reproduce;
pub mod run;
pub mod serve;
pub mod targets;
pub mod task;
mod task_args;
pub mod tasks;
pub mod tokenize;
pub mod verify;

use crate::app::App;
use crate::args::Command;
use bitsmith_formats::{Error, Result};

/// Runs a command.
pub fn run(command: &Command, app: &App) -> Result<Status> {
    let done = |result: Result<()>| result.map(|()| Status::Done);
    match command {
        Command::Run(args) => run::run(args, app),
        Command::Batch(args) => batch::run(args, app),
        Command::Task(args) => task::run(args, app),
        Command::Quantize(args) => done(quantize::run(args, app)),
        Command::Convert(args) => done(convert::run(args, app)),
        Command::Calibrate(args) => done(calibrate::run(args, app)),
        Command::Eval(args) => eval::run(args, app),
        Command::Map(args) => done(map::run(args, app)),
        Command::Compare(args) => done(compare::run(args, app)),
        Command::Generate(args) => done(generate::run(args, app)),
        Command::Serve(args) => done(serve::run(args, app)),
        Command::Inspect(args) => done(inspect::run(args, app)),
        Command::Check(args) => check::run(args, app),
        Command::Verify(args) => verify::run(args, app),
        Command::Reproduce(args) => reproduce::run(args, app),
        Command::Doctor(args) => doctor::run(args, app),
        Command::Imatrix(args) => done(imatrix::run(args, app)),
        Command::Publish(args) => done(publish::run(args, app)),
        Command::Pull(args) => done(pull::run(args, app)),
        Command::Tokenize(args) => done(tokenize::run(args, app)),
        Command::Embed(args) => done(embed::run(args, app)),
        Command::Logits(args) => done(logits::run(args, app)),
        Command::Targets(args) => done(targets::run(args, app)),
        Command::Methods(args) => done(methods::run(args, app)),
        Command::Datasets(args) => done(datasets::run(args, app)),
        Command::Tasks(args) => done(tasks::run(args, app)),
        Command::Archs(args) => done(archs::run(args, app)),
        Command::Completions(args) => done(completions::run(args, app)),
        Command::Man(args) => done(man::run(args, app)),
    }
}

/// How a command ended that did its work.
#[derive(Debug)]
pub enum Status {
    /// All is well.
    Done,
    /// These quality gates did not hold; the results are written all the same.
    GatesFailed(Vec<String>),
    /// What was looked at is not in order; the result says so already.
    Found(Error),
}

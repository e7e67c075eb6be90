//! `bitsmith task`: nodes of a plan, as engines run them.

use super::Status;
use super::batch_recipe::Flags;
use crate::app::App;
use crate::output::table;
use bitsmith_formats::{Error, Result};
use bitsmith_pipeline::batch::status::{State, states};
use bitsmith_pipeline::batch::task::Ran;
use bitsmith_pipeline::batch::{Plan, Runner, Store};
use clap::{Args, Subcommand};
use std::io::Read;
use std::path::Path;

const EXAMPLES: &str = "\
Examples:
  bitsmith task run --plan recipe.plan.json --index 12 --store /shared/store
  bitsmith task run --plan recipe.plan.json --index 3-7,9 --store s3://bucket/batch

Running a node that is done does nothing; any number of machines may share a store. A node that needs what is not there ends with
exit code 66.";

/// Arguments of `task`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run nodes of a plan
    #[command(after_help = EXAMPLES)]
    Run(RunArguments),
    /// Print the nodes that are not done, what they need and what they cost, as JSON
    #[command(after_help = EXAMPLES)]
    Graph(GraphArguments),
}

/// Arguments of `task graph`.
#[derive(Debug, Args)]
pub struct GraphArguments {
    /// Plan file, or the key of a plan that was begun in the store
    #[arg(long, value_name = "PLAN")]
    pub plan: String,
    /// Store: a folder, or s3://bucket/prefix
    #[arg(long, value_name = "URI")]
    pub store: String,
}

/// Arguments of `task run`.
#[derive(Debug, Args)]
pub struct RunArguments {
    /// Plan file, or the key of a plan that was begun in the store
    #[arg(long, value_name = "PLAN")]
    pub plan: String,
    /// Numbers of the nodes, separated by commas; ranges like 3-7 include their ends
    #[arg(long, value_name = "LIST")]
    pub index: String,
    /// Store: a folder, or s3://bucket/prefix
    #[arg(long, value_name = "URI")]
    pub store: String,
    /// End as soon as standard input does: with whoever started this
    #[arg(long, hide = true)]
    pub leash: bool,
}

/// Runs nodes.
pub fn run(args: &Arguments, app: &App) -> Result<Status> {
    match &args.command {
        Command::Run(args) => run_nodes(args, app),
        Command::Graph(args) => graph(args, app).map(|()| Status::Done),
    }
}

fn plan(name: &str, store: &Store) -> Result<Plan> {
    match Path::new(name) {
        file if file.is_file() => Plan::read(file),
        _ => Plan::load(store, name)?.ok_or_else(|| Error::missing("there is no such plan").file(name)),
    }
}

fn graph(args: &GraphArguments, app: &App) -> Result<()> {
    let store = Store::open(&args.store)?;
    let plan = plan(&args.plan, &store)?;
    let states = states(&plan, &store)?;
    let left = plan.nodes.iter().enumerate().filter(|(i, _)| states[*i] != State::Done);
    let nodes: Vec<serde_json::Value> = left
        .map(|(i, n)| serde_json::json!({ "index": i, "label": n.label, "deps": n.deps, "ram_bytes": n.cost.ram_bytes }))
        .collect();
    app.output.result(&serde_json::json!({ "nodes": nodes }), |d| format!("{d:#}\n"))
}

fn run_nodes(args: &RunArguments, app: &App) -> Result<Status> {
    if args.leash {
        std::thread::Builder::new()
            .name("leash".into())
            .spawn(|| {
                // Nothing is ever sent.
                let _ = std::io::stdin().read(&mut [0]);
                std::process::exit(130);
            })
            .map_err(|e| Error::failed(e.to_string()))?;
    }
    let indices = indices(&args.index)?;
    let store = Store::open(&args.store)?;
    let plan = plan(&args.plan, &store)?;
    if plan.dir.is_dir() {
        std::env::set_current_dir(&plan.dir).map_err(|e| Error::read(&plan.dir, e))?;
    }
    let mut context = app.context.clone();
    context.seed = plan.seed;
    let runner = Runner { plan: &plan, store: &store, settings: &Flags, context: &context };
    let ran = runner.run(&indices)?;
    app.output.result(&serde_json::json!({ "nodes": ran }), |_| text(&ran))?;
    Ok(match ran.iter().find_map(|r| r.error.as_ref()) {
        Some(failure) => Status::Found(failure.error()),
        None => Status::Done,
    })
}

fn text(ran: &[Ran]) -> String {
    table(&ran.iter().map(|r| vec![r.index.to_string(), r.node.clone(), r.state.to_string()]).collect::<Vec<_>>(), &[0])
}

/// `3-7,9`.
fn indices(text: &str) -> Result<Vec<usize>> {
    let bad = || Error::usage(format!("--index {text}: numbers and ranges are wanted, like 3-7,9"));
    let mut all = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |n: &str| n.trim().parse::<usize>().map_err(|_| bad());
        let (first, last) = (number(first)?, number(last)?);
        if last < first || last - first > 10_000_000 {
            return Err(bad());
        }
        all.extend(first..=last);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_nodes() {
        assert_eq!(indices("3-5,9").unwrap(), [3, 4, 5, 9]);
        for bad in ["", "a", "5-3", "1,", "-1", "0-99999999999"] {
            assert!(indices(bad).is_err(), "{bad}");
        }
    }
}

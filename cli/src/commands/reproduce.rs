//! `bitsmith reproduce`.

use super::Status;
use super::job::JobArgs;
use crate::app::App;
use crate::output::table;
use bitsmith_formats::{Error, ErrorKind, Result};
use bitsmith_pipeline::Opened;
use bitsmith_pipeline::artifact::Output;
use bitsmith_pipeline::quantize::Job;
use bitsmith_pipeline::release::recorded::{Recorded, read};
use clap::Args;
use serde::Serialize;
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  bitsmith reproduce release/bitsmith.json
  bitsmith reproduce model-Q4_K_M.gguf.bitsmith.json --model ./model -o again/

Exit codes: 0 if every artifact came out the same, 65 if one did not, or if the source is not the one that was recorded.";

/// Arguments of `reproduce`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// `bitsmith.json` of a release or a folder, or the manifest beside a file
    pub file: PathBuf,
    /// Where the source model is, if no longer where it was
    #[arg(long, value_name = "MODEL")]
    pub model: Option<String>,
    /// Keep the artifacts in this folder [default: they are compared and deleted]
    #[arg(short, long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

/// One artifact, made again.
#[derive(Debug, Serialize)]
struct Again {
    target: String,
    file: String,
    recorded_sha256: String,
    sha256: String,
    same: bool,
}

/// Makes artifacts again as their manifests say, and compares.
pub fn run(args: &Arguments, app: &App) -> Result<Status> {
    let recorded = read(&args.file)?;
    let kept = args.out.clone().map_or_else(scratch, |dir| Ok((dir, None)))?;
    let mut again = Vec::new();
    for one in &recorded {
        again.push(reproduce(one, args, kept.0.clone(), app)?);
    }
    let document = serde_json::json!({ "same": again.iter().all(|a| a.same), "artifacts": again });
    app.output.result(&document, |_| text(&again))?;
    match again.iter().find(|a| !a.same) {
        None => Ok(Status::Done),
        Some(other) => {
            let message = format!("{} came out as {}, recorded is {}", other.target, other.sha256, other.recorded_sha256);
            Ok(Status::Found(Error::corrupt(message).file(&other.file)))
        }
    }
}

/// A folder that goes when it is dropped.
fn scratch() -> Result<(PathBuf, Option<tempfile::TempDir>)> {
    let dir = tempfile::tempdir().map_err(|e| Error::new(ErrorKind::CannotWrite, format!("no temporary folder: {e}")))?;
    Ok((dir.path().to_path_buf(), Some(dir)))
}

fn reproduce(recorded: &Recorded, args: &Arguments, out: PathBuf, app: &App) -> Result<Again> {
    let given = |e: serde_json::Error| Error::corrupt(format!("the recorded flags cannot be read: {e}")).file(&args.file);
    let mut job: JobArgs = serde_json::from_value(recorded.made.command.clone()).map_err(given)?;
    job.to = vec![recorded.target.clone()];
    // A target that was chosen within a budget names it.
    if recorded.target.contains('@') {
        (job.bpw, job.size, job.max_kld) = (None, None, None);
    }
    // The artifact gets the name that is recorded, on which the hash of a set depends.
    (job.naming, job.layout, job.plan_out) = (None, None, None);
    let mut model = Opened::find(args.model.as_ref().unwrap_or(&recorded.made.model), &app.context)?;
    job.describe(&mut model);
    recorded.check_source(&model).map_err(|e| e.hint("name the recorded model with --model"))?;
    if recorded.made.version != env!("CARGO_PKG_VERSION") {
        let (theirs, ours) = (&recorded.made.version, env!("CARGO_PKG_VERSION"));
        app.context.progress.warn(&format!("{} was made by version {theirs}, this is {ours}", recorded.target));
    }
    std::fs::create_dir_all(&out).map_err(|e| Error::write(&out, e))?;
    let options = job.resolve(Output::Exact(out.join(recorded.name())))?;
    let artifacts = Job::new(&model, &options, &app.context)?.run()?;
    let artifact = artifacts.into_iter().next().ok_or_else(|| Error::failed("nothing was made"))?;
    Ok(Again {
        target: recorded.target.clone(),
        file: recorded.file.clone(),
        same: artifact.sha256 == recorded.sha256,
        recorded_sha256: recorded.sha256.clone(),
        sha256: artifact.sha256,
    })
}

fn text(all: &[Again]) -> String {
    let row =
        |a: &Again| vec![a.target.clone(), a.file.clone(), if a.same { "the same".into() } else { "DIFFERENT".to_string() }];
    table(&all.iter().map(row).collect::<Vec<_>>(), &[])
}

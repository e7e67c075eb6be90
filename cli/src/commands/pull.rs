//! `bitsmith pull`.

use crate::app::App;
use crate::output::{human_bytes, table};
use bitsmith_formats::{Error, Result};
use bitsmith_pipeline::model::ModelRef;
use bitsmith_pipeline::pull::{PullOptions, Pulled, Selection, pull};
use clap::Args;
use serde_json::json;

const EXAMPLES: &str = "\
Examples:
  bitsmith pull Qwen/Qwen2.5-0.5B
  bitsmith pull org/name@v1.0 --include '*.gguf' --dry-run

The cache is the one of the hub's own tools (HF_HOME, HF_HUB_CACHE). A token comes from HF_TOKEN or from the file
that their login writes. HF_ENDPOINT chooses another hub.";

/// Arguments of `pull`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// Hub id: `org/name[@revision]`
    pub model: String,
    /// Branch, tag or commit [default: main]
    #[arg(long, value_name = "REV")]
    pub revision: Option<String>,
    /// Download the files that match this pattern instead of those that conversion needs; can be given several times
    #[arg(long, value_name = "GLOB")]
    pub include: Vec<String>,
    /// Leave out the files that match this pattern; can be given several times
    #[arg(long, value_name = "GLOB")]
    pub exclude: Vec<String>,
    /// Only say what would be downloaded
    #[arg(long)]
    pub dry_run: bool,
}

/// Downloads what is missing.
pub fn run(args: &Arguments, app: &App) -> Result<()> {
    if !matches!(args.model.parse::<ModelRef>(), Ok(ModelRef::Hub(_)))
        && args.model.parse::<bitsmith_pipeline::pull::HubId>().is_err()
    {
        return Err(Error::usage(format!("`{}` is not a model on the hub", args.model)).hint("name it as org/name[@revision]"));
    }
    let mut options = PullOptions::new(app.context.hub.clone());
    options.revision = args.revision.clone();
    options.selection = Selection { include: args.include.clone(), exclude: args.exclude.clone() };
    options.dry_run = args.dry_run;
    options.progress = app.context.progress.clone();
    let pulled = pull(&args.model, &options)?;
    let missing: u64 = pulled.files.iter().filter(|f| !f.cached).map(|f| f.bytes).sum();
    if args.dry_run {
        let document = json!({ "dry_run": true, "download_bytes": missing, "pull": pulled });
        return app.output.result(&document, |_| format!("{}{} to download\n", files(&pulled), human_bytes(missing)));
    }
    for file in &pulled.files {
        let hash = file.sha256.as_ref().map_or(String::new(), |s| format!(", sha256 {s}"));
        app.console.detail(&format!("{}: {}{hash}", file.name, human_bytes(file.bytes)));
    }
    app.output.result(&pulled, |p| format!("{}\n", p.path.display()))
}

fn files(pulled: &Pulled) -> String {
    let row = |f: &bitsmith_pipeline::pull::PulledFile| {
        vec![f.name.clone(), human_bytes(f.bytes), if f.cached { "cached".into() } else { String::new() }]
    };
    table(&pulled.files.iter().map(row).collect::<Vec<_>>(), &[1])
}

//! `bitsmith publish`.

use crate::app::App;
use crate::output::{human_bytes, table};
use bitsmith_formats::Result;
use bitsmith_pipeline::publish::{PublishOptions, Published, publish};
use clap::Args;
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  bitsmith publish release/ --repo org/model-GGUF --dry-run
  bitsmith publish release/model-4bit --repo org/model-4bit --private

The token comes from HF_TOKEN or from the file that the hub's own login writes. HF_ENDPOINT chooses another hub. What is uploaded is not
sent again: after a failure, the same command goes on.";

/// Arguments of `publish`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// Release folder, as `run` and `quantize --release` make it
    pub dir: PathBuf,
    /// Repository on the hub; it is created if there is none
    #[arg(long, value_name = "ORG/NAME")]
    pub repo: String,
    /// Make a new repository private
    #[arg(long)]
    pub private: bool,
    /// Only say what would be sent
    #[arg(long)]
    pub dry_run: bool,
}

/// Uploads the release.
pub fn run(args: &Arguments, app: &App) -> Result<()> {
    let options = PublishOptions {
        hub: app.context.hub.clone(),
        repo: args.repo.clone(),
        private: args.private,
        dry_run: args.dry_run,
        progress: app.context.progress.clone(),
    };
    let published = publish(&args.dir, &options)?;
    app.output.result(&published, |p| text(p, args.dry_run))
}

fn text(p: &Published, dry_run: bool) -> String {
    let row = |f: &bitsmith_pipeline::publish::PublishedFile| {
        vec![f.name.clone(), human_bytes(f.bytes), if f.unchanged { "there already".into() } else { String::new() }]
    };
    let files = table(&p.files.iter().map(row).collect::<Vec<_>>(), &[1]);
    let total = human_bytes(p.files.iter().filter(|f| !f.unchanged).map(|f| f.bytes).sum());
    match (&p.commit, dry_run) {
        (_, true) => format!("{files}{total} to {}\n", p.url),
        (Some(commit), _) => format!("{files}{}\ncommit {commit}\n", p.url),
        (None, _) => format!("{files}{}\nnothing has changed\n", p.url),
    }
}

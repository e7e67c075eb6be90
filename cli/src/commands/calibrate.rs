//! `bitsmith calibrate`.

use super::job::{costs, positive};
use crate::app::App;
use bitsmith_formats::Result;
use bitsmith_pipeline::Opened;
use bitsmith_pipeline::calibrate::Detail;
use bitsmith_pipeline::calibrate::{calibrate, cost};
use bitsmith_pipeline::calibration::{CalibrationOptions, DEFAULT_CTX, DEFAULT_SAMPLES};
use bitsmith_pipeline::share::Share;
use clap::Args;
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  bitsmith calibrate ./model -o model.stats --calib notes.txt
  bitsmith calibrate ./model --imatrix model.imatrix.gguf --samples 256";

/// Arguments of `calibrate`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// Hub id, checkpoint folder, or `demo`
    pub model: String,
    /// Statistics file to write, for `quantize --stats`
    #[arg(short, long, value_name = "STATS", required_unless_present = "imatrix")]
    pub out: Option<PathBuf>,
    /// Importance matrix to write, in llama.cpp's format
    #[arg(long, value_name = "FILE")]
    pub imatrix: Option<PathBuf>,
    /// Text: a dataset or files
    #[arg(long, value_name = "DATA", default_value = "builtin")]
    pub calib: String,
    /// Windows of text
    #[arg(long, value_name = "N", default_value_t = DEFAULT_SAMPLES)]
    pub samples: usize,
    /// Tokens per window
    #[arg(long, value_name = "N", default_value_t = DEFAULT_CTX)]
    pub ctx: usize,
    /// Only say what it would cost in time, memory and disk
    #[arg(long)]
    pub dry_run: bool,
}

/// Gathers statistics and writes them.
pub fn run(args: &Arguments, app: &App) -> Result<()> {
    let options = CalibrationOptions {
        data: Some(args.calib.parse()?),
        samples: positive("--samples", Some(args.samples), DEFAULT_SAMPLES)?,
        ctx: positive("--ctx", Some(args.ctx), DEFAULT_CTX)?,
        ..CalibrationOptions::default()
    };
    let model = Opened::find(&args.model, &app.context)?;
    if args.dry_run {
        return costs(&cost(&model, &options, args.out.is_some(), &app.context)?, app);
    }
    let detail = if args.out.is_some() { Detail::Gram } else { Detail::Channels };
    let done = calibrate(&model, &options, Share::WHOLE, detail, args.out.as_deref(), args.imatrix.as_deref(), &app.context)?;
    app.output.result(&done, |d| {
        let mut text = format!("{} tokens in {} windows of {}\n", d.tokens, d.samples, d.ctx);
        for (what, path) in [("statistics", &d.stats), ("imatrix", &d.imatrix)] {
            if let Some(path) = path {
                text.push_str(&format!("{what}: {}\n", path.display()));
            }
        }
        for (site, n) in &d.dead_channels {
            text.push_str(&format!("{site}: {n} channels never active\n"));
        }
        for (site, experts) in &d.unseen_experts {
            let list = experts.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
            text.push_str(&format!("{site}: experts that saw no token: {list}\n"));
        }
        text
    })
}

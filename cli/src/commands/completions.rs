//! `bitsmith completions`.

use crate::app::App;
use crate::args::Cli;
use bitsmith_formats::{Error, Result};
use clap::{Args, CommandFactory};
use clap_complete::Shell;

const EXAMPLES: &str = "\
Examples:
  bitsmith completions bash > ~/.local/share/bash-completion/completions/bitsmith
  bitsmith completions zsh > ~/.zfunc/_bitsmith";

/// Arguments of `completions`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// The shell
    pub shell: Shell,
}

/// Prints the script.
pub fn run(args: &Arguments, app: &App) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "bitsmith", &mut script);
    let script = String::from_utf8(script).map_err(|e| Error::failed(e.to_string()))?;
    app.output.text(&script)
}

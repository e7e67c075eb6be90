//! `bitsmith man`.

use crate::app::App;
use crate::args::Cli;
use bitsmith_formats::atomic::write_file;
use bitsmith_formats::{Error, Result};
use clap::{Args, Command, CommandFactory};
use clap_mangen::Man;
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "\
Examples:
  bitsmith man > bitsmith.1
  bitsmith man --out ~/.local/share/man/man1";

/// Arguments of `man`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// Write a page for every command into this folder [default: print the page of the program]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

/// Prints or writes the pages.
pub fn run(args: &Arguments, app: &App) -> Result<()> {
    let mut program = Cli::command();
    program.build();
    let Some(folder) = &args.out else { return app.output.text(&page("bitsmith", program)?) };
    std::fs::create_dir_all(folder).map_err(|e| Error::write(folder, e))?;
    let mut files = Vec::new();
    for command in program.get_subcommands().filter(|c| !c.is_hide_set()) {
        let name = format!("bitsmith-{}", command.get_name());
        files.push(write(folder, &name, command.clone())?);
    }
    files.push(write(folder, "bitsmith", program)?);
    let list = |files: &Vec<PathBuf>| files.iter().map(|f| format!("{}\n", f.display())).collect();
    app.output.result(&serde_json::json!({ "files": files }), |_| list(&files))
}

fn write(folder: &Path, name: &str, command: Command) -> Result<PathBuf> {
    let path = folder.join(format!("{name}.1"));
    write_file(&path, page(name, command)?.as_bytes())?;
    Ok(path)
}

/// A command's page, in roff.
fn page(name: &str, command: Command) -> Result<String> {
    let mut page = Vec::new();
    Man::new(command).title(name).render(&mut page).map_err(|e| Error::failed(e.to_string()))?;
    String::from_utf8(page).map_err(|e| Error::failed(e.to_string()))
}

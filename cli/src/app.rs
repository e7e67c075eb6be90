//! From the command line to an exit code.

use crate::args::{Cli, Command, Global};
use crate::commands::{self, Status};
use crate::console::{Console, Style};
use crate::interrupt;
use crate::output::{Output, is_closed_pipe};
use bitsmith_formats::{Error, ErrorKind, Result, on_lost_pages, shrunk};
use bitsmith_pipeline::Context;
use bitsmith_pipeline::progress::Progress;
use bitsmith_runtime::device;
use clap::error::ErrorKind as ClapKind;
use clap::{CommandFactory, FromArgMatches};
use std::any::Any;
use std::ffi::OsString;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

/// What a command works with.
pub struct App {
    /// Results go here.
    pub output: Output,
    /// Messages and progress go here.
    pub console: Arc<Console>,
    /// What the libraries are given.
    pub context: Context,
    /// `--threads`, if it was given.
    pub threads: Option<usize>,
    /// Global flags that processes of ours are to have too.
    pub flags: Vec<OsString>,
}

/// Runs the program.
pub fn main() -> ExitCode {
    keep_panics_quiet();
    let args: Vec<OsString> = std::env::args_os().collect();
    let early = Early::scan(&args);
    let style = Style::detect(&early.color);
    let cli = match parse(&args, style) {
        Ok(cli) => cli,
        Err(e) => return refused(e, &early, style),
    };
    let output = Output::new(cli.global.json);
    let console = Arc::new(Console::new(style, cli.global.log_format, cli.global.verbosity()));
    let result = match catch_unwind(AssertUnwindSafe(|| start(cli, output, console.clone()))) {
        Ok(result) => result,
        Err(panic) => {
            let at =
                PANICKED.lock().unwrap_or_else(PoisonError::into_inner).take().map_or(String::new(), |at| format!(" ({at})"));
            Err(Error::failed(format!("internal error: {}{at}", panic_text(panic.as_ref()))).hint("please report this as a bug"))
        }
    };
    finish(result, output, &console)
}

fn start(cli: Cli, output: Output, console: Arc<Console>) -> Result<Status> {
    let context = context(&cli.global, console.clone())?;
    interrupt::watch(output, console.clone())?;
    watch_files(output, console.clone())?;
    let flags = commands::batch::task_flags(&cli.global);
    let threads = cli.global.threads.map(|n| n as usize);
    let app = App { output, console, context, threads, flags };
    let command = cli.command.unwrap_or_else(|| Command::Run(Box::default()));
    commands::run(&command, &app)
}

/// A model's file that becomes shorter while it is read ends the program with an error like any other.
fn watch_files(output: Output, console: Arc<Console>) -> Result<()> {
    let end = move |path: &Path| {
        let error = shrunk(path);
        console.error(&error);
        // With standard output gone there is nowhere left to say so.
        let _ = output.error(&error);
        error.kind.exit_code()
    };
    on_lost_pages(end).map_err(|e| Error::failed(format!("cannot watch for files that become shorter: {e}")))
}

/// A panic is told once, as an error, where it is caught; the place is kept for that.
fn keep_panics_quiet() {
    std::panic::set_hook(Box::new(|info| {
        let at = info.location().map(|l| format!("{}:{}", l.file(), l.line()));
        *PANICKED.lock().unwrap_or_else(PoisonError::into_inner) = at;
    }));
}

/// Where the last panic was.
static PANICKED: Mutex<Option<String>> = Mutex::new(None);

fn context(global: &Global, console: Arc<Console>) -> Result<Context> {
    global.start_threads()?;
    let mut context = Context::from_env();
    context.device = device::open(&global.device)?;
    context.progress = console as Arc<dyn Progress>;
    context.max_ram = global.max_ram;
    context.seed = global.seed;
    context.commit = option_env!("BITSMITH_COMMIT").map(String::from);
    context.hub.offline |= global.offline;
    if let Some(dir) = &global.cache_dir {
        context.set_cache_dir(dir.clone());
    }
    Ok(context)
}

fn finish(result: Result<Status>, output: Output, console: &Console) -> ExitCode {
    let error = match result {
        Ok(Status::Done) => return ExitCode::SUCCESS,
        Ok(Status::GatesFailed(gates)) => {
            // The results are out: this is one of them, not an error that replaces them.
            let error = Error::new(ErrorKind::Gate, gates.join("; "));
            console.error(&error);
            return ExitCode::from(error.kind.exit_code());
        }
        Ok(Status::Found(error)) => {
            console.error(&error);
            return ExitCode::from(error.kind.exit_code());
        }
        Err(error) => error,
    };
    // Whoever read our output has seen enough.
    if is_closed_pipe(&error) {
        return ExitCode::SUCCESS;
    }
    console.error(&error);
    // With standard output gone there is nowhere left to say so.
    let _ = output.error(&error);
    ExitCode::from(error.kind.exit_code())
}

/// What is needed before the arguments are parsed: how to say that they are wrong.
#[derive(Default)]
struct Early {
    json: bool,
    color: String,
}

impl Early {
    fn scan(args: &[OsString]) -> Self {
        let mut early = Early::default();
        let mut words = args.iter().skip(1).map(|a| a.to_string_lossy());
        while let Some(word) = words.next() {
            match word.as_ref() {
                "--" => break,
                "--json" => early.json = true,
                "--color" => early.color = words.next().map(String::from).unwrap_or_default(),
                _ => {
                    if let Some(value) = word.strip_prefix("--color=") {
                        early.color = value.to_string();
                    }
                }
            }
        }
        early
    }
}

fn parse(args: &[OsString], style: Style) -> Result<Cli, clap::Error> {
    let choice = if style.forced {
        if style.color { clap::ColorChoice::Always } else { clap::ColorChoice::Never }
    } else {
        clap::ColorChoice::Auto
    };
    let matches = Cli::command().color(choice).try_get_matches_from(args)?;
    Cli::from_arg_matches(&matches)
}

/// Help, the version, or a complaint about the arguments.
fn refused(e: clap::Error, early: &Early, style: Style) -> ExitCode {
    let asked_for = matches!(e.kind(), ClapKind::DisplayHelp | ClapKind::DisplayVersion);
    if asked_for || !early.json {
        // Help into a closed pipe has been read as far as anyone wanted.
        let _ = e.print();
        return if asked_for { ExitCode::SUCCESS } else { ExitCode::from(2) };
    }
    let plain = e.render().to_string();
    let message = plain.lines().next().unwrap_or_default().trim_start_matches("error: ").to_string();
    let error = Error::usage(message).hint("see `bitsmith --help`");
    finish(Err(error), Output::new(true), &Console::new(style, Default::default(), 0))
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| s.to_string()).or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "panic".to_string())
}

//! Messages and progress on standard error.

use crate::args::LogFormat;
use bitsmith_formats::Error;
use bitsmith_pipeline::Progress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};
use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Least time between two lines of progress in a JSON log.
const LOG_INTERVAL: Duration = Duration::from_secs(2);

/// Time between two redraws of a bar that does not move.
const TICK: Duration = Duration::from_millis(250);
/// Stages that took fewer seconds are not worth a line of their own.
const SHORT: f64 = 0.5;

/// What standard error can show.
#[derive(Debug, Clone, Copy)]
pub struct Style {
    /// Whether to colour.
    pub color: bool,
    /// Whether the user said so.
    pub forced: bool,
    /// Whether bars can be drawn.
    pub terminal: bool,
}

impl Style {
    /// From `--color` (empty if not given) and the environment.
    pub fn detect(color: &str) -> Self {
        let terminal = io::stderr().is_terminal();
        let set = |name: &str| std::env::var_os(name).is_some_and(|v| !v.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|t| t == "dumb");
        let (color, forced) = match color {
            "always" => (true, true),
            "never" => (false, true),
            _ => (terminal && !set("NO_COLOR") && !dumb, false),
        };
        Style { color, forced, terminal: terminal && !dumb }
    }
}

/// Standard error.
pub struct Console {
    style: Style,
    format: LogFormat,
    verbosity: i16,
    stage: Mutex<Option<Stage>>,
}

struct Stage {
    name: String,
    bytes: bool,
    total: u64,
    done: u64,
    started: Instant,
    logged: Instant,
    bar: Option<ProgressBar>,
}

impl Console {
    /// Messages in a style, more or fewer of them.
    pub fn new(style: Style, format: LogFormat, verbosity: i16) -> Self {
        Console { style, format, verbosity, stage: Mutex::new(None) }
    }

    fn stage(&self) -> MutexGuard<'_, Option<Stage>> {
        // A panic elsewhere leaves the stage usable: it holds counters only.
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, name: &str, total: u64, bytes: bool) {
        let draw = self.format == LogFormat::Text && self.style.terminal && self.verbosity >= 0;
        let bar = draw.then(|| self.bar(name, total, bytes));
        let now = Instant::now();
        if self.format == LogFormat::Jsonl && self.verbosity >= 0 {
            line(&json!({"event": "start", "stage": name, "total": total, "unit": unit(bytes)}));
        }
        *self.stage() = Some(Stage { name: name.to_string(), bytes, total, done: 0, started: now, logged: now, bar });
    }

    fn bar(&self, name: &str, total: u64, bytes: bool) -> ProgressBar {
        let counts =
            if bytes { "{bytes}/{total_bytes} {bytes_per_sec}, {eta} left" } else { "{pos}/{len} after {elapsed}, {eta} left" };
        let bar = if self.style.color { "{bar:24.cyan/dim}" } else { "{bar:24}" };
        let style = ProgressStyle::with_template(&format!("{{prefix}} {bar} {counts} {{msg}}"))
            .unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
        bar.set_style(style.progress_chars("━╸─"));
        bar.set_prefix(name.to_string());
        // Keeps the clock going through long steps.
        bar.enable_steady_tick(TICK);
        bar
    }

    /// Prints a message, leaving a bar intact below it.
    fn say(&self, level: &str, text: &str, extra: Value) {
        if self.format == LogFormat::Jsonl {
            let mut object = json!({"event": level, "message": text});
            if let (Some(object), Value::Object(extra)) = (object.as_object_mut(), extra) {
                object.extend(extra);
            }
            line(&object);
            return;
        }
        let label = match level {
            "error" => self.paint("1;31", "error: "),
            "warning" => self.paint("1;33", "warning: "),
            _ => String::new(),
        };
        let mut message = format!("{label}{text}\n");
        if let Some(hint) = extra["hint"].as_str() {
            message.push_str(&format!("{}{hint}\n", self.paint("36", "hint: ")));
        }
        match self.stage().as_ref().and_then(|s| s.bar.as_ref()) {
            Some(bar) => bar.suspend(|| write(&message)),
            None => write(&message),
        }
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.style.color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_string() }
    }

    /// A detail for those who asked for more.
    pub fn detail(&self, text: &str) {
        if self.verbosity > 0 {
            self.say("detail", text, Value::Null);
        }
    }

    /// The error that ends the program.
    pub fn error(&self, error: &Error) {
        self.clear();
        let extra = json!({"kind": error.kind.name(), "hint": error.remedy()});
        self.say("error", &error.to_string(), extra);
        let mut source = error.source.as_deref().map(|s| s as &dyn std::error::Error);
        while let Some(cause) = source {
            self.detail(&format!("caused by: {cause}"));
            source = cause.source();
        }
    }

    /// Takes away a bar that an error left behind.
    fn clear(&self) {
        if let Some(bar) = self.stage().take().and_then(|s| s.bar) {
            bar.finish_and_clear();
        }
    }
}

impl Progress for Console {
    fn start(&self, stage: &str, total: u64) {
        self.begin(stage, total, false);
    }

    fn start_bytes(&self, stage: &str, total: u64) {
        self.begin(stage, total, true);
    }

    fn advance(&self, n: u64) {
        let mut guard = self.stage();
        let Some(stage) = guard.as_mut() else { return };
        stage.done += n;
        if let Some(bar) = &stage.bar {
            bar.inc(n);
        }
        if self.format == LogFormat::Jsonl && self.verbosity >= 0 && stage.logged.elapsed() >= LOG_INTERVAL {
            stage.logged = Instant::now();
            line(&json!({"event": "progress", "stage": stage.name, "done": stage.done, "total": stage.total}));
        }
    }

    fn file(&self, name: &str, _done: u64, _total: u64) {
        if let Some(bar) = self.stage().as_ref().and_then(|s| s.bar.as_ref()) {
            bar.set_message(name.to_string());
        }
    }

    fn finish(&self) {
        let Some(stage) = self.stage().take() else { return };
        if let Some(bar) = &stage.bar {
            bar.finish_and_clear();
        }
        let seconds = stage.started.elapsed().as_secs_f64();
        if self.verbosity < 0 {
            return;
        }
        if self.format == LogFormat::Jsonl {
            line(
                &json!({"event": "finish", "stage": stage.name, "done": stage.done, "unit": unit(stage.bytes), "seconds": seconds}),
            );
        } else if seconds >= SHORT || self.verbosity > 0 {
            let done = if stage.bytes { crate::output::human_bytes(stage.done) } else { stage.done.to_string() };
            write(&format!("{}: {done} in {seconds:.1} s\n", stage.name));
        }
    }

    fn note(&self, text: &str) {
        if self.verbosity >= 0 {
            self.say("note", text, Value::Null);
        }
    }

    fn warn(&self, text: &str) {
        if self.verbosity >= -1 {
            self.say("warning", text, Value::Null);
        }
    }
}

fn unit(bytes: bool) -> &'static str {
    if bytes { "bytes" } else { "steps" }
}

fn line(value: &Value) {
    write(&format!("{value}\n"));
}

/// Nothing can be said about a failure to speak.
fn write(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

//! Ctrl-C: the job ends at once, says so, and has its own exit code. What is finished stays, and the next run goes on from there.

use crate::console::Console;
use crate::output::Output;
use bitsmith_formats::Result;
use std::sync::{Arc, Mutex, PoisonError};

type Action = Box<dyn FnOnce() + Send>;

/// What the first interruption does instead, if a command has a better idea.
static INSTEAD: Mutex<Option<Action>> = Mutex::new(None);

/// From now on the next interruption calls `action` instead of ending the program; one after it ends the program all the same.
pub fn instead(action: impl FnOnce() + Send + 'static) {
    *INSTEAD.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(action));
}

/// Watches for interruption in a thread of its own.
#[cfg(unix)]
pub fn watch(output: Output, console: Arc<Console>) -> Result<()> {
    use bitsmith_formats::{Error, ErrorKind};
    use signal_hook::consts::{SIGINT, SIGTERM};
    use signal_hook::iterator::Signals;

    let failed = |e: std::io::Error| Error::failed(format!("cannot watch for interruption: {e}"));
    let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(failed)?;
    let wait = move || {
        for _ in signals.forever() {
            let action = INSTEAD.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(action) = action {
                action();
                continue;
            }
            let error = Error::new(ErrorKind::Interrupted, "interrupted");
            let error = error.hint("the same command goes on where this one stopped");
            console.error(&error);
            // With standard output gone there is nowhere left to say so.
            let _ = output.error(&error);
            std::process::exit(error.kind.exit_code().into());
        }
    };
    std::thread::Builder::new().name("interrupt".into()).spawn(wait).map(|_| ()).map_err(failed)
}

/// Elsewhere the system ends the program.
#[cfg(not(unix))]
pub fn watch(_output: Output, _console: Arc<Console>) -> Result<()> {
    Ok(())
}

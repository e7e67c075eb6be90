//! The `bitsmith` binary: arguments in, calls out.

mod app;
mod args;
mod commands;
mod console;
mod interrupt;
mod output;

fn main() -> std::process::ExitCode {
    app::main()
}

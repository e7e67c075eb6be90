//! The binary as its users call it: arguments in; results, messages, files and exit codes out.

mod arguments;
mod damage;
#[path = "../../pipeline/tests/hub/mod.rs"]
mod hub;
mod jobs;
mod pull;
mod support;
mod text;

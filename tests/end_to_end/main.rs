//! The binary as its users call it: arguments in; results, messages, files and exit codes out.

mod arguments;
mod batch;
#[cfg(unix)]
mod book;
mod cache;
mod compare;
mod contract;
mod damage;
mod disk;
mod doctor;
mod evidence;
mod examine;
mod flips;
mod folders;
#[path = "../../pipeline/tests/hub/mod.rs"]
mod hub;
mod jobs;
mod malformed;
mod map;
mod mixtures;
mod mtp;
mod packed;
mod pull;
mod release;
mod requantize;
mod resume;
mod secrets;
mod serve;
mod server;
#[cfg(unix)]
mod shrunk;
mod support;
mod tasks;
mod text;
mod tiny;
mod torch;
mod transforms;
mod tuned;
mod vision;
mod workflows;

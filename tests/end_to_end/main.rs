//! The binary as its users call it: arguments in; results, messages, files and exit codes out.

mod arguments;
mod batch;
mod cache;
mod compare;
mod contract;
mod damage;
mod disk;
mod doctor;
mod evidence;
mod examine;
mod folders;
#[path = "../../pipeline/tests/hub/mod.rs"]
mod hub;
mod jobs;
mod map;
mod mixtures;
mod mtp;
mod packed;
mod pull;
mod release;
mod requantize;
mod resume;
mod serve;
mod server;
mod support;
mod tasks;
mod text;
mod tiny;
mod torch;
mod transforms;
mod vision;
mod workflows;

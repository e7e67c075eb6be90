//! Stages, recipes, downloads: the whole job.

pub mod artifact;
pub mod calibrate;
pub mod calibration;
pub mod carry;
pub mod check;
pub mod companions;
pub mod compressed;
pub mod context;
pub mod encode;
pub mod estimate;
pub mod evaluate;
pub mod imatrix;
pub mod inspect;
pub mod keep;
pub mod manifest;
pub mod memory;
pub mod model;
pub mod mtp;
pub mod opened;
pub mod problem;
pub mod progress;
pub mod pull;
pub mod quantize;
pub mod repack;
pub mod run;
mod spool;
mod stream;
pub mod target;
pub mod text;
pub mod verify;

pub use context::Context;
pub use opened::Opened;
pub use progress::Progress;
pub use target::Target;

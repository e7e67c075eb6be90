//! Text for calibration and evaluation, and the built-in demo model.
//!
//! A [`DataSpec`] (`builtin`, `notes.txt`, `code=src.jsonl:2`) loads as a [`Corpus`] of named domains. [`calibration_windows`]
//! and [`evaluation_windows`] turn a corpus into token windows with any tokenizer; [`demo::materialise`] writes the demo model.

pub mod demo;
mod reader;
pub mod registry;
pub mod spec;
pub mod table;
pub mod windows;

pub use registry::{DatasetInfo, Purpose};
pub use spec::{Corpus, DataSpec, Domain};
pub use windows::{Encoder, EvalWindows, Style, WindowSet, calibration_windows, evaluation_windows};

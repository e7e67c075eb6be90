//! Perplexity, KL divergence, tasks, quality gates and reports.
//!
//! [`perplexity`](perplexity()) measures one model. A [`Reference`] holds what the reference model says about a set of windows, and
//! compares any number of other models with it without running it again. [`Gate`]s judge the results, [`Report`] tabulates them.

pub mod figure;
pub mod gate;
pub mod landing;
pub mod map;
pub mod metrics;
pub mod pair;
pub mod paired;
pub mod perplexity;
pub mod perturb;
pub mod positions;
pub mod reference;
pub mod report;
pub mod results;
pub mod sources;
pub mod states;
pub mod stats;
pub mod store;
pub mod tasks;

pub use figure::Figure;
pub use gate::{Gate, GateOutcome, Measured};
pub use landing::Landing;
pub use map::{MapEntry, Measured as MapMeasured, QualityMap};
pub use perplexity::perplexity;
pub use perturb::{Change, Perturber};
pub use reference::{Comparison, Reference};
pub use report::{Report, ReportRow};
pub use results::{DomainKld, DomainPerplexity, EvalResult, Kld, KldSummary, Paired, Perplexity, TaskResult, WindowKld};
pub use states::{Stage, States, Watch, ignore_progress, working_bytes};

//! Activations in, statistics out: Hessians, importance and outliers of every linear layer's input.

mod collector;
pub mod imatrix;
mod on_device;
mod paired;
mod stats;
mod store;

pub use collector::{Collector, Detail};
pub use paired::{Held, PairCollector, Paired};
pub use stats::{MatrixStats, SiteStats, Stats, StatsMeta, gram};

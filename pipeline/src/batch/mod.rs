//! Many models times many targets: unattended, resumable, on one machine or on a cluster.
//!
//! A recipe ([`recipe`]) becomes a plan ([`plan`]): a graph of nodes, each with a key that is a hash of everything that decides its
//! result. What a node makes lies in a content-addressed store ([`store`]): blobs by their sha256, and a record by the node's key, which
//! is written last. [`task`] runs nodes and is all that an engine ever calls; engines ([`local`], [`slurm`], [`ray`], what [`emit`] writes) only choose when and where.
//!
//! A node's key is known before any weight is read, so it stands on what headers and the file system say of the source. The first
//! node of every model reads all of it and records the real hashes. Every later node checks that it reads that same source, before
//! and after its work, and looks by real hashes whether its result is known already, under whatever key: a model that was only
//! touched or moved costs one pass of hashing, a model that changed is never mixed with what it was.

mod builder;
pub mod cost;
pub mod emit;
pub mod export;
pub mod inputs;
pub mod local;
mod ops;
pub mod pack;
pub mod plan;
pub mod ray;
pub mod recipe;
pub mod record;
pub mod slurm;
pub mod status;
pub mod store;
pub mod task;

pub use plan::Plan;
pub use recipe::{JobRecipe, Recipe, Settings};
pub use store::Store;
pub use task::Runner;

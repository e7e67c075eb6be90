//! How stages tell what they do. The command line draws bars from it, scripts read it as JSON lines, tests ignore it.

/// A listener to a job's progress. One stage runs at a time, but its threads may call [`Progress::advance`] at once.
pub trait Progress: Send + Sync {
    /// A stage of `total` steps begins (layers, tensors, windows: whatever it counts).
    fn start(&self, stage: &str, total: u64);
    /// A stage of `total` bytes begins.
    fn start_bytes(&self, stage: &str, total: u64) {
        self.start(stage, total);
    }
    /// `n` more steps or bytes of the stage are done.
    fn advance(&self, n: u64);
    /// One file of the stage has `done` of its `total` bytes.
    fn file(&self, name: &str, done: u64, total: u64) {
        let _ = (name, done, total);
    }
    /// The stage is over.
    fn finish(&self);
    /// Something worth knowing.
    fn note(&self, text: &str);
    /// Something that the user should look into, though the work goes on.
    fn warn(&self, text: &str);
}

/// Listens to nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn start(&self, _stage: &str, _total: u64) {}
    fn advance(&self, _n: u64) {}
    fn finish(&self) {}
    fn note(&self, _text: &str) {}
    fn warn(&self, _text: &str) {}
}

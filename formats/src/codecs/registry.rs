//! Formats with free parameters (any group length, whole rows for example), made when first asked for.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// The codecs of one kind by their parameters. A process meets few of them, so they live until it ends.
pub(super) struct Registry<K, C: 'static>(Mutex<BTreeMap<K, &'static C>>);

impl<K: Ord, C> Registry<K, C> {
    pub const fn new() -> Self {
        Registry(Mutex::new(BTreeMap::new()))
    }

    /// The codec with these parameters.
    pub fn get(&self, key: K, make: impl FnOnce() -> C) -> &'static C {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(key).or_insert_with(|| Box::leak(Box::new(make())))
    }
}

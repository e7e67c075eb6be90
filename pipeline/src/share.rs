//! A model's work cut into parts that can be done apart, on as many machines.

use serde::{Deserialize, Serialize};
use std::ops::Range;

/// One of several parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// Which, from 0.
    pub part: usize,
    /// Of how many.
    pub parts: usize,
}

impl Share {
    /// Everything.
    pub const WHOLE: Share = Share { part: 0, parts: 1 };

    /// All of `parts`, in order.
    pub fn all(parts: usize) -> impl Iterator<Item = Share> {
        (0..parts).map(move |part| Share { part, parts })
    }

    /// Its part of `n` things in a row. Those of all parts make up the whole.
    pub fn of(self, n: usize) -> Range<usize> {
        let at = |part: usize| n * part / self.parts;
        at(self.part)..at(self.part + 1)
    }

    /// Whether it begins the whole.
    pub fn is_first(self) -> bool {
        self.part == 0
    }

    /// Whether it ends the whole.
    pub fn is_last(self) -> bool {
        self.part + 1 == self.parts
    }
}

impl std::fmt::Display for Share {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {}", self.part + 1, self.parts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_make_up_the_whole() {
        for (n, parts) in [(0, 1), (7, 1), (7, 3), (2, 5), (80, 16)] {
            let all: Vec<usize> = Share::all(parts).flat_map(|s| s.of(n)).collect();
            assert_eq!(all, (0..n).collect::<Vec<_>>());
            assert_eq!(Share::all(parts).filter(|s| s.is_first()).count(), 1);
            assert!(Share::all(parts).last().unwrap().is_last());
        }
    }
}

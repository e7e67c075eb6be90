//! Datasets known by name. A new one is a file here and a line in [`REGISTRY`].

mod builtin;

use serde::Serialize;
use std::fmt;

/// What a text is used for. A registered dataset holds a separate text for each use, so that nothing is measured on what it was
/// calibrated with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Purpose {
    /// Gathering activation statistics.
    Calibration,
    /// Measuring quality.
    Evaluation,
}

impl Purpose {
    /// Every purpose.
    pub const ALL: [Purpose; 2] = [Purpose::Calibration, Purpose::Evaluation];
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Purpose::Calibration => "calibration",
            Purpose::Evaluation => "evaluation",
        })
    }
}

/// A dataset known by name.
#[derive(Debug)]
pub struct Dataset {
    /// The name in DATA arguments.
    pub name: &'static str,
    /// One line for people.
    pub description: &'static str,
    /// Licence of the text, as an SPDX expression.
    pub license: &'static str,
    /// The text of each domain, by purpose.
    pub domains: fn(Purpose) -> &'static [(&'static str, &'static str)],
}

/// All datasets.
pub const REGISTRY: &[&Dataset] = &[&builtin::DATASET];

/// The dataset of this name.
pub fn find(name: &str) -> Option<&'static Dataset> {
    REGISTRY.iter().copied().find(|d| d.name == name)
}

/// One line of `bitsmith datasets`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DatasetInfo {
    /// The name in DATA arguments.
    pub name: &'static str,
    /// The use this text is for.
    pub purpose: Purpose,
    /// One line for people.
    pub description: &'static str,
    /// Licence of the text, as an SPDX expression.
    pub license: &'static str,
    /// Names of the domains.
    pub domains: Vec<&'static str>,
    /// Size of the text in bytes.
    pub bytes: u64,
}

/// Every dataset and purpose, in the registry's order.
pub fn list() -> Vec<DatasetInfo> {
    let info = |d: &Dataset, purpose| {
        let domains = (d.domains)(purpose);
        DatasetInfo {
            name: d.name,
            purpose,
            description: d.description,
            license: d.license,
            domains: domains.iter().map(|(name, _)| *name).collect(),
            bytes: domains.iter().map(|(_, text)| text.len() as u64).sum(),
        }
    };
    REGISTRY.iter().flat_map(|d| Purpose::ALL.map(|p| info(d, p))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn calibration_and_evaluation_texts_share_no_line() {
        for d in REGISTRY {
            let lines = |purpose| -> BTreeSet<&str> {
                let texts = (d.domains)(purpose).iter();
                texts.flat_map(|(_, t)| t.lines()).map(str::trim).filter(|l| l.chars().count() >= 40).collect()
            };
            let (calibration, evaluation) = (lines(Purpose::Calibration), lines(Purpose::Evaluation));
            assert!(calibration.len() > 500 && evaluation.len() > 300);
            assert_eq!(calibration.intersection(&evaluation).next(), None, "{}", d.name);
        }
    }

    #[test]
    fn both_purposes_have_the_same_domains() {
        for d in REGISTRY {
            let names = |p| (d.domains)(p).iter().map(|(n, _)| *n).collect::<Vec<_>>();
            assert_eq!(names(Purpose::Calibration), names(Purpose::Evaluation));
        }
        assert_eq!(list().len(), 2 * REGISTRY.len());
        assert_eq!(list()[0].domains, ["prose", "code", "math", "dialogue", "multilingual"]);
        assert!(list().iter().all(|d| d.bytes > 100_000));
    }
}

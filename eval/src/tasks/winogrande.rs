//! WinoGrande (Sakaguchi et al., 2020): whom does a gap in a sentence mean? Scored by how well the rest of the sentence follows.

use super::item::{Fields, Item};
use super::{Metric, Source, Task};
use bitsmith_formats::{Error, Result};
use serde_json::Value;

/// The task.
pub fn tasks() -> Vec<Task> {
    vec![Task {
        source: Source::hub("allenai/winogrande", "winogrande_xl", "validation", Some("train")),
        ..Task::new("winogrande", "which of two names fills a gap", &[Metric::Acc], item)
    }]
}

fn item(record: &Value) -> Result<Item> {
    let sentence = record.text("sentence")?;
    let (before, rest) = sentence.split_once('_').ok_or_else(|| Error::corrupt("the sentence has no gap `_`"))?;
    let right = record.index("answer")?;
    if !(1..=2).contains(&right) {
        return Err(Error::corrupt(format!("answer {right} of 2 options")));
    }
    let queries =
        ["option1", "option2"].map(|o| record.text(o).map(|o| format!("{before}{o}"))).into_iter().collect::<Result<_>>()?;
    Ok(Item::Beginnings { queries, rest: rest.trim().to_string(), right: right - 1 })
}

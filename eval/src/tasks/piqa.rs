//! PIQA (Bisk et al., 2020): which of two ways works in the physical world?

use super::item::{Fields, Item, prepared};
use super::{Metric, Source, Task};
use bitsmith_formats::Result;
use serde_json::Value;

/// The task.
pub fn tasks() -> Vec<Task> {
    vec![Task {
        source: Source::hub("baber/piqa", "default", "validation", Some("train")),
        ..Task::new("piqa", "which of two ways reaches an everyday goal", &[Metric::AccNorm, Metric::Acc], item)
    }]
}

fn item(record: &Value) -> Result<Item> {
    if let Some((query, choices, gold)) = prepared(record)? {
        return Item::choice(format!("{}\nAnswer:", query.strip_suffix('\n').unwrap_or(query)), choices, gold);
    }
    let ways = ["sol1", "sol2"].map(|f| record.text(f).map(String::from)).into_iter().collect::<Result<_>>()?;
    Item::choice(format!("Question: {}\nAnswer:", record.text("goal")?), ways, record.index("label")?)
}

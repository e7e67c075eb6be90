//! OpenBookQA (Mihaylov et al., 2018): elementary science, with common knowledge added.

use super::item::{Fields, Item, labelled, prepared};
use super::{Metric, Source, Task};
use bitsmith_formats::Result;
use serde_json::Value;

/// The task.
pub fn tasks() -> Vec<Task> {
    vec![Task {
        source: Source::hub("allenai/openbookqa", "main", "test", Some("train")),
        ..Task::new("openbookqa", "elementary science with common knowledge; four choices", &[Metric::AccNorm, Metric::Acc], item)
    }]
}

fn item(record: &Value) -> Result<Item> {
    if let Some((query, choices, gold)) = prepared(record)? {
        return Item::choice(query.to_string(), choices, gold);
    }
    let choices = record.field("choices")?;
    let right = labelled(&choices.texts("label")?, record.text("answerKey")?.trim_start())?;
    Item::choice(record.text("question_stem")?.to_string(), choices.texts("text")?, right)
}

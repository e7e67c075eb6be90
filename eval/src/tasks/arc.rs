//! The AI2 Reasoning Challenge (Clark et al., 2018): questions from science lessons, easy and hard.

use super::item::{Fields, Item, labelled, prepared};
use super::{Metric, Source, Task};
use bitsmith_formats::Result;
use serde_json::Value;

/// Both sets.
pub fn tasks() -> Vec<Task> {
    let task = |name, config, what| Task {
        source: Source::hub("allenai/ai2_arc", config, "test", Some("train")),
        ..Task::new(name, what, &[Metric::AccNorm, Metric::Acc], item)
    };
    vec![
        task("arc_easy", "ARC-Easy", "questions from science lessons"),
        task("arc_challenge", "ARC-Challenge", "questions from science lessons that word statistics do not answer"),
    ]
}

fn item(record: &Value) -> Result<Item> {
    if let Some((query, choices, gold)) = prepared(record)? {
        return Item::choice(format!("{}\nAnswer:", query.trim_end()), choices, gold);
    }
    let choices = record.field("choices")?;
    let right = labelled(&choices.texts("label")?, record.text("answerKey")?)?;
    Item::choice(format!("Question: {}\nAnswer:", record.text("question")?), choices.texts("text")?, right)
}

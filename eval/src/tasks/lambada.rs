//! LAMBADA (Paperno et al., 2016) in OpenAI's version: the last word of a passage.

use super::item::{Fields, Item};
use super::{Metric, Source, Task};
use bitsmith_formats::Result;
use serde_json::Value;

/// The task.
pub fn tasks() -> Vec<Task> {
    vec![Task {
        source: Source::hub("EleutherAI/lambada_openai", "default", "test", None),
        ..Task::new("lambada_openai", "the last word of a passage, word for word", &[Metric::Acc, Metric::Perplexity], item)
    }]
}

fn item(record: &Value) -> Result<Item> {
    let (query, word) = match record.find("context") {
        Some(_) => (record.text("context")?, record.text("continuation")?.trim_start()),
        None => {
            let text = record.text("text")?;
            text.rsplit_once(' ').unwrap_or(("", text))
        }
    };
    Ok(Item::Continuation { query: query.to_string(), answer: format!(" {word}") })
}

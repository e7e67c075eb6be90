//! GSM8K (Cobbe et al., 2021): word problems of grade school, answered in writing; the number at the end counts.

use super::item::{Fields, Item};
use super::{Extract, Generation, Match, Metric, Source, Task};
use bitsmith_formats::Result;
use serde_json::Value;

/// The task.
pub fn tasks() -> Vec<Task> {
    let exact = |name: &str, pattern: &str, last| {
        Metric::ExactMatch(Match {
            filter: name.into(),
            extract: Some(Extract { pattern: pattern.into(), last }),
            ignore: [",", r"\$", r"(?s).*#### ", r"\.$"].map(String::from).to_vec(),
            ignore_case: true,
        })
    };
    let metrics =
        [exact("strict-match", r"#### (\-?[0-9\.\,]+)", false), exact("flexible-extract", r"(-?[$0-9.,]{2,})|(-?[0-9]+)", true)];
    vec![Task {
        source: Source::hub("openai/gsm8k", "main", "test", Some("train")),
        shots: 5,
        generation: Some(Generation { until: ["Question:", "</s>", "<|im_end|>"].map(String::from).to_vec(), max_tokens: 256 }),
        ..Task::new("gsm8k", "word problems of grade school, worked out in writing", &metrics, item)
    }]
}

fn item(record: &Value) -> Result<Item> {
    let query = format!("Question: {}\nAnswer:", record.text("question")?);
    Ok(Item::Writing { query, answer: record.text("answer")?.to_string() })
}

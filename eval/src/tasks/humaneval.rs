//! HumanEval (Chen et al., 2021): the body of a Python function from its description, held against tests.

use super::item::{Fields, Item};
use super::{Generation, Metric, Source, Task};
use bitsmith_formats::Result;
use serde_json::Value;

/// The task.
pub fn tasks() -> Vec<Task> {
    let until = ["\nclass", "\ndef", "\n#", "\nif", "\nprint"].map(String::from).to_vec();
    vec![Task {
        source: Source::hub("openai/openai_humaneval", "openai_humaneval", "test", None),
        generation: Some(Generation { until, max_tokens: 1024 }),
        ..Task::new("humaneval", "the body of a Python function; its tests run in a sandbox", &[Metric::PassAt1], item)
    }]
}

fn item(record: &Value) -> Result<Item> {
    let answer = format!("{}\ncheck({})", record.text("test")?, record.text("entry_point")?);
    Ok(Item::Writing { query: record.text("prompt")?.to_string(), answer })
}

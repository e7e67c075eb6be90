//! BoolQ (Clark et al., 2019): yes or no, from a passage.

use super::item::{Fields, Item, prepared};
use super::{Metric, Source, Task};
use bitsmith_formats::Result;
use serde_json::Value;

/// The task.
pub fn tasks() -> Vec<Task> {
    vec![Task {
        source: Source::hub("aps/super_glue", "boolq", "validation", Some("train")),
        ..Task::new("boolq", "yes or no, from a passage", &[Metric::Acc], item)
    }]
}

fn item(record: &Value) -> Result<Item> {
    let answers = vec!["no".to_string(), "yes".into()];
    if let Some((query, _, gold)) = prepared(record)? {
        let query = query.strip_prefix("Passage: ").unwrap_or(query).trim_end();
        // In this form questions end as they are asked or not at all.
        let mark = if query.ends_with('?') { "" } else { "?" };
        return Item::choice(format!("{query}{mark}\nAnswer:"), answers, gold);
    }
    let query = format!("{}\nQuestion: {}?\nAnswer:", record.text("passage")?, record.text("question")?);
    Item::choice(query, answers, record.index("label").or_else(|_| record.index("answer"))?)
}

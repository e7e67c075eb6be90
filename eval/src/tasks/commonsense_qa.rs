//! CommonsenseQA (Talmor et al., 2019): everyday knowledge; the answers are the letters of five choices.

use super::item::{Fields, Item, labelled};
use super::{Metric, Source, Task};
use bitsmith_formats::{Error, Result};
use serde_json::Value;

/// The task.
pub fn tasks() -> Vec<Task> {
    vec![Task {
        source: Source::hub("tau/commonsense_qa", "default", "validation", Some("train")),
        ..Task::new("commonsense_qa", "everyday knowledge; the letter of one of five choices", &[Metric::Acc], item)
    }]
}

fn item(record: &Value) -> Result<Item> {
    let texts = record.field("choices")?.texts("text")?;
    let letters = ["A", "B", "C", "D", "E"].map(String::from).to_vec();
    if texts.len() != letters.len() {
        return Err(Error::corrupt(format!("{} choices, expected 5", texts.len())));
    }
    let mut query = format!("Question: {}\n", record.text("question")?.trim());
    for (letter, text) in letters.iter().zip(&texts) {
        query += &format!("{letter}. {text}\n");
    }
    let right = labelled(&letters, record.text("answerKey")?)?;
    Item::choice(query + "Answer:", letters, right)
}

//! HellaSwag (Zellers et al., 2019): how does the scene go on?

use super::item::{Fields, Item, prepared};
use super::{Metric, Source, Task};
use bitsmith_formats::Result;
use serde_json::Value;

/// The task.
pub fn tasks() -> Vec<Task> {
    vec![Task {
        source: Source::hub("Rowan/hellaswag", "default", "validation", Some("train")),
        ..Task::new("hellaswag", "how an everyday scene goes on; four choices", &[Metric::AccNorm, Metric::Acc], item)
    }]
}

fn item(record: &Value) -> Result<Item> {
    if let Some((query, choices, gold)) = prepared(record)? {
        return Item::choice(query.to_string(), choices, gold);
    }
    let scene = format!("{}: {} {}", record.text("activity_label")?, record.text("ctx_a")?, capitalized(record.text("ctx_b")?));
    let endings = record.texts("endings")?.iter().map(|e| cleaned(e)).collect();
    Item::choice(cleaned(&scene), endings, record.index("label")?)
}

/// Python's `str.capitalize`: the rest becomes lower case.
fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or(String::new(), |c| c.to_uppercase().chain(chars.flat_map(char::to_lowercase)).collect())
}

/// Without the marks in brackets that WikiHow's texts have.
fn cleaned(text: &str) -> String {
    let text = text.trim().replace(" [title]", ". ");
    let mut out = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(open) = rest.find('[') {
        // A mark ends within its line.
        let Some(len) = rest[open..].find(']').filter(|len| !rest[open..open + len].contains('\n')) else {
            out.push_str(&rest[..=open]);
            rest = &rest[open + 1..];
            continue;
        };
        out.push_str(&rest[..open]);
        rest = &rest[open + len + 1..];
    }
    out.push_str(rest);
    out.replace("  ", " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn marks_go_and_spaces_join() {
        assert_eq!(cleaned(" How to rest [title] Sit down. [step] Breathe  in. "), "How to rest. Sit down. Breathe in.");
        assert_eq!(cleaned("a [b c"), "a [b c");
        assert_eq!(cleaned("[a]  [b\n] c"), " [b\n] c");
        let record = json!({"activity_label": "Vault", "ctx_a": "A man runs.", "ctx_b": "he Jumps", "endings": ["up.", "[x]down."], "label": "1"});
        let Item::Choices { query, choices, right } = item(&record).unwrap() else { panic!() };
        assert_eq!(
            (query.as_str(), choices, right),
            ("Vault: A man runs. He jumps", vec!["up.".to_string(), "down.".into()], vec![1])
        );
    }
}

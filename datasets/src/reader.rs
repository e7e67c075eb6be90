//! Files of text: plain text, and JSON lines.

use bitsmith_formats::{Error, Result};
use serde_json::{Map, Value};
use std::path::Path;

/// How a file holds text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// One document.
    Text,
    /// One JSON object, and so one document, per line.
    Jsonl,
}

/// The documents of a file's content. `file` is for messages.
pub(crate) fn documents(file: &Path, format: Format, bytes: Vec<u8>) -> Result<Vec<String>> {
    let text = String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        Error::corrupt(format!("not UTF-8 at byte {at}")).file(file).hint("convert the file to UTF-8")
    })?;
    let documents = match format {
        Format::Text => vec![text],
        Format::Jsonl => text
            .lines()
            .enumerate()
            .filter(|(_, line)| !line.trim().is_empty())
            .map(|(i, line)| record(line).map_err(|message| Error::corrupt(format!("line {}: {message}", i + 1)).file(file)))
            .collect::<Result<_>>()?,
    };
    if documents.iter().all(|d| d.trim().is_empty()) {
        return Err(Error::corrupt("the file holds no text").file(file));
    }
    Ok(documents)
}

/// The text of one JSON line.
fn record(line: &str) -> Result<String, String> {
    let value: Value = serde_json::from_str(line).map_err(|e| format!("not valid JSON: {e}"))?;
    let Value::Object(fields) = value else { return Err(format!("a JSON {} where an object is due", type_name(&value))) };
    if let Some(text) = fields.get("text") {
        return string(text, "text");
    }
    if let Some(messages) = fields.get("messages") {
        let Value::Array(messages) = messages else { return Err("`messages` is not a list".into()) };
        let texts = messages.iter().map(message).collect::<Result<Vec<_>, _>>()?;
        return Ok(join(texts.iter().map(String::as_str)));
    }
    if let (Some(prompt), Some(completion)) = (fields.get("prompt"), fields.get("completion")) {
        let (prompt, completion) = (string(prompt, "prompt")?, string(completion, "completion")?);
        // Old-style records carry the separator themselves.
        let apart = prompt.ends_with(char::is_whitespace) || completion.starts_with(char::is_whitespace);
        return Ok(if apart { prompt + &completion } else { format!("{prompt}\n{completion}") });
    }
    Err(format!("no `text`, `messages`, or `prompt` and `completion`; the fields are {}", names(&fields)))
}

/// The text of one chat message: a string, or a list of parts of which the texts count.
fn message(message: &Value) -> Result<String, String> {
    match message.get("content") {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(Value::Array(parts)) => Ok(join(parts.iter().filter_map(|p| p.get("text").and_then(Value::as_str)))),
        // Messages that call tools have none.
        Some(Value::Null) => Ok(String::new()),
        _ => Err("a message without `content`".into()),
    }
}

fn join<'a>(texts: impl Iterator<Item = &'a str>) -> String {
    texts.filter(|t| !t.is_empty()).collect::<Vec<_>>().join("\n\n")
}

fn string(value: &Value, field: &str) -> Result<String, String> {
    match value {
        Value::String(s) => Ok(s.clone()),
        other => Err(format!("`{field}` is a JSON {}, not a string", type_name(other))),
    }
}

fn names(fields: &Map<String, Value>) -> String {
    match fields.len() {
        0 => "none".into(),
        _ => fields.keys().take(8).map(|k| format!("`{k}`")).collect::<Vec<_>>().join(", "),
    }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "list",
        Value::Object(_) => "object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitsmith_formats::ErrorKind;

    fn jsonl(text: &str) -> Result<Vec<String>> {
        documents(Path::new("x.jsonl"), Format::Jsonl, text.as_bytes().to_vec())
    }

    #[test]
    fn every_kind_of_record() {
        let lines = r#"{"text": "plain", "id": 1}

{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": [{"type": "text", "text": "Hello"}, {"type": "image"}]}]}
{"prompt": "2+2=", "completion": "4"}
{"prompt": "Q: ", "completion": "A"}
"#;
        assert_eq!(jsonl(lines).unwrap(), ["plain", "Hi\n\nHello", "2+2=\n4", "Q: A"]);
    }

    #[test]
    fn errors_name_the_line() {
        for (bad, says) in [
            ("{\"text\": \"a\"}\n\n{\"text\": ", "line 3: not valid JSON"),
            ("[1]", "line 1: a JSON list"),
            ("{\"text\": 3}", "line 1: `text` is a JSON number"),
            ("{\"body\": \"x\"}", "the fields are `body`"),
            ("{\"prompt\": \"x\"}", "the fields are `prompt`"),
            ("{\"messages\": [{}]}", "without `content`"),
        ] {
            let e = jsonl(bad).unwrap_err();
            assert_eq!(e.kind, ErrorKind::Corrupt);
            assert!(e.message.contains(says), "{e}");
            assert_eq!(e.file.as_deref(), Some(Path::new("x.jsonl")));
        }
    }

    #[test]
    fn empty_or_broken_text_is_refused() {
        let text = |b: &[u8]| documents(Path::new("x.txt"), Format::Text, b.to_vec());
        assert!(text(b" \n").unwrap_err().message.contains("no text"));
        assert!(text(b"ab\xff").unwrap_err().message.contains("byte 2"));
        assert!(jsonl("\n\n").unwrap_err().message.contains("no text"));
        assert_eq!(text(b"a\r\n").unwrap(), ["a\r\n"]);
    }
}

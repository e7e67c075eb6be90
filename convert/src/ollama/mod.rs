//! What Ollama wants to be told about a model: a Modelfile, or the files that it reads straight from a repository on the hub.

mod go;
mod template;

pub use template::{Chat, PLAIN, chat};

use bitsmith_formats::{Error, Result};
use serde_json::{Map, Value};
use std::fmt::Write as _;

/// A parameter's values: `stop` may have several, others have one.
pub type Parameters = Vec<(String, Value)>;

/// A Modelfile.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Modelfile {
    /// Files of the model, relative to the Modelfile: the GGUF or all parts of a set, then the projector of a vision tower.
    pub from: Vec<String>,
    /// How to talk with it; without one, Ollama guesses by the template in the file.
    pub chat: Option<Chat>,
    /// Sampling and context length.
    pub parameters: Parameters,
    /// Texts of the licences, or their names.
    pub licenses: Vec<String>,
}

impl Modelfile {
    /// The text of the file. An error names what Ollama's grammar cannot quote.
    pub fn render(&self) -> Result<String> {
        let mut out = String::new();
        for file in &self.from {
            let _ = writeln!(out, "FROM ./{file}");
        }
        if let Some(chat) = &self.chat {
            let _ = writeln!(out, "TEMPLATE {}", quoted(&chat.template)?);
            if let Some(system) = &chat.system {
                let _ = writeln!(out, "SYSTEM {}", quoted(system)?);
            }
        }
        for (name, value) in self.all_parameters() {
            let value = match value {
                Value::String(text) => quoted(&text)?,
                other => other.to_string(),
            };
            let _ = writeln!(out, "PARAMETER {name} {value}");
        }
        for license in &self.licenses {
            let _ = writeln!(out, "LICENSE {}", quoted(&license.replace("\"\"\"", "'''"))?);
        }
        Ok(out)
    }

    /// `params`, the file that Ollama reads from a repository on the hub.
    pub fn params(&self) -> Value {
        let mut map = Map::new();
        for (name, value) in self.all_parameters() {
            match map.get_mut(&name) {
                Some(Value::Array(list)) => list.push(value),
                None if name == "stop" => _ = map.insert(name, vec![value].into()),
                _ => _ = map.insert(name, value),
            }
        }
        map.into()
    }

    fn all_parameters(&self) -> Parameters {
        let stops = self.chat.iter().flat_map(|c| &c.stops).map(|s| ("stop".to_string(), s.as_str().into()));
        self.parameters.iter().cloned().chain(stops).collect()
    }
}

/// A value between triple quotes, which nothing in it can escape.
fn quoted(text: &str) -> Result<String> {
    if text.contains("\"\"\"") {
        return Err(Error::unsupported("a Modelfile cannot quote a text that has three quotation marks in it"));
    }
    Ok(format!("\"\"\"{text}\"\"\""))
}

/// Sampling parameters that a model's `generation_config.json` recommends, under Ollama's names; a context that is shorter than Ollama's
/// own default.
pub fn parameters(generation: Option<&Map<String, Value>>, context_length: usize) -> Parameters {
    /// Tokens of context that Ollama gives every model.
    const DEFAULT_CONTEXT: usize = 4096;
    let mut out = Parameters::new();
    if context_length < DEFAULT_CONTEXT {
        out.push(("num_ctx".into(), context_length.into()));
    }
    let Some(generation) = generation.filter(|g| g.get("do_sample") != Some(&Value::Bool(false))) else { return out };
    let names = [
        ("temperature", "temperature"),
        ("top_p", "top_p"),
        ("top_k", "top_k"),
        ("min_p", "min_p"),
        ("repetition_penalty", "repeat_penalty"),
    ];
    for (theirs, ours) in names {
        if let Some(value) = generation.get(theirs).filter(|v| v.is_number()) {
            out.push((ours.into(), value.clone()));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Ollama's grammar of Modelfiles: commands, quoted values, comments; anything else is an error.
    fn parse(text: &str) -> Result<Vec<(String, String)>, String> {
        let (mut rest, mut commands) = (text, Vec::new());
        loop {
            rest = rest.trim_start_matches([' ', '\t', '\r', '\n']);
            if rest.is_empty() {
                break;
            }
            if rest.starts_with('#') {
                rest = rest.split_once('\n').map_or("", |(_, rest)| rest);
                continue;
            }
            let (word, mut value) = rest.split_once([' ', '\t']).ok_or("a command without a value")?;
            let mut name = word.to_lowercase();
            if !["from", "template", "system", "license", "parameter", "adapter", "draft", "renderer", "parser", "requires"]
                .contains(&name.as_str())
            {
                return Err(format!("no command: {word}"));
            }
            if name == "parameter" {
                let (parameter, after) = value.split_once([' ', '\t']).ok_or("a parameter without a value")?;
                if !parameter.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
                    return Err(format!("no parameter: {parameter}"));
                }
                (name, value) = (parameter.to_string(), after);
            }
            // A quoted value goes to the first closing quote at the end of a line.
            let mut at = 0;
            loop {
                let line = value[at..].find('\n').map_or(value.len(), |n| at + n);
                let text = value[..line].trim();
                let (open, content) = if let Some(inner) = text.strip_prefix("\"\"\"") {
                    (true, inner.strip_suffix("\"\"\""))
                } else if let Some(inner) = text.strip_prefix('"') {
                    (true, inner.strip_suffix('"'))
                } else {
                    (false, Some(text))
                };
                if let Some(content) = content {
                    commands.push((name, content.to_string()));
                    rest = &value[line..];
                    break;
                }
                if !open || line == value.len() {
                    return Err("a quote that does not end".into());
                }
                at = line + 1;
            }
        }
        if commands.iter().any(|(name, _)| name == "from") { Ok(commands) } else { Err("no FROM".into()) }
    }

    #[test]
    fn modelfiles_parse() {
        let chat = Chat {
            template: "{{ range .Messages }}<|{{ .Role }}|>\n\"{{ .Content }}\"\n{{ end }}".into(),
            system: Some("Be brief. ".into()),
            stops: vec!["<|end|>".into(), "\nUser: ".into(), "\"".into()],
        };
        let modelfile = Modelfile {
            from: vec!["m-Q4_K_M-00001-of-00002.gguf".into(), "m-Q4_K_M-00002-of-00002.gguf".into()],
            chat: Some(chat.clone()),
            parameters: parameters(json!({"temperature": 0.6, "top_k": 20, "eos_token_id": 2}).as_object(), 512),
            licenses: vec!["Line 1\n\nLine \"\"\"2\"\"\"\n".into(), "mit".into()],
        };
        let commands = parse(&modelfile.render().unwrap()).unwrap();
        let all = |name: &str| -> Vec<&str> { commands.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str()).collect() };
        assert_eq!(all("from"), ["./m-Q4_K_M-00001-of-00002.gguf", "./m-Q4_K_M-00002-of-00002.gguf"]);
        assert_eq!((all("template"), all("system")), (vec![chat.template.as_str()], vec!["Be brief. "]));
        assert_eq!(all("stop"), chat.stops);
        assert_eq!((all("temperature"), all("top_k"), all("num_ctx")), (vec!["0.6"], vec!["20"], vec!["512"]));
        assert_eq!(all("license"), ["Line 1\n\nLine '''2'''\n", "mit"]);
        assert_eq!(modelfile.params(), json!({"num_ctx": 512, "temperature": 0.6, "top_k": 20, "stop": chat.stops}));
        let bad = Modelfile { chat: Some(Chat { template: "\"\"\"".into(), ..chat }), ..modelfile };
        assert_eq!(bad.render().unwrap_err().kind.exit_code(), 69);
    }

    #[test]
    fn greedy_models_recommend_nothing() {
        assert_eq!(parameters(json!({"do_sample": false, "temperature": 1.0}).as_object(), 8192), []);
        assert_eq!(parameters(None, 8192), []);
    }
}

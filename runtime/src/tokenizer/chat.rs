//! Chat templates: Jinja as Hugging Face's tokenizers run it.

use super::python;
use bitsmith_formats::{Error, Result};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value};
use minijinja::{Environment, ErrorKind};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatMessage {
    /// `system`, `user`, `assistant`, `tool`, …
    pub role: String,
    /// What is said: a string, for some templates a list of parts, or null beside tool calls.
    pub content: Json,
    /// Whatever else the template reads: `tool_calls`, `tool_call_id`, `name`, `reasoning_content`, ….
    #[serde(flatten)]
    pub more: Map<String, Json>,
}

impl ChatMessage {
    /// A turn.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        ChatMessage { role: role.into(), content: content.into().into(), more: Map::new() }
    }
}

/// A model's chat templates.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChatTemplates {
    /// The one for ordinary conversations.
    pub default: Option<String>,
    /// Others by name (`tool_use`, `rag`, …), in the source's order.
    pub named: Vec<(String, String)>,
}

impl ChatTemplates {
    /// Renders the default template, or with tools the one named `tool_use`, if there is one. `tools` are descriptions of functions, `special` gives the spelling of `bos_token` and so on.
    pub(super) fn render(
        &self,
        messages: &[ChatMessage],
        tools: Option<&Json>,
        add_generation_prompt: bool,
        special: impl Iterator<Item = (&'static str, String)>,
    ) -> Result<String> {
        self.render_by(environment(true), messages, tools, add_generation_prompt, special)
    }

    /// Renders the default template without a clock, as a system does that has no `strftime_now`: what comes out is the same on
    /// every day.
    pub fn render_timeless(
        &self,
        messages: &[ChatMessage],
        add_generation_prompt: bool,
        special: impl Iterator<Item = (&'static str, String)>,
    ) -> Result<String> {
        self.render_by(environment(false), messages, None, add_generation_prompt, special)
    }

    fn render_by(
        &self,
        environment: Result<Environment<'static>, minijinja::Error>,
        messages: &[ChatMessage],
        tools: Option<&Json>,
        add_generation_prompt: bool,
        special: impl Iterator<Item = (&'static str, String)>,
    ) -> Result<String> {
        // As in transformers: some models have a template of its own for conversations with tools.
        let tool_use =
            self.named.iter().find(|(name, _)| tools.is_some() && name == "tool_use").map(|(_, source)| source.as_str());
        let source = tool_use.or(self.default.as_deref()).ok_or_else(|| {
            Error::missing("the model has no chat template").hint("give the prompt as plain text, without --chat")
        })?;
        let source = without_generation_tags(source);
        let general = [
            ("messages", Value::from(Serde(messages))),
            ("add_generation_prompt", add_generation_prompt.into()),
            ("tools", tools.map_or(Value::from(()), |tools| Value::from(Serde(tools)))),
            ("documents", Value::from(())),
        ];
        let context = Value::from_pairs(general.into_iter().chain(special.map(|(name, text)| (name, Value::from(text)))));
        let rendered = environment.and_then(|env| env.render_named_str("chat_template", &source, context));
        rendered.map_err(|e| {
            if e.kind() == ErrorKind::OutOfFuel {
                return Error::corrupt(format!("the chat template takes more than {} steps", python::MAX_STEPS))
                    .hint("the template is damaged or was made to do harm: give the prompt as plain text, or mend the template")
                    .with_source(e);
            }
            let error = match (e.kind(), e.detail()) {
                (ErrorKind::InvalidOperation, Some(detail)) if detail.starts_with(RAISED) => {
                    Error::failed(format!("the chat template refuses this conversation: {}", &detail[RAISED.len()..]))
                }
                _ => Error::corrupt(format!("the chat template fails: {e}"))
                    .hint("give the prompt as plain text, or mend the chat template"),
            };
            error.with_source(e)
        })
    }
}

/// Marks errors that the template itself raised.
const RAISED: &str = "raise_exception: ";

/// Without a clock, there is no `strftime_now`.
fn environment(clock: bool) -> Result<Environment<'static>, minijinja::Error> {
    let mut env = Environment::new();
    env.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    python::limit(&mut env);
    env.set_unknown_method_callback(python::call_method);
    env.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, format!("{RAISED}{message}")))
    });
    if clock {
        env.add_function("strftime_now", |format: String| python::strftime(&format, python::now()));
    }
    env.add_filter("tojson", |value: &Value, kwargs: Kwargs| -> Result<String, minijinja::Error> {
        let indent: Option<usize> = kwargs.get("indent")?;
        // Accepted and always in force: output is not escaped to ASCII, and keys keep their order.
        let (_, _): (Option<bool>, Option<bool>) = (kwargs.get("ensure_ascii")?, kwargs.get("sort_keys")?);
        kwargs.assert_all_used()?;
        python::json(value, indent)
    });
    Ok(env)
}

/// Removes `{% generation %}` and `{% endgeneration %}`, which mark the assistant's words for training and print nothing.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        // Not the percent sign of the tag's start.
        let Some(len) = rest[start + 2..].find("%}").map(|n| n + 4) else { break };
        let tag = &rest[start..start + len];
        let word = tag[2..len - 2].trim_matches('-').trim();
        out.push_str(&rest[..start]);
        if matches!(word, "generation" | "endgeneration") {
            // A comment keeps the tag's white-space control.
            out.push_str(&tag.replacen("{%", "{#", 1).replacen("%}", "#}", 1));
        } else {
            out.push_str(tag);
        }
        rest = &rest[start + len..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct Case {
        name: String,
        template: String,
        messages: Vec<ChatMessage>,
        tools: Option<Json>,
        add_generation_prompt: bool,
        rendered: Option<String>,
        raises: Option<String>,
    }

    /// Conversations as transformers renders them.
    #[test]
    fn templates_render_as_in_transformers() {
        let cases: Vec<Case> = serde_json::from_str(include_str!("../../../tests/golden/chat/cases.json")).unwrap();
        assert_eq!(cases.len(), 9);
        for case in cases {
            let templates = ChatTemplates { default: Some(case.template), named: Vec::new() };
            let special = [("bos_token", "<s>".to_string()), ("eos_token", "</s>".to_string())].into_iter();
            let got = templates.render(&case.messages, case.tools.as_ref(), case.add_generation_prompt, special);
            match (case.rendered, case.raises) {
                (Some(want), _) => assert_eq!(got.unwrap(), want, "{}", case.name),
                (None, Some(why)) => assert!(got.unwrap_err().message.contains(&why), "{}", case.name),
                (None, None) => panic!("{} expects nothing", case.name),
            }
        }
    }
}

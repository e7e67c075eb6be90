//! Answers in OpenAI's shapes, whole or in pieces.

use crate::error::ApiError;
use crate::job::{Done, Event};
use crate::request::Request;
use crate::writer::{Piece, Scored};
use bitsmith_runtime::Tokenizer;
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// What the answers to one request share.
#[derive(Debug)]
pub struct Shape {
    /// A unique name of the answer.
    pub id: String,
    /// Seconds since 1970.
    pub created: u64,
    /// The model's name.
    pub model: String,
    /// For the texts of single tokens.
    pub tokenizer: Arc<Tokenizer>,
    /// Whether it is a chat.
    pub chat: bool,
    /// Whether log-probabilities are given.
    pub logprobs: bool,
    /// The prompt of every answer as text, if it is to be echoed.
    pub echo: Vec<Option<String>>,
    /// Tokens in all prompts.
    pub prompt_tokens: usize,
}

impl Shape {
    /// The document around `choices`.
    fn document(&self, object: &str, choices: Vec<Value>) -> Map<String, Value> {
        let mut map = Map::new();
        map.insert("id".into(), self.id.as_str().into());
        map.insert("object".into(), object.into());
        map.insert("created".into(), self.created.into());
        map.insert("model".into(), self.model.as_str().into());
        map.insert("system_fingerprint".into(), concat!("bitsmith-", env!("CARGO_PKG_VERSION")).into());
        map.insert("choices".into(), choices.into());
        map
    }

    fn usage(&self, generated: usize) -> Value {
        let total = self.prompt_tokens + generated;
        json!({"prompt_tokens": self.prompt_tokens, "completion_tokens": generated, "total_tokens": total})
    }

    /// Log-probabilities of some tokens, or null if they are not wanted.
    fn scores(&self, tokens: &[Scored]) -> Value {
        match (self.logprobs, self.chat) {
            (false, _) => Value::Null,
            (true, true) => self.chat_scores(tokens),
            (true, false) => self.legacy_scores(tokens),
        }
    }

    fn legacy_scores(&self, tokens: &[Scored]) -> Value {
        let top = |t: &Scored| {
            let Some(score) = &t.score else { return Value::Null };
            let mut map = Map::new();
            // The token itself is always there. Of two with the same text the likelier stays.
            for (id, logprob) in score.top.iter().chain([&(score.token, score.logprob)]) {
                map.entry(self.name(*id)).or_insert_with(|| json!(logprob));
            }
            Value::Object(map)
        };
        json!({
            "tokens": tokens.iter().map(|t| self.name(t.token)).collect::<Vec<_>>(),
            "token_logprobs": tokens.iter().map(|t| t.score.as_ref().map(|s| s.logprob)).collect::<Vec<_>>(),
            "top_logprobs": tokens.iter().map(top).collect::<Vec<_>>(),
            "text_offset": tokens.iter().map(|t| t.offset).collect::<Vec<_>>(),
        })
    }

    fn chat_scores(&self, tokens: &[Scored]) -> Value {
        let entry = |id: u32, logprob: f64| {
            let bytes = self.tokenizer.bytes(id).unwrap_or_default();
            json!({"token": String::from_utf8_lossy(&bytes), "logprob": logprob, "bytes": bytes})
        };
        let content = tokens.iter().filter_map(|t| t.score.as_ref()).map(|s| {
            let mut value = entry(s.token, s.logprob);
            value["top_logprobs"] = s.top.iter().map(|(id, logprob)| entry(*id, *logprob)).collect();
            value
        });
        json!({"content": content.collect::<Vec<_>>(), "refusal": null})
    }

    /// A token's text; part of a character as OpenAI writes it.
    fn name(&self, id: u32) -> String {
        let bytes = self.tokenizer.bytes(id).unwrap_or_default();
        String::from_utf8(bytes).unwrap_or_else(|e| {
            let hex: String = e.as_bytes().iter().map(|b| format!("\\x{b:02x}")).collect();
            format!("bytes:{hex}")
        })
    }
}

/// An answer gathered until it is whole.
#[derive(Debug)]
pub struct Whole {
    shape: Shape,
    choices: Vec<(String, Vec<Scored>, Option<Done>)>,
}

impl Whole {
    /// Nothing yet.
    pub fn new(shape: Shape) -> Self {
        let choices = shape.echo.iter().map(|echo| (echo.clone().unwrap_or_default(), Vec::new(), None)).collect();
        Whole { shape, choices }
    }

    /// Takes what became of answer `index`.
    pub fn take(&mut self, index: usize, event: Event) -> Result<(), ApiError> {
        let (text, scored, done) = &mut self.choices[index];
        match event {
            Event::Prompt(tokens) => scored.extend(tokens),
            Event::Piece(Piece { text: more, tokens }) => {
                text.push_str(&more);
                scored.extend(tokens);
            }
            Event::Done(d) => *done = Some(d),
            Event::Failed(e) => return Err(e),
        }
        Ok(())
    }

    /// Whether every answer has ended.
    pub fn is_whole(&self) -> bool {
        self.choices.iter().all(|c| c.2.is_some())
    }

    /// The document.
    pub fn to_json(&self) -> Value {
        let shape = &self.shape;
        let choice = |(index, (text, tokens, done)): (usize, &(String, Vec<Scored>, Option<Done>))| {
            let (scores, reason) = (shape.scores(tokens), done.map(|d| d.reason));
            if shape.chat {
                let message = json!({"role": "assistant", "content": text, "refusal": null});
                json!({"index": index, "message": message, "logprobs": scores, "finish_reason": reason})
            } else {
                json!({"text": text, "index": index, "logprobs": scores, "finish_reason": reason})
            }
        };
        let choices = self.choices.iter().enumerate().map(choice).collect();
        let mut document = shape.document(if shape.chat { "chat.completion" } else { "text_completion" }, choices);
        let generated = self.choices.iter().filter_map(|c| c.2).map(|d| d.tokens).sum();
        document.insert("usage".into(), shape.usage(generated));
        document.into()
    }
}

/// An answer sent piece by piece, as server-sent events.
#[derive(Debug)]
pub struct Pieces {
    shape: Shape,
    include_usage: bool,
    /// Answers that have been begun.
    begun: Vec<bool>,
    left: usize,
    generated: usize,
}

impl Pieces {
    /// Nothing yet.
    pub fn new(shape: Shape, request: &Request) -> Self {
        let n = shape.echo.len();
        Pieces { shape, include_usage: request.include_usage, begun: vec![false; n], left: n, generated: 0 }
    }

    /// Whether everything has been sent.
    pub fn is_over(&self) -> bool {
        self.left == 0
    }

    /// The events that tell what became of answer `index`.
    pub fn take(&mut self, index: usize, event: Event) -> String {
        let mut out = String::new();
        if self.shape.chat && !std::mem::replace(&mut self.begun[index], true) {
            out += &self.choice(index, json!({"role": "assistant", "content": ""}), &[], None);
        }
        match event {
            Event::Prompt(tokens) => {
                let text = self.shape.echo[index].clone().unwrap_or_default();
                out += &self.choice(index, json!(text), &tokens, None);
            }
            Event::Piece(Piece { text, tokens }) => {
                let text = if self.shape.chat { json!({"content": text}) } else { json!(text) };
                out += &self.choice(index, text, &tokens, None);
            }
            Event::Done(done) => {
                let text = if self.shape.chat { json!({}) } else { json!("") };
                out += &self.choice(index, text, &[], Some(done.reason));
                self.left -= 1;
                self.generated += done.tokens;
                if self.left == 0 {
                    out += &self.end();
                }
            }
            Event::Failed(e) => {
                out += &line(&e.to_json());
                self.left = 0;
            }
        }
        out
    }

    /// `delta` of a chat, text of a completion.
    fn choice(&self, index: usize, content: Value, tokens: &[Scored], reason: Option<&str>) -> String {
        let shape = &self.shape;
        let scores = if tokens.is_empty() { Value::Null } else { shape.scores(tokens) };
        let (key, object) = if shape.chat { ("delta", "chat.completion.chunk") } else { ("text", "text_completion") };
        let choice = json!({"index": index, key: content, "logprobs": scores, "finish_reason": reason});
        let mut document = shape.document(object, vec![choice]);
        if self.include_usage {
            document.insert("usage".into(), Value::Null);
        }
        line(&document.into())
    }

    fn end(&self) -> String {
        let mut out = String::new();
        if self.include_usage {
            let object = if self.shape.chat { "chat.completion.chunk" } else { "text_completion" };
            let mut document = self.shape.document(object, Vec::new());
            document.insert("usage".into(), self.shape.usage(self.generated));
            out += &line(&document.into());
        }
        out + "data: [DONE]\n\n"
    }
}

fn line(value: &Value) -> String {
    format!("data: {value}\n\n")
}

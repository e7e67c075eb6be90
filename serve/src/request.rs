//! What clients may ask for.

use crate::error::ApiError;
use crate::fields::{Fields, kind, wrong};
use bitsmith_runtime::ChatMessage;
use bitsmith_runtime::sampler::Sampling;
use serde_json::{Value, json};

/// Most alternatives per token that a request may ask for.
const MAX_LOGPROBS: u64 = 20;
/// Most stop strings of a request, and bytes of one.
const MAX_STOPS: usize = 32;
const MAX_STOP_BYTES: usize = 1024;
/// Most answers to a request, over all prompts.
pub const MAX_CHOICES: usize = 128;
/// Tokens of a completion if the client does not say.
const COMPLETION_TOKENS: usize = 16;

/// A prompt as the client gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prompt {
    /// Text to continue.
    Text(String),
    /// Token ids to continue.
    Tokens(Vec<u32>),
    /// A conversation to answer.
    Chat(Vec<ChatMessage>),
}

/// A request for text, of either kind.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Whether it is a chat.
    pub chat: bool,
    /// The model that the client wants.
    pub model: Option<String>,
    /// One or more prompts.
    pub prompts: Vec<Prompt>,
    /// Answers per prompt.
    pub n: usize,
    /// Most tokens to generate, as many as the context holds if not given.
    pub max_tokens: Option<usize>,
    /// No end of sequence before this many tokens.
    pub min_tokens: usize,
    /// How to choose tokens; the seed counts only if `seeded`.
    pub sampling: Sampling,
    /// Whether the client gave a seed.
    pub seeded: bool,
    /// Strings that end an answer.
    pub stop: Vec<String>,
    /// Whether to go on after an end-of-sequence token.
    pub ignore_eos: bool,
    /// Whether to answer with the prompt first.
    pub echo: bool,
    /// Log-probabilities, with this many alternatives per token.
    pub logprobs: Option<usize>,
    /// Whether to answer in pieces.
    pub stream: bool,
    /// Whether the last piece tells the usage.
    pub include_usage: bool,
}

impl Request {
    /// Reads the body of `/v1/completions`.
    pub fn completion(body: &[u8]) -> Result<Self, ApiError> {
        let mut f = Fields::parse(body)?;
        let prompts = match f.take("prompt") {
            Some(value) => prompts(value)?,
            None => return Err(ApiError::field("prompt", "`prompt` is missing: a string, or a list of strings or of token ids")),
        };
        let max_tokens = f.integer("max_tokens", 0, u32::MAX.into())?.map_or(COMPLETION_TOKENS, |n| n as usize);
        let logprobs = f.integer("logprobs", 0, MAX_LOGPROBS)?.map(|n| n as usize);
        let echo = f.flag("echo")?;
        let best_of = f.integer("best_of", 1, MAX_CHOICES as u64)?;
        f.unsupported("suffix", &[json!("")])?;
        let request = Request { prompts, logprobs, echo, ..Self::common(f, Some(max_tokens), false)? };
        if best_of.is_some_and(|b| b != request.n as u64) {
            return Err(ApiError::field("best_of", "`best_of` other than `n` is not supported by this server"));
        }
        request.checked()
    }

    /// Reads the body of `/v1/chat/completions`.
    pub fn chat(body: &[u8]) -> Result<Self, ApiError> {
        let mut f = Fields::parse(body)?;
        let messages = match f.take("messages") {
            Some(value) => messages(value)?,
            None => {
                return Err(ApiError::field("messages", "`messages` is missing: a list of objects with `role` and `content`"));
            }
        };
        let old = f.integer("max_tokens", 0, u32::MAX.into())?;
        let max_tokens = f.integer("max_completion_tokens", 0, u32::MAX.into())?.or(old).map(|n| n as usize);
        let logprobs = f.flag("logprobs")?;
        let top = f.integer("top_logprobs", 0, MAX_LOGPROBS)?;
        if top.is_some() && !logprobs {
            return Err(ApiError::field("top_logprobs", "`top_logprobs` needs `logprobs`: true"));
        }
        let logprobs = logprobs.then_some(top.unwrap_or(0) as usize);
        for (key, harmless) in [
            ("tools", json!([])),
            ("tool_choice", json!("none")),
            ("functions", json!([])),
            ("function_call", json!("none")),
            ("response_format", json!({"type": "text"})),
            ("modalities", json!(["text"])),
            ("audio", json!({})),
            ("prediction", json!({})),
            ("reasoning_effort", json!("none")),
            ("verbosity", json!("medium")),
            ("web_search_options", Value::Null),
        ] {
            f.unsupported(key, &[harmless])?;
        }
        f.ignore(&["parallel_tool_calls"]);
        Request { prompts: vec![Prompt::Chat(messages)], logprobs, ..Self::common(f, max_tokens, true)? }.checked()
    }

    /// The fields that both kinds have. Takes the rest of the object.
    fn common(mut f: Fields, max_tokens: Option<usize>, chat: bool) -> Result<Self, ApiError> {
        let model = f.string("model")?;
        let n = f.integer("n", 1, MAX_CHOICES as u64)?.unwrap_or(1) as usize;
        let min_tokens = f.integer("min_tokens", 0, u32::MAX.into())?.unwrap_or(0) as usize;
        let seed = seed(&mut f)?;
        let sampling = Sampling {
            temperature: f.number("temperature", 0.0, 100.0)?.unwrap_or(1.0),
            top_k: top_k(&mut f)?,
            top_p: f.number("top_p", 0.0, 1.0)?,
            seed: seed.unwrap_or(0),
            presence_penalty: f.number("presence_penalty", -2.0, 2.0)?.unwrap_or(0.0),
            frequency_penalty: f.number("frequency_penalty", -2.0, 2.0)?.unwrap_or(0.0),
            bias: bias(&mut f)?,
        };
        let stop = stop(&mut f)?;
        let ignore_eos = f.flag("ignore_eos")?;
        let stream = f.flag("stream")?;
        let include_usage = include_usage(&mut f, stream)?;
        f.unsupported("store", &[json!(false)])?;
        f.unsupported("service_tier", &[json!("auto"), json!("default")])?;
        f.ignore(&["user", "metadata", "safety_identifier", "prompt_cache_key"]);
        f.finish()?;
        Ok(Request {
            chat,
            model,
            prompts: Vec::new(),
            n,
            max_tokens,
            min_tokens,
            sampling,
            seeded: seed.is_some(),
            stop,
            ignore_eos,
            echo: false,
            logprobs: None,
            stream,
            include_usage,
        })
    }

    fn checked(self) -> Result<Self, ApiError> {
        let choices = self.prompts.len() * self.n;
        if choices > MAX_CHOICES {
            return Err(ApiError::field("prompt", format!("{choices} answers in one request: {MAX_CHOICES} at most")));
        }
        if self.max_tokens.is_some_and(|most| self.min_tokens > most) {
            return Err(ApiError::field("min_tokens", "`min_tokens` is larger than `max_tokens`"));
        }
        Ok(self)
    }
}

/// A string, a list of strings, a list of token ids, or a list of such lists.
fn prompts(value: Value) -> Result<Vec<Prompt>, ApiError> {
    let wrong = |v: &Value| wrong("prompt", "a string, or a list of strings or of token ids", v);
    let list = match value {
        Value::String(text) => return Ok(vec![Prompt::Text(text)]),
        Value::Array(list) if list.is_empty() => return Err(ApiError::field("prompt", "`prompt` is an empty list")),
        Value::Array(list) => list,
        other => return Err(wrong(&other)),
    };
    if list.iter().all(Value::is_number) {
        return Ok(vec![Prompt::Tokens(ids(&list)?)]);
    }
    list.into_iter()
        .map(|entry| match entry {
            Value::String(text) => Ok(Prompt::Text(text)),
            Value::Array(tokens) => ids(&tokens).map(Prompt::Tokens),
            other => Err(ApiError::field("prompt", format!("`prompt` mixes {} with other things", kind(&other)))),
        })
        .collect()
}

fn ids(list: &[Value]) -> Result<Vec<u32>, ApiError> {
    let id = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
    list.iter().map(|v| id(v).ok_or_else(|| ApiError::field("prompt", format!("{v} is not a token id")))).collect()
}

fn messages(value: Value) -> Result<Vec<ChatMessage>, ApiError> {
    let Value::Array(list) = value else { return Err(wrong("messages", "a list", &value)) };
    if list.is_empty() {
        return Err(ApiError::field("messages", "`messages` is an empty list"));
    }
    list.into_iter().enumerate().map(|(i, m)| message(&format!("messages[{i}]"), m)).collect()
}

fn message(at: &str, value: Value) -> Result<ChatMessage, ApiError> {
    let Value::Object(mut map) = value else { return Err(wrong(at, "an object", &value)) };
    let role = match map.shift_remove("role") {
        Some(Value::String(role)) => role,
        other => return Err(wrong(&format!("{at}.role"), "a string", &other.unwrap_or(Value::Null))),
    };
    let content = match map.shift_remove("content") {
        Some(Value::String(text)) => text,
        Some(Value::Array(parts)) => parts.iter().map(|p| text_part(at, p)).collect::<Result<Vec<_>, _>>()?.concat(),
        other => return Err(wrong(&format!("{at}.content"), "a string or a list of text parts", &other.unwrap_or(Value::Null))),
    };
    // Some clients mark whole messages as text. Names are not something that templates print.
    let harmless = |k: &str, v: &Value| v.is_null() || k == "name" || (k == "type" && v == "text");
    match map.into_iter().find(|(k, v)| !harmless(k, v)) {
        Some((k, _)) => Err(ApiError::field(format!("{at}.{k}"), format!("`{at}.{k}` is not supported by this server"))),
        None => Ok(ChatMessage::new(role, content)),
    }
}

fn text_part(at: &str, part: &Value) -> Result<String, ApiError> {
    match (part["type"].as_str(), part["text"].as_str()) {
        (Some("text"), Some(text)) => Ok(text.to_string()),
        (Some("text"), None) => Err(ApiError::field(format!("{at}.content"), "a text part without `text`")),
        (Some(other), _) => {
            Err(ApiError::field(format!("{at}.content"), format!("parts of type `{other}` are not supported: text only")))
        }
        (None, _) => Err(ApiError::field(format!("{at}.content"), "a part without `type`")),
    }
}

/// Any whole number; negative ones ask for no seed, as in other servers.
fn seed(f: &mut Fields) -> Result<Option<u64>, ApiError> {
    match f.take("seed") {
        None => Ok(None),
        Some(v) if v.as_u64().is_some() => Ok(v.as_u64()),
        Some(v) if v.as_i64().is_some() => Ok(None),
        Some(v) => Err(wrong("seed", "a whole number", &v)),
    }
}

/// Not one of OpenAI's, but customary; 0 and −1 mean all tokens.
fn top_k(f: &mut Fields) -> Result<Option<usize>, ApiError> {
    match f.take("top_k") {
        None => Ok(None),
        Some(v) if v.as_i64() == Some(-1) => Ok(None),
        Some(v) => match v.as_u64() {
            Some(k) => Ok(usize::try_from(k).ok().filter(|k| *k > 0)),
            None => Err(wrong("top_k", "a whole number", &v)),
        },
    }
}

/// `logit_bias`: token ids as keys, −100 to 100.
fn bias(f: &mut Fields) -> Result<Vec<(u32, f32)>, ApiError> {
    const KEY: &str = "logit_bias";
    let map = match f.take(KEY) {
        None => return Ok(Vec::new()),
        Some(Value::Object(map)) => map,
        Some(other) => return Err(wrong(KEY, "an object", &other)),
    };
    let entry = |(id, bias): (&String, &Value)| {
        let id = id.parse().map_err(|_| ApiError::field(KEY, format!("`{id}` is not a token id")))?;
        match bias.as_f64().filter(|b| b.abs() <= 100.0) {
            Some(bias) => Ok((id, bias as f32)),
            None => Err(ApiError::field(KEY, format!("the bias of token {id} must be a number from -100 to 100, not {bias}"))),
        }
    };
    map.iter().map(entry).collect()
}

fn stop(f: &mut Fields) -> Result<Vec<String>, ApiError> {
    const KEY: &str = "stop";
    let list = match f.take(KEY) {
        None => return Ok(Vec::new()),
        Some(Value::Array(list)) => list,
        Some(one) => vec![one],
    };
    if list.len() > MAX_STOPS {
        return Err(ApiError::field(KEY, format!("{} stop strings: {MAX_STOPS} at most", list.len())));
    }
    list.into_iter()
        .map(|v| match v {
            Value::String(s) if s.is_empty() => Err(ApiError::field(KEY, "a stop string is empty")),
            Value::String(s) if s.len() > MAX_STOP_BYTES => {
                Err(ApiError::field(KEY, format!("a stop string of {} bytes: {MAX_STOP_BYTES} at most", s.len())))
            }
            Value::String(s) => Ok(s),
            other => Err(wrong(KEY, "a string or a list of strings", &other)),
        })
        .collect()
}

fn include_usage(f: &mut Fields, stream: bool) -> Result<bool, ApiError> {
    const KEY: &str = "stream_options";
    let map = match f.take(KEY) {
        None => return Ok(false),
        Some(_) if !stream => return Err(ApiError::field(KEY, "`stream_options` needs `stream`: true")),
        Some(Value::Object(map)) => map,
        Some(other) => return Err(wrong(KEY, "an object", &other)),
    };
    let mut include = false;
    for (key, value) in map {
        match (key.as_str(), value) {
            ("include_usage", Value::Bool(b)) => include = b,
            ("include_usage", v) => return Err(wrong("stream_options.include_usage", "true or false", &v)),
            // Padding against side channels, which matter on other networks than this.
            ("include_obfuscation", Value::Bool(false)) | (_, Value::Null) => {}
            (other, _) => return Err(ApiError::field(KEY, format!("`stream_options.{other}` is not supported by this server"))),
        }
    }
    Ok(include)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completion(body: Value) -> Result<Request, ApiError> {
        Request::completion(body.to_string().as_bytes())
    }

    #[test]
    fn prompts_of_all_shapes() {
        let prompts = |v: Value| completion(json!({ "prompt": v })).map(|r| r.prompts).map_err(|e| e.message);
        assert_eq!(prompts(json!("a")), Ok(vec![Prompt::Text("a".into())]));
        assert_eq!(prompts(json!(["a", "b"])).unwrap().len(), 2);
        assert_eq!(prompts(json!([1, 2])), Ok(vec![Prompt::Tokens(vec![1, 2])]));
        assert_eq!(prompts(json!([[1], [2, 3]])), Ok(vec![Prompt::Tokens(vec![1]), Prompt::Tokens(vec![2, 3])]));
        for bad in
            [json!([]), json!(3), json!([-1]), json!([1.5]), json!([[1], 2]), json!([{"a": 1}]), json!([[5_000_000_000u64]])]
        {
            assert!(prompts(bad.clone()).is_err(), "{bad}");
        }
        assert!(prompts(json!(vec!["a"; MAX_CHOICES])).is_ok());
        assert!(prompts(json!(vec!["a"; MAX_CHOICES + 1])).is_err());
    }

    #[test]
    fn defaults_are_openais() {
        let r = completion(json!({"prompt": "a"})).unwrap();
        assert_eq!((r.max_tokens, r.sampling.temperature, r.n, r.seeded, r.stream), (Some(16), 1.0, 1, false, false));
        let r = Request::chat(br#"{"messages":[{"role":"user","content":"a"}], "max_tokens": null}"#).unwrap();
        assert_eq!((r.max_tokens, r.logprobs), (None, None));
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_with_the_fields_name() {
        for (key, value) in [
            ("suffix", json!("x")),
            ("best_of", json!(2)),
            ("n", json!(0)),
            ("n", json!("1")),
            ("temperature", json!(-1)),
            ("temperature", json!("hot")),
            ("top_p", json!(1.5)),
            ("max_tokens", json!(-1)),
            ("max_tokens", json!(1.5)),
            ("logprobs", json!(21)),
            ("logprobs", json!(true)),
            ("stop", json!(["a", 1])),
            ("stop", json!("")),
            ("stop", json!(vec!["a"; 33])),
            ("seed", json!("x")),
            ("stream", json!(1)),
            ("stream_options", json!({"include_usage": true})),
            ("logit_bias", json!({"x": 1})),
            ("logit_bias", json!({"1": 101})),
            ("min_tokens", json!(17)),
            ("store", json!(true)),
            ("mirostat", json!(2)),
        ] {
            let e = completion(json!({"prompt": "a", key: value})).expect_err(&format!("{key}: {value}"));
            assert_eq!((e.status.as_u16(), e.param.as_deref()), (400, Some(key)), "{key}: {value}");
        }
        let harmless =
            json!({"prompt": "a", "n": 1, "best_of": 1, "user": "me", "suffix": null, "logit_bias": {}, "store": false});
        completion(harmless).unwrap();
        for body in ["", "{", "[]", "3", "{\"prompt\": \"\\ud800\"}"] {
            assert!(Request::completion(body.as_bytes()).is_err(), "{body}");
        }
    }

    #[test]
    fn messages_of_text_only() {
        let chat = |m: Value| Request::chat(json!({"messages": m}).to_string().as_bytes());
        let parts =
            json!([{"role": "user", "type": "text", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]);
        assert_eq!(chat(parts).unwrap().prompts, [Prompt::Chat(vec![ChatMessage::new("user", "ab")])]);
        for bad in [
            json!([]),
            json!("hi"),
            json!(["hi"]),
            json!([{"content": "a"}]),
            json!([{"role": "user"}]),
            json!([{"role": "user", "content": 3}]),
            json!([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]),
            json!([{"role": "assistant", "content": "a", "tool_calls": [{}]}]),
        ] {
            assert_eq!(chat(bad.clone()).expect_err(&bad.to_string()).status.as_u16(), 400);
        }
        let with = |key: &str, v: Value| {
            let body = json!({"messages": [{"role": "user", "content": "a"}], key: v});
            Request::chat(body.to_string().as_bytes())
        };
        assert!(with("tools", json!([{"type": "function"}])).is_err());
        assert!(with("response_format", json!({"type": "json_object"})).is_err());
        assert!(with("top_logprobs", json!(2)).is_err());
        assert!(with("tools", json!([])).is_ok());
        assert_eq!(with("logprobs", json!(true)).unwrap().logprobs, Some(0));
    }
}

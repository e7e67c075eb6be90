//! A chat template in Ollama's language, found out from what the model's own template does.
//!
//! Hugging Face's templates are Jinja, Ollama's are Go's, and neither can be translated in general. But what a template prints around
//! each turn can be read off from a few conversations. That is put into one of the [`FORMS`] that templates have, and the result is
//! rendered and compared, conversation by conversation. Either it prints the same, or there is none.

use super::go::Template;
use bitsmith_formats::{Error, Result};
use bitsmith_runtime::Tokenizer;
use bitsmith_runtime::tokenizer::ChatMessage;
use serde_json::{Value, json};

/// How to talk with a model through Ollama.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Chat {
    /// `TEMPLATE`.
    pub template: String,
    /// `SYSTEM`: what the model's own template says where the conversation says nothing.
    pub system: Option<String>,
    /// Texts that end an answer.
    pub stops: Vec<String>,
}

/// Where the system prompt stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// In a turn of its own: ChatML, Llama 3, Phi, Zephyr, Granite, Command-R, Mistral since v7.
    OwnTurn,
    /// In the first question: Llama 2, Gemma.
    FirstQuestion,
    /// In the last question: Mistral up to v3.
    LastQuestion,
    /// Nowhere: the template refuses it.
    None,
}

/// In the order in which they are tried.
const FORMS: [Form; 4] = [Form::OwnTurn, Form::FirstQuestion, Form::LastQuestion, Form::None];

/// The template for models that have none: the prompt as it is.
pub const PLAIN: &str = "{{ .Prompt }}";

/// Finds the form of the tokenizer's chat template. `Ok(None)`: it has none. An error says why none of the forms is its.
pub fn chat(tokenizer: &Tokenizer) -> Result<Option<Chat>> {
    if tokenizer.chat_template().is_none() {
        return Ok(None);
    }
    let bos = tokenizer.bos().and_then(|id| tokenizer.token(id)).unwrap_or_default();
    // Ollama's runner puts BOS before every prompt where the tokenizer does, so that the template must not.
    let dropped = if tokenizer.adds_bos() { bos.as_str() } else { "" };
    let ends: Vec<String> = tokenizer.eos().iter().filter_map(|&id| tokenizer.token(id)).collect();
    let render = |messages: &[ChatMessage], prompt: bool| tokenizer.render_timeless(messages, prompt);
    find(&render, dropped, &ends, &|text| special_prefix(tokenizer, text)).map(Some)
}

/// The special token at the beginning of a text.
fn special_prefix(tokenizer: &Tokenizer, text: &str) -> Option<String> {
    let first = *tokenizer.encode(text.trim_start(), false).ok()?.first()?;
    let token = tokenizer.token(first)?;
    let is_special = text.trim_start().starts_with(&token) && tokenizer.decode(&[first], true).is_ok_and(|t| t.is_empty());
    is_special.then_some(token)
}

type Render<'a> = dyn Fn(&[ChatMessage], bool) -> Result<String> + 'a;

fn find(render: &Render<'_>, bos: &str, ends: &[String], special: &dyn Fn(&str) -> Option<String>) -> Result<Chat> {
    let turns =
        Turns::read(render).ok_or_else(|| Error::unsupported("the chat template's turns are not told apart by fixed texts"))?;
    for form in FORMS {
        let Some((go, system)) = turns.write(form, render, bos) else { continue };
        if agrees(&go, system.as_deref(), form, render, bos)? {
            let stops = turns.stops(ends, special);
            return Ok(Chat { template: go, system: system.filter(|s| !s.is_empty()), stops });
        }
    }
    Err(Error::unsupported("the chat template does more than Ollama's templates can"))
}

/// What stands around the words of a conversation.
#[derive(Debug)]
struct Turns {
    /// Before the first question where there is no system prompt, without what stands before every question.
    opening: String,
    question: (String, String),
    answer: (String, String),
    /// Asks for an answer.
    prompt: String,
}

/// Words that no template looks for.
const SYSTEM: &str = "be brief";
const WORDS: [&str; 5] = ["what is it", "a lighthouse", "how tall", "very tall", "since when"];

fn conversation(system: Option<&str>, words: &[&str]) -> Vec<ChatMessage> {
    let turn = |(i, text): (usize, &&str)| ChatMessage::new(if i % 2 == 0 { "user" } else { "assistant" }, *text);
    system.map(|s| ChatMessage::new("system", s)).into_iter().chain(words.iter().enumerate().map(turn)).collect()
}

impl Turns {
    fn read(render: &Render<'_>) -> Option<Turns> {
        let [u1, a1, u2, ..] = WORDS;
        let text = |words: &[&str], prompt| render(&conversation(None, words), prompt).ok();
        let (before, after) = cut(&text(&[u1], false)?, u1)?;
        let prompt = cut(&text(&[u1], true)?, u1)?.1.strip_prefix(after.as_str())?.to_string();
        let whole = text(&[u1, a1, u2], false)?;
        let (_, rest) = cut(&whole, u1)?;
        let (between, rest) = cut(&rest, a1)?;
        let answer = between.strip_prefix(after.as_str())?.to_string();
        let next = cut(&rest, u2)?.0;
        // What stands before every question is what the first and the second have in common, up to what ends an answer.
        let closing = cut(&text(&[u1, a1], false)?, a1)?.1;
        let question = match next.strip_prefix(closing.as_str()) {
            Some(question) if before.ends_with(question) => question.to_string(),
            _ => common_suffix(&before, &next).to_string(),
        };
        let opening = before.strip_suffix(question.as_str())?.to_string();
        let closing = next.strip_suffix(question.as_str())?.to_string();
        Some(Turns { opening, question: (question, after), answer: (answer, closing), prompt })
    }

    /// The Go template, and the system prompt that it has where none is given.
    fn write(&self, form: Form, render: &Render<'_>, bos: &str) -> Option<(String, Option<String>)> {
        let (before, after) = (&self.question.0, &self.question.1);
        let text = render(&conversation(Some(SYSTEM), &WORDS[..1]), false).ok();
        let with_system = text.and_then(|t| cut(&t, SYSTEM)).and_then(|(a, rest)| Some((a, cut(&rest, WORDS[0])?.0)));
        let mut opening = self.opening.clone();
        let mut default = None;
        let rest = |text: &str| literal(text.strip_prefix(bos).unwrap_or(text));
        let (mut first, mut system_turn) = (String::new(), String::new());
        let question = match form {
            Form::None => format!("{}{{{{ .Content }}}}", literal(before)),
            Form::OwnTurn => {
                let (a, b) = with_system?;
                let b = b.strip_suffix(before.as_str())?;
                // A default prompt in the system turn becomes Ollama's SYSTEM, which users can change.
                if let Some(d) = opening.strip_prefix(a.as_str()).and_then(|o| o.strip_suffix(b)) {
                    default = Some(d.to_string());
                }
                system_turn =
                    format!("{{{{ if eq .Role \"system\" }}}}{}{{{{ .Content }}}}{}{{{{ else }}}}", rest(&a), literal(b));
                format!("{}{{{{ .Content }}}}", literal(before))
            }
            Form::FirstQuestion | Form::LastQuestion => {
                let (a, b) = with_system?;
                let is_first = "or (eq $i 0) (and (eq $i 1) (eq (index $.Messages 0).Role \"system\"))";
                let here = if form == Form::FirstQuestion { is_first } else { "eq (len (slice $.Messages $i)) 1" };
                let a = if form == Form::FirstQuestion { rest(&a) } else { literal(a.strip_prefix(opening.as_str())?) };
                format!(
                    "{{{{ if and $.System ({here}) }}}}{a}{{{{ $.System }}}}{}{{{{ .Content }}}}{{{{ else }}}}{}{{{{ .Content }}}}{{{{ end }}}}",
                    literal(&b),
                    literal(before)
                )
            }
        };
        // BOS before the first question may be part of what stands before every question.
        let mut question = question;
        if !bos.is_empty() {
            match opening.strip_prefix(bos) {
                Some(o) => opening = o.to_string(),
                None if opening.is_empty() && before.starts_with(bos) => {
                    let always = literal(before);
                    let later = format!("{{{{ if $i }}}}{}{{{{ end }}}}{}", literal(bos), rest(before));
                    question = question.replace(&format!("{always}{{{{ .Content }}}}"), &format!("{later}{{{{ .Content }}}}"));
                }
                None => {}
            }
        }
        if !opening.is_empty() && default.as_deref().is_none_or(str::is_empty) {
            first = format!("{{{{ if not .System }}}}{}{{{{ end }}}}", literal(&opening));
        }
        if matches!(form, Form::LastQuestion) {
            first = literal(&opening);
        }
        let last = "eq (len (slice $.Messages $i)) 1";
        let end = if system_turn.is_empty() { "" } else { "{{ end }}" };
        let go = format!(
            "{first}{{{{ range $i, $m := .Messages }}}}{system_turn}\
             {{{{ if eq .Role \"user\" }}}}{question}{}{{{{ if {last} }}}}{}{{{{ end }}}}\
             {{{{ else if eq .Role \"assistant\" }}}}{}{{{{ .Content }}}}{{{{ if not ({last}) }}}}{}{{{{ end }}}}{{{{ end }}}}{end}{{{{ end }}}}",
            literal(after),
            literal(&self.prompt),
            literal(&self.answer.0),
            literal(&self.answer.1),
        );
        Some((go, default))
    }

    /// The ends of a text, the token that closes an answer, and, where no token does, the beginning of the next question.
    fn stops(&self, ends: &[String], special: &dyn Fn(&str) -> Option<String>) -> Vec<String> {
        let mut stops = ends.to_vec();
        let closing = special(&self.answer.1);
        if closing.is_none() {
            stops.extend(Some(self.question.0.trim().to_string()).filter(|s| s.chars().count() > 2 && special(s).is_none()));
        }
        stops.extend(closing);
        // The first of each.
        let mut seen = Vec::new();
        stops.retain(|s| {
            !s.is_empty() && !seen.contains(s) && {
                seen.push(s.clone());
                true
            }
        });
        stops
    }
}

/// Whether the Go template prints what the model's own does.
fn agrees(go: &str, default: Option<&str>, form: Form, render: &Render<'_>, bos: &str) -> Result<bool> {
    let template = Template::parse(go)?;
    let odd = ["3 < 4 & \"so\"?", "{{ no }} {% none %}\n\n- 'quoted'", "日本語 \\n"];
    let mut probes = vec![WORDS[..1].to_vec(), WORDS[..3].to_vec(), WORDS.to_vec(), odd.to_vec()];
    probes.push(vec!["again", "again", "again"]);
    for words in probes {
        for system in [None, Some(SYSTEM)] {
            if system.is_some() && form == Form::None {
                continue;
            }
            let theirs = match render(&conversation(system, &words), true) {
                Ok(text) => text,
                Err(_) => return Ok(false),
            };
            let ours = template.render(&data(&conversation(system.or(default.filter(|d| !d.is_empty())), &words)))?;
            if ours != theirs.strip_prefix(bos).unwrap_or(&theirs) {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// A conversation as Ollama hands it to a template.
fn data(messages: &[ChatMessage]) -> Value {
    let system: Vec<&str> = messages.iter().filter(|m| m.role == "system").filter_map(|m| m.content.as_str()).collect();
    let list: Vec<Value> = messages.iter().map(|m| json!({ "Role": m.role, "Content": m.content })).collect();
    json!({ "System": system.join("\n\n"), "Messages": list, "Tools": null, "Response": "" })
}

/// A text before and after a word that it has once.
fn cut(text: &str, word: &str) -> Option<(String, String)> {
    let (before, after) = text.split_once(word)?;
    (!after.contains(word)).then(|| (before.to_string(), after.to_string()))
}

fn common_suffix<'a>(a: &str, b: &'a str) -> &'a str {
    let len = a.chars().rev().zip(b.chars().rev()).take_while(|(x, y)| x == y).map(|(_, y)| y.len_utf8()).sum::<usize>();
    &b[b.len() - len..]
}

/// A text as a Go template prints it.
fn literal(text: &str) -> String {
    text.replace("{{", "{{ \"{{\" }}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitsmith_runtime::tokenizer::ChatTemplates;

    /// Templates of the families, written as those of the models are.
    const CHATML: &str = "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    const LLAMA2: &str = "{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}{% set system = messages[0].content %}{% else %}{% set rest = messages %}{% set system = false %}{% endif %}{% for m in rest %}{% if loop.first and system %}{% set content = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + m.content %}{% else %}{% set content = m.content %}{% endif %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + content + ' [/INST]' }}{% else %}{{ ' ' + content + ' ' + eos_token }}{% endif %}{% endfor %}";
    const MISTRAL: &str = "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set rest = messages[1:] %}{% else %}{% set rest = messages %}{% endif %}{{ bos_token }}{% for m in rest %}{% if m.role == 'user' %}{% if loop.last and system is defined %}{{ '[INST] ' + system + '\n\n' + m.content + '[/INST]' }}{% else %}{{ '[INST] ' + m.content + '[/INST]' }}{% endif %}{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}";
    const GEMMA: &str = "{{ bos_token }}{% if messages[0].role == 'system' %}{% set first = messages[0].content + '\n\n' %}{% set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}{% for m in rest %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ first if loop.first }}{{ m.content | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}";
    const GEMMA1: &str = "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}";
    const LLAMA3: &str = "{% if not date_string is defined %}{% if strftime_now is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% else %}{% set date_string = '26 Jul 2024' %}{% endif %}{% endif %}{% if messages[0].role == 'system' %}{% set system = messages[0].content | trim %}{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}{{ bos_token }}<|start_header_id|>system<|end_header_id|>\n\nToday Date: {{ date_string }}\n\n{{ system }}<|eot_id|>{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}";
    const PLAIN_TEXT: &str = "{% for m in messages %}{% if m.role == 'user' %}User: {{ m.content }}\n{% elif m.role == 'assistant' %}Assistant: {{ m.content }}\n{% else %}{{ m.content }}\n{% endif %}{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}";
    const NONE: &str = "{% for m in messages %}{{ loop.index }}. {{ m.content | upper }}\n{% endfor %}";

    fn chat_of(template: &str, bos: &str) -> Result<Chat> {
        let templates = ChatTemplates { default: Some(template.into()), named: Vec::new() };
        let special = [("bos_token", "<s>".to_string()), ("eos_token", "</s>".to_string())];
        let render = |m: &[ChatMessage], prompt: bool| templates.render_timeless(m, prompt, special.clone().into_iter());
        let tokens = ["</s>", "<|im_end|>", "<|im_start|>", "<end_of_turn>", "<start_of_turn>", "<|eot_id|>"];
        let first = |text: &str| tokens.iter().find(|t| text.trim_start().starts_with(**t)).map(|t| t.to_string());
        find(&render, bos, &["</s>".to_string()], &first)
    }

    #[test]
    fn families() {
        for (name, template, system, stops) in [
            ("chatml", CHATML, Some("You help."), vec!["</s>", "<|im_end|>"]),
            ("llama 2", LLAMA2, None, vec!["</s>"]),
            ("mistral", MISTRAL, None, vec!["</s>"]),
            ("gemma", GEMMA, None, vec!["</s>", "<end_of_turn>"]),
            ("gemma 1", GEMMA1, None, vec!["</s>", "<end_of_turn>"]),
            ("llama 3", LLAMA3, None, vec!["</s>", "<|eot_id|>"]),
            ("plain", PLAIN_TEXT, None, vec!["</s>", "User:"]),
        ] {
            for bos in ["", "<s>"] {
                let chat = chat_of(template, bos).unwrap_or_else(|e| panic!("{name}: {e}"));
                assert_eq!(chat.system.as_deref(), system, "{name}");
                assert_eq!(chat.stops, stops, "{name}");
                // What an answer that is to be continued looks like: nothing after its words.
                let words = conversation(None, &WORDS[..2]);
                let text = Template::parse(&chat.template).unwrap().render(&data(&words)).unwrap();
                assert!(text.ends_with(WORDS[1]), "{name}: {text}");
                assert!(bos.is_empty() || !text.starts_with(bos), "{name}: {text}");
            }
        }
    }

    #[test]
    fn what_has_no_form_is_refused() {
        assert_eq!(chat_of(NONE, "").unwrap_err().kind.exit_code(), 69);
        // Changed by what was said before.
        let fickle = CHATML.replace("{{ m.content }}", "{{ m.content if loop.last else m.content[:3] }}");
        assert!(chat_of(&fickle, "").is_err());
    }
}

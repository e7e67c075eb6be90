//! Tokenizers and chat templates.

use super::{Row, row};
use crate::support::{Work, edit_json};
use crate::tiny::LLAMA;
use serde_json::{Value, json};
use std::fs;

const FILE: &str = "tokenizer.json";

fn with(work: &Work, line: &str, change: impl FnOnce(&mut Value)) -> String {
    let path = LLAMA.write(work, "model").join(FILE);
    let mut json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut json);
    fs::write(path, json.to_string()).unwrap();
    line.into()
}

const TOKENIZE: &str = "tokenize model -p text";
const CONVERT: &str = "convert model --to gguf:bf16 -o d.gguf";

fn with_template(work: &Work, template: &str) -> String {
    edit_json(&LLAMA.write(work, "model").join("tokenizer_config.json"), "chat_template", json!(template));
    "generate model --chat -p x -n 1".into()
}

pub fn rows() -> Vec<Row> {
    vec![
        row("no tokenizer", 66, FILE, "tokenizer.json", |w| {
            fs::remove_file(LLAMA.write(w, "model").join(FILE)).unwrap();
            TOKENIZE.into()
        }),
        row("a tokenizer that ends early", 65, FILE, "JSON", |w| {
            let path = LLAMA.write(w, "model").join(FILE);
            let bytes = fs::read(&path).unwrap();
            fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
            TOKENIZE.into()
        }),
        row("a tokenizer that is nested too deep", 65, FILE, "JSON", |w| {
            LLAMA.write(w, "model");
            w.write("model/tokenizer.json", "{\"normalizer\":".repeat(50_000));
            TOKENIZE.into()
        }),
        row("a merge of tokens that are not there", 65, FILE, "zzzzq", |w| {
            with(w, TOKENIZE, |t| t["model"]["merges"].as_array_mut().unwrap().push(json!(["zzzzq", "qzzzz"])))
        }),
        row("a model of words that nobody knows", 65, FILE, "not a usable tokenizer", |w| {
            with(w, TOKENIZE, |t| t["model"]["type"] = json!("Oracle"))
        }),
        row("a pattern that cannot be read", 65, FILE, "not a usable tokenizer", |w| {
            with(w, TOKENIZE, |t| {
                t["pre_tokenizer"] =
                    json!({"type": "Split", "pattern": {"Regex": "((("}, "behavior": "Isolated", "invert": false});
            })
        }),
        row("a token beyond the embedding", 65, FILE, "4000000000", |w| {
            with(w, CONVERT, |t| {
                let token = json!({"id": 4_000_000_000u64, "content": "<far>", "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": true});
                t["added_tokens"].as_array_mut().unwrap().push(token);
            })
        }),
        row("two tokens of one id", 65, FILE, "", |w| with(w, CONVERT, |t| t["model"]["vocab"]["he"] = json!(300))),
        row("a template that never ends", 65, FILE, "steps", |w| {
            with_template(w, "{% for a in range(9999) %}{% for b in range(9999) %}{{ a }}{% endfor %}{% endfor %}")
        }),
        row("a template that counts to the moon", 65, FILE, "range()", |w| {
            with_template(w, "{% for a in range(384400000) %}{% endfor %}")
        }),
        row("a template that is no template", 65, FILE, "chat template", |w| with_template(w, "{% for %}{{")),
        row("a template that is no text", 65, "tokenizer_config.json", "chat_template", |w| {
            edit_json(&LLAMA.write(w, "model").join("tokenizer_config.json"), "chat_template", json!(7));
            "generate model --chat -p x -n 1".into()
        }),
    ]
}

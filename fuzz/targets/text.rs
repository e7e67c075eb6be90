//! Tokenizers and chat templates.

use super::tree;
use bitsmith_runtime::tokenizer::{ChatTemplates, GgufVocab};
use bitsmith_runtime::{ChatMessage, Tokenizer};

/// A `tokenizer.json`.
pub fn run_tokenizer(data: &[u8]) {
    let read = |name: &str| Ok((name == "tokenizer.json").then(|| data.to_vec()));
    if let Ok(tokenizer) = Tokenizer::from_hf_files("folder", read) {
        for text in ["The lighthouse, 1999: naïve 灯台\n", "", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"] {
            if let Ok(ids) = tokenizer.encode(text, true) {
                let _ = tokenizer.decode(&ids, false);
            }
        }
    }
    super::with_file("tokenizer.json", data, |path| {
        if let Some(folder) = path.parent() {
            let _ = GgufVocab::from_hf_folder(folder, 300);
        }
    });
}

/// Small tokenizers of every kind.
pub fn tokenizer_seeds() -> Vec<Vec<u8>> {
    [
        r#"{"version":"1.0","added_tokens":[{"id":0,"content":"<s>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}],"normalizer":null,"pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true},"post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<s>","type_id":0}},{"Sequence":{"id":"A","type_id":0}}],"pair":[],"special_tokens":{"<s>":{"id":"<s>","ids":[0],"tokens":["<s>"]}}},"decoder":{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true},"model":{"type":"BPE","dropout":null,"unk_token":null,"continuing_subword_prefix":null,"end_of_word_suffix":null,"fuse_unk":false,"byte_fallback":false,"ignore_merges":false,"vocab":{"<s>":0,"T":1,"h":2,"e":3,"Th":4,"The":5},"merges":[["T","h"],["Th","e"]]}}"#,
        r#"{"version":"1.0","added_tokens":[],"normalizer":{"type":"Sequence","normalizers":[{"type":"Prepend","prepend":"▁"},{"type":"Replace","pattern":{"String":" "},"content":"▁"}]},"pre_tokenizer":null,"post_processor":null,"decoder":{"type":"Sequence","decoders":[{"type":"ByteFallback"},{"type":"Fuse"}]},"model":{"type":"BPE","unk_token":"<unk>","fuse_unk":true,"byte_fallback":true,"vocab":{"<unk>":0,"<0x0A>":1,"▁":2,"T":3,"▁T":4},"merges":["▁ T"]}}"#,
        r####"{"version":"1.0","added_tokens":[],"normalizer":{"type":"BertNormalizer","clean_text":true,"handle_chinese_chars":true,"strip_accents":null,"lowercase":true},"pre_tokenizer":{"type":"BertPreTokenizer"},"post_processor":{"type":"BertProcessing","sep":["[SEP]",2],"cls":["[CLS]",1]},"decoder":{"type":"WordPiece","prefix":"##","cleanup":true},"model":{"type":"WordPiece","unk_token":"[UNK]","continuing_subword_prefix":"##","max_input_chars_per_word":100,"vocab":{"[UNK]":0,"[CLS]":1,"[SEP]":2,"the":3,"##e":4}}}"####,
        r#"{"version":"1.0","added_tokens":[],"normalizer":null,"pre_tokenizer":{"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":"\\p{N}{1,3}|\\s+"},"behavior":"Isolated","invert":false},{"type":"Metaspace","replacement":"▁","prepend_scheme":"always","split":true}]},"post_processor":null,"decoder":null,"model":{"type":"Unigram","unk_id":0,"vocab":[["<unk>",0.0],["▁",-1.0],["T",-2.0]],"byte_fallback":false}}"#,
    ]
    .map(|s| s.as_bytes().to_vec())
    .to_vec()
}

/// A chat template.
pub fn run_template(data: &[u8]) {
    let Ok(source) = std::str::from_utf8(data) else { return };
    let templates = ChatTemplates { default: Some(source.to_string()), named: Vec::new() };
    let messages =
        [ChatMessage::new("system", "Be kind."), ChatMessage::new("user", " Hi "), ChatMessage::new("assistant", "Ho")];
    let special = [("bos_token", "<s>".to_string()), ("eos_token", "</s>".to_string())].into_iter();
    let _ = templates.render_timeless(&messages, true, special);
    let record = serde_json::json!({"q": "Why?", "c": {"text": ["a", "b"]}, "n": 3});
    let _ = bitsmith_runtime::template::render(source, &record);
    let _ = bitsmith_runtime::template::evaluate(source, &record);
}

/// The templates of the golden files, and some of what templates can do.
pub fn template_seeds() -> Vec<Vec<u8>> {
    let golden = std::fs::read(tree("tests/golden/chat/cases.json")).unwrap_or_default();
    let cases: Vec<serde_json::Value> = serde_json::from_slice(&golden).unwrap_or_default();
    let golden = cases.iter().filter_map(|c| c["template"].as_str()).map(|t| t.as_bytes().to_vec());
    let own = [
        "{% for m in messages %}{{ m['role'].strip().upper() }}: {{ m.content | trim | tojson(indent=2) }}{% endfor %}",
        "{%- set ns = namespace(x=0) -%}{% for i in range(9) %}{% set ns.x = ns.x + i %}{% endfor %}{{ ns.x }}",
        "{% macro f(a, b=1) %}{{ a ~ b }}{% endmacro %}{{ f('x') }}{{ 'a,b'.split(',')[1:] }}{{ raise_exception('no') }}",
        "c.text[::-1] + [q.replace('h', 'H'), n * 2 // 3]",
    ];
    golden.chain(own.map(|s| s.as_bytes().to_vec())).collect()
}

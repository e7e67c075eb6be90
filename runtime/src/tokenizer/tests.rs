use super::*;
use bitsmith_formats::ErrorKind;
use serde_json::{Value, json};
use std::fs;

/// A folder with a `tokenizer.json` (and other files).
fn folder(files: &[(&str, Value)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, json) in files {
        fs::write(dir.path().join(name), serde_json::to_vec(json).unwrap()).unwrap();
    }
    dir
}

/// Byte-level BPE with GPT-2's cutting: all bytes, a few merges, three special tokens and one user-defined.
fn byte_level() -> Value {
    let mut vocab = serde_json::Map::new();
    for special in ["<s>", "</s>", "<unk>"] {
        vocab.insert(special.into(), vocab.len().into());
    }
    // The alphabet: printable bytes stand for themselves, the others for characters from 256 on.
    let mut next = 256;
    for b in 0..=255u32 {
        let printable = (33..=126).contains(&b) || (161..=172).contains(&b) || (174..=255).contains(&b);
        let c = char::from_u32(if printable { b } else { next }).unwrap();
        next += u32::from(!printable);
        vocab.insert(c.to_string(), vocab.len().into());
    }
    let merges =
        [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("Ġ", "w"), ("o", "r"), ("Ġw", "or"), ("1", "2"), ("Ġ", "Ġ")];
    for (l, r) in merges {
        vocab.insert(format!("{l}{r}"), vocab.len().into());
    }
    let n = vocab.len();
    let added = |id: usize, content: &str, special: bool| json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": special});
    json!({
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        "added_tokens": [added(0, "<s>", true), added(1, "</s>", true), added(2, "<unk>", true), added(n, "<tool>", false)],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": vocab, "merges": merges.iter().map(|(l, r)| format!("{l} {r}")).collect::<Vec<_>>()},
    })
}

/// SentencePiece-style BPE: byte tokens, letters, a few merges.
fn sentencepiece() -> Value {
    let mut vocab = serde_json::Map::new();
    for token in ["<unk>", "<s>", "</s>"] {
        vocab.insert(token.into(), vocab.len().into());
    }
    for b in 0..=255 {
        vocab.insert(format!("<0x{b:02X}>"), vocab.len().into());
    }
    let merges = [("l", "l"), ("▁", "h"), ("▁h", "e"), ("e", "ll"), ("▁he", "ll"), ("▁hell", "o"), ("▁", "▁")];
    for token in ["▁", "h", "e", "l", "o", "d", "é"] {
        vocab.insert(token.into(), vocab.len().into());
    }
    for (l, r) in merges {
        vocab.insert(format!("{l}{r}"), vocab.len().into());
    }
    let special = |id: usize, content: &str| json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
    let bos = json!({"SpecialToken": {"id": "<s>", "type_id": 0}});
    let text = json!({"Sequence": {"id": "A", "type_id": 0}});
    json!({
        "version": "1.0",
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ]},
        "post_processor": {"type": "TemplateProcessing", "single": [bos, text], "pair": [text, text],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]},
        "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true, "vocab": vocab, "merges": merges},
    })
}

fn config() -> Value {
    json!({"bos_token": "<s>", "eos_token": {"content": "</s>"}, "unk_token": "<unk>"})
}

/// Source, GGUF's terms through metadata and back, and the rebuilt tokenizer.
fn roundtrip(dir: &Path, vocab_size: usize) -> (Tokenizer, GgufVocab, Tokenizer) {
    let source = Tokenizer::from_hf_folder(dir).unwrap();
    let vocab = GgufVocab::from_hf_folder(dir, vocab_size).unwrap();
    let mut metadata = Metadata::new();
    vocab.write(&mut metadata);
    let read = GgufVocab::from_metadata(&metadata).unwrap();
    assert_eq!(GgufVocab { notes: Vec::new(), ..vocab.clone() }, read);
    let rebuilt = Tokenizer::from_gguf(&metadata, "x.gguf").unwrap();
    exported(&vocab, &rebuilt);
    (source, vocab, rebuilt)
}

/// The vocabulary as files of a folder: the same tokenizer, and the same vocabulary again.
fn exported(vocab: &GgufVocab, tokenizer: &Tokenizer) {
    let mut files = vocab.to_hf_files(512).unwrap();
    files.push(("generation_config.json", json!({ "eos_token_id": vocab.all_eos() })));
    let dir = folder(&files);
    let read = |name: &str| Ok(fs::read(dir.path().join(name)).ok());
    let written = Tokenizer::from_hf_files("x.gguf", read).unwrap();
    let texts: Vec<&str> = TEXTS.iter().chain(PROBES).copied().collect();
    verify_roundtrip(tokenizer, &written, &texts).unwrap();
    let described = |t: &Tokenizer| (t.bos(), t.eos().to_vec(), t.unk(), t.pad(), t.adds_bos(), t.templates().clone());
    assert_eq!(described(&written), described(tokenizer));
    // Scores have the same order, in other numbers.
    let plain = |v: &GgufVocab| GgufVocab { notes: Vec::new(), scores: Vec::new(), ..v.clone() };
    assert_eq!(plain(&GgufVocab::from_hf_folder(dir.path(), vocab.tokens.len()).unwrap()), plain(vocab));
}

const TEXTS: [&str; 6] = ["hello world", "hello  world\n\t12 123 don't", "é東🙂", "", "a<s>b<tool>c</s>", "HELLO  \n  \n x "];

#[test]
fn byte_level_through_gguf() {
    let dir = folder(&[("tokenizer.json", byte_level()), ("tokenizer_config.json", config())]);
    let (source, vocab, rebuilt) = roundtrip(dir.path(), 280);
    assert_eq!((vocab.pre.as_str(), vocab.model), ("gpt-2", VocabModel::Bpe));
    assert_eq!((vocab.tokens.len(), vocab.types[268], vocab.types[279]), (280, TokenType::UserDefined, TokenType::Unused));
    assert_eq!(vocab.tokens[279], "[PAD279]");
    assert_eq!(
        (vocab.types[0], vocab.bos, vocab.eos, vocab.unk, vocab.add_bos),
        (TokenType::Control, Some(0), Some(1), Some(2), false)
    );
    let texts: Vec<&str> = TEXTS.iter().chain(PROBES).copied().collect();
    assert!(verify_roundtrip(&source, &rebuilt, &texts).unwrap() > 500);
    for text in texts {
        let ids = source.encode(text, true).unwrap();
        assert_eq!(rebuilt.decode(&ids, false).unwrap(), text);
    }
    assert!(!source.adds_bos() && !rebuilt.adds_bos());
    assert_eq!(source.eos(), rebuilt.eos());
    assert_eq!(source.vocab_size(), 269);
}

#[test]
fn sentencepiece_through_gguf() {
    let dir = folder(&[("tokenizer.json", sentencepiece()), ("tokenizer_config.json", config())]);
    let (source, vocab, rebuilt) = roundtrip(dir.path(), 273);
    assert_eq!((vocab.model, vocab.pre.as_str()), (VocabModel::Spm, "default"));
    assert!(vocab.add_bos && vocab.add_space_prefix && !vocab.remove_extra_whitespaces);
    assert_eq!((vocab.types[0], vocab.types[1], vocab.types[3]), (TokenType::Unknown, TokenType::Control, TokenType::Byte));
    verify_roundtrip(&source, &rebuilt, &TEXTS).unwrap();
    verify_roundtrip(&source, &rebuilt, PROBES).unwrap();
    assert!(rebuilt.adds_bos());
    let hello = rebuilt.encode("hello", true).unwrap();
    assert_eq!(hello, [1, rebuilt.id_of("▁hello").unwrap()]);
    assert_eq!(rebuilt.decode(&hello, true).unwrap(), "hello");
}

#[test]
fn extra_spaces_are_removed_where_the_source_does() {
    let mut json = sentencepiece();
    let list = json["normalizer"]["normalizers"].as_array_mut().unwrap();
    list.insert(0, json!({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}));
    list.insert(0, json!({"type": "Strip", "strip_left": true, "strip_right": true}));
    let dir = folder(&[("tokenizer.json", json), ("tokenizer_config.json", config())]);
    let (source, vocab, rebuilt) = roundtrip(dir.path(), 273);
    assert!(vocab.remove_extra_whitespaces && !vocab.notes.is_empty());
    verify_roundtrip(&source, &rebuilt, &["  hello   hell  ", "x"]).unwrap();
}

#[test]
fn config_decides_about_bos() {
    let mut with = config();
    with["add_bos_token"] = true.into();
    let dir = folder(&[("tokenizer.json", byte_level()), ("tokenizer_config.json", with)]);
    let (source, vocab, rebuilt) = roundtrip(dir.path(), 269);
    assert!(vocab.add_bos && source.adds_bos());
    assert_eq!(rebuilt.encode("h", true).unwrap()[0], 0);
    let mut without = config();
    without["add_bos_token"] = false.into();
    let dir = folder(&[("tokenizer.json", sentencepiece()), ("tokenizer_config.json", without)]);
    assert!(!Tokenizer::from_hf_folder(dir.path()).unwrap().adds_bos());
}

#[test]
fn folders_say_what_goes_around_a_text() {
    let dir = folder(&[("tokenizer.json", byte_level()), ("tokenizer_config.json", config())]);
    let vocab = GgufVocab::from_hf_folder(dir.path(), 280).unwrap();
    let both = GgufVocab { add_bos: true, add_eos: true, pad: Some(2), ..vocab.clone() };
    exported(&both, &Tokenizer::from_vocab(&both, "x.gguf").unwrap());
    let files = both.to_hf_files(77).unwrap();
    let file = |name: &str| &files.iter().find(|(n, _)| *n == name).unwrap().1;
    let special = json!({"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>", "unk_token": "<unk>"});
    assert_eq!(file("special_tokens_map.json"), &special);
    let config = file("tokenizer_config.json");
    assert_eq!((&config["model_max_length"], &config["clean_up_tokenization_spaces"]), (&json!(77), &json!(false)));
    assert!(config.get("chat_template").is_none() && config.get("add_bos_token").is_none());
    // As transformers runs it: the post-processor alone decides.
    let tokenizer = tokenizers::Tokenizer::from_bytes(file("tokenizer.json").to_string()).unwrap();
    let ids = |text, special| tokenizer.encode(text, special).unwrap().get_ids().to_vec();
    assert_eq!(ids("he", true), [&[0], ids("he", false).as_slice(), &[1]].concat());
    assert_eq!(tokenizer.encode(("h", "e"), true).unwrap().get_ids().len(), 6);
    assert_eq!(tokenizer.id_to_token(279), None);
    let e = GgufVocab { bos: None, ..both }.to_hf_files(77).unwrap_err();
    assert!(e.kind == ErrorKind::Corrupt && e.message.contains("BOS"), "{e}");
    // Several templates keep their names.
    let templates = ChatTemplates { default: Some("D".into()), named: vec![("rag".into(), "R".into())] };
    let several = GgufVocab { templates, ..vocab };
    exported(&several, &Tokenizer::from_vocab(&several, "x.gguf").unwrap());
}

#[test]
fn end_tokens_come_from_all_configs() {
    let dir = folder(&[
        ("tokenizer.json", byte_level()),
        ("tokenizer_config.json", config()),
        ("generation_config.json", json!({"eos_token_id": [2, 1]})),
        ("config.json", json!({"eos_token_id": 7, "bos_token_id": 0})),
    ]);
    let (source, _, rebuilt) = roundtrip(dir.path(), 269);
    assert_eq!(source.eos(), [1, 2]);
    assert_eq!(rebuilt.eos(), [1, 2]);
}

#[test]
fn every_pre_tokenizer_can_be_rebuilt_and_loses_no_text() {
    let dir = folder(&[("tokenizer.json", byte_level()), ("tokenizer_config.json", config())]);
    let vocab = GgufVocab::from_hf_folder(dir.path(), 269).unwrap();
    for entry in pre::PRE_TOKENIZERS {
        let tokenizer = Tokenizer::from_vocab(&GgufVocab { pre: entry.names[0].into(), ..vocab.clone() }, "x").unwrap();
        for text in PROBES {
            let ids = tokenizer.encode(text, false).unwrap();
            assert_eq!(tokenizer.decode(&ids, false).unwrap(), *text, "{}", entry.names[0]);
        }
        // What we write is recognised as itself, or as the plainer one with the same expressions.
        if let Ok(found) = pre::recognise(&pre::to_json(entry), Some(entry.ignore_merges)) {
            assert_eq!(found.splits, entry.splits);
        }
    }
}

#[test]
fn special_tokens_in_text_can_be_left_alone() {
    let dir = folder(&[("tokenizer.json", byte_level()), ("tokenizer_config.json", config())]);
    let mut tokenizer = Tokenizer::from_hf_folder(dir.path()).unwrap();
    assert_eq!(tokenizer.encode("<s>", false).unwrap(), [0]);
    tokenizer.set_parse_special(false);
    assert_eq!(tokenizer.encode("<s>", false).unwrap().len(), 3);
}

#[test]
fn disagreement_is_found_and_named() {
    let dir = folder(&[("tokenizer.json", byte_level()), ("tokenizer_config.json", config())]);
    let (source, mut vocab, _) = roundtrip(dir.path(), 269);
    vocab.merges.pop();
    let broken = Tokenizer::from_vocab(&vocab, "x.gguf").unwrap();
    verify_roundtrip(&source, &broken, &["hello"]).unwrap();
    let e = verify_roundtrip(&source, &broken, &["hello", "hello  \n"]).unwrap_err();
    assert!(e.message.contains("text 2") && e.message.contains("token 1"), "{}", e.message);
}

#[test]
fn streaming_gives_whole_characters() {
    for (json, size) in [(byte_level(), 269), (sentencepiece(), 273)] {
        let dir = folder(&[("tokenizer.json", json), ("tokenizer_config.json", config())]);
        let (_, _, tokenizer) = roundtrip(dir.path(), size);
        let text = "hello é東🙂 hello\n";
        let ids = tokenizer.encode(text, false).unwrap();
        let mut stream = tokenizer.stream(&[]);
        let pieces: Vec<String> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
        assert!(pieces.iter().all(|p| !p.contains('\u{fffd}')));
        assert_eq!(pieces.concat() + &stream.finish().unwrap(), text);
        // After a prompt, a leading space is part of the output.
        let prompt = tokenizer.encode("hello", false).unwrap();
        let both = tokenizer.encode("hello hello", false).unwrap();
        let mut stream = tokenizer.stream(&prompt);
        let rest: String = both[prompt.len()..].iter().map(|&id| stream.push(id).unwrap()).collect();
        assert_eq!(rest, " hello");
    }
    let dir = folder(&[("tokenizer.json", byte_level())]);
    let tokenizer = Tokenizer::from_hf_folder(dir.path()).unwrap();
    let mut stream = tokenizer.stream(&[]);
    let half = tokenizer.encode("é", false).unwrap()[0];
    assert_eq!(stream.push(half).unwrap(), "");
    assert_eq!(stream.finish().unwrap(), "\u{fffd}");
}

#[test]
fn chat_templates_run_like_jinja_in_python() {
    let template = "{% for m in messages %}\n    {% if m.role not in ['user', 'assistant'] %}{{ raise_exception('no ' + m['role']) }}{% endif %}\n{{ bos_token }}[{{ m['role'].upper() }}] {% generation %}{{ m.content.strip() | replace('a', 'b') }}{% endgeneration %}\n\n{% endfor %}{% if tools is none and add_generation_prompt %}{{ messages | tojson }}{{ messages[0].get('name', '-') }}{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}{% endif %}";
    let mut with = config();
    with["chat_template"] = json!([{"name": "tool_use", "template": "T"}, {"name": "default", "template": template}]);
    let dir = folder(&[("tokenizer.json", byte_level()), ("tokenizer_config.json", with)]);
    let (source, _, rebuilt) = roundtrip(dir.path(), 269);
    let messages = [ChatMessage::new("user", " a<b ")];
    let expected = "<s>[USER] b<b\n[{\"role\": \"user\", \"content\": \" a<b \"}]-role=user;content= a<b ;";
    for t in [&source, &rebuilt] {
        assert_eq!(t.apply_chat(&messages, true).unwrap(), expected);
        assert_eq!(t.apply_chat(&messages, false).unwrap(), "<s>[USER] b<b\n");
        let e = t.apply_chat(&[ChatMessage::new("tool", "")], true).unwrap_err();
        assert!(e.message.contains("no tool"), "{}", e.message);
    }
    assert_eq!(source.templates().named, [("tool_use".to_string(), "T".to_string())]);
    fs::write(dir.path().join("chat_template.jinja"), "J").unwrap();
    assert_eq!(Tokenizer::from_hf_folder(dir.path()).unwrap().chat_template(), Some("J"));
}

#[test]
fn bad_input_has_its_kind() {
    let empty = tempfile::tempdir().unwrap();
    let e = Tokenizer::from_hf_folder(empty.path()).unwrap_err();
    assert_eq!(e.kind, ErrorKind::Missing);
    assert!(e.file.unwrap().ends_with("tokenizer.json") && e.hint.is_some());

    let dir = folder(&[("tokenizer.json", json!({"model": {}}))]);
    assert_eq!(Tokenizer::from_hf_folder(dir.path()).unwrap_err().kind, ErrorKind::Corrupt);
    fs::write(dir.path().join("tokenizer.json"), b"{").unwrap();
    assert_eq!(Tokenizer::from_hf_folder(dir.path()).unwrap_err().kind, ErrorKind::Corrupt);

    let kind =
        |json: Value, size: usize| GgufVocab::from_hf_folder(folder(&[("tokenizer.json", json)]).path(), size).unwrap_err().kind;
    assert_eq!(kind(byte_level(), 100), ErrorKind::Corrupt);
    let mut odd = byte_level();
    odd["pre_tokenizer"] = json!({"type": "Whitespace"});
    assert_eq!(kind(odd, 269), ErrorKind::Unsupported);
    let mut odd = byte_level();
    odd["normalizer"] = json!({"type": "Lowercase"});
    assert_eq!(kind(odd, 269), ErrorKind::Unsupported);
    let mut odd = byte_level();
    odd["model"]["type"] = "Unigram".into();
    assert_eq!(kind(odd, 269), ErrorKind::Unsupported);
    // A token that merges do not reach, with a reader that would not take it as it is.
    let mut odd = byte_level();
    odd["model"]["vocab"]["zz"] = 270.into();
    assert!(GgufVocab::from_hf_folder(folder(&[("tokenizer.json", odd.clone())]).path(), 271).is_ok());
    odd["model"]["ignore_merges"] = true.into();
    assert_eq!(kind(odd, 271), ErrorKind::Unsupported);

    let mut metadata = Metadata::new();
    assert_eq!(GgufVocab::from_metadata(&metadata).unwrap_err().kind, ErrorKind::Missing);
    metadata.set("tokenizer.ggml.model", "t5");
    assert_eq!(GgufVocab::from_metadata(&metadata).unwrap_err().kind, ErrorKind::Unsupported);
    metadata.set("tokenizer.ggml.model", "gpt2");
    metadata.set("tokenizer.ggml.tokens", vec!["a".to_string(), "a".to_string()]);
    metadata.set("tokenizer.ggml.merges", Vec::<String>::new());
    assert_eq!(Tokenizer::from_gguf(&metadata, "x").unwrap_err().kind, ErrorKind::Corrupt);
    metadata.set("tokenizer.ggml.pre", "from-the-future");
    assert_eq!(GgufVocab::from_metadata(&metadata).unwrap_err().kind, ErrorKind::Unsupported);
}

#[test]
fn tokens_stand_for_bytes() {
    for (json, text) in [(byte_level(), "hello wor 12  é€\n\u{7f}\u{ad}"), (sentencepiece(), "hello hell é€")] {
        let dir = folder(&[("tokenizer.json", json)]);
        let tokenizer = Tokenizer::from_hf_folder(dir.path()).unwrap();
        let ids = tokenizer.encode(text, false).unwrap();
        let bytes: Vec<u8> = ids.iter().flat_map(|id| tokenizer.bytes(*id).unwrap()).collect();
        assert_eq!(String::from_utf8(bytes).unwrap().trim_start(), text);
        assert!(ids.iter().any(|id| String::from_utf8(tokenizer.bytes(*id).unwrap()).is_err()), "no part of a character");
        let special = tokenizer.id_of("</s>").unwrap();
        assert_eq!(tokenizer.bytes(special).unwrap(), b"</s>");
        assert_eq!(tokenizer.bytes(100_000), None);
    }
}

/// WordPiece: special tokens, letters alone and inside words, a few pieces.
fn wordpiece(lowercase: bool) -> Value {
    let specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
    let letters = ('a'..='z').flat_map(|c| [c.to_string(), format!("##{c}")]);
    let pieces = ["hello", "he", "##llo", "wor", "##ld", "12", "##12", "Don", "'", "<", ">", "/", "東", "é"].map(String::from);
    let tokens: Vec<String> = specials.map(String::from).into_iter().chain(letters).chain(pieces).collect();
    let vocab: serde_json::Map<String, Value> = tokens.iter().enumerate().map(|(i, t)| (t.clone(), i.into())).collect();
    let special = |(id, content): (usize, &str)| json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
    json!({
        "version": "1.0",
        "added_tokens": specials.into_iter().enumerate().map(special).collect::<Vec<_>>(),
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null,
            "lowercase": lowercase},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
            "vocab": vocab},
    })
}

#[test]
fn wordpiece_through_metadata() {
    let config = json!({"cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]", "pad_token": "[PAD]"});
    for lowercase in [true, false] {
        let dir = folder(&[("tokenizer.json", wordpiece(lowercase)), ("tokenizer_config.json", config.clone())]);
        let (source, vocab, rebuilt) = roundtrip(dir.path(), 80);
        let texts: Vec<&str> = TEXTS.iter().chain(PROBES).copied().collect();
        verify_roundtrip(&source, &rebuilt, &texts).unwrap();
        assert_eq!((vocab.bos, vocab.eos, vocab.unk, vocab.pad), (Some(2), Some(3), Some(1), Some(0)));
        assert_eq!((vocab.lowercase, vocab.strip_accents), (lowercase, lowercase));
        // Pieces that begin a word, that continue one, and special tokens.
        assert_eq!([5, 6, 2].map(|id| vocab.tokens[id].as_str()), ["▁a", "a", "[CLS]"]);
        let ids = rebuilt.encode("Hello he12", true).unwrap();
        let hello = if lowercase { vec![57] } else { vec![1] };
        assert_eq!(ids, [vec![2], hello, vec![58, 63, 3]].concat());
    }
}

#[test]
fn other_wordpieces_are_refused() {
    let mut other = wordpiece(true);
    other["pre_tokenizer"] = json!({"type": "Whitespace"});
    let mut bare = wordpiece(true);
    bare["post_processor"] = Value::Null;
    for (tokenizer, word) in [(other, "BERT's"), (bare, "around a text")] {
        let dir = folder(&[("tokenizer.json", tokenizer)]);
        let e = GgufVocab::from_hf_folder(dir.path(), 80).unwrap_err();
        assert!(e.kind == ErrorKind::Unsupported && e.message.contains(word), "{e}");
    }
}

//! How byte-level BPE tokenizers cut text into words: the table behind `tokenizer.ggml.pre`.
//!
//! A Hugging Face tokenizer describes its cutting as a chain of pre-tokenizers with regular expressions; GGUF has only a name, and
//! every reader knows by heart what to do for it. [`recognise`] finds the name from the chain's structure, [`by_name`] goes back.
//! In both directions a cutting is a list of expressions, applied one after the other; matches and the text between them
//! become separate words.

use bitsmith_formats::{Error, Result};
use serde_json::{Value, json};

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK3: &str = "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+";
/// Cased letters. Those that normalization would turn into others are spelled as escapes, in the form that Oniguruma knows too: Hugging
/// Face's library has that for its expressions.
const DEEPSEEK_LETTERS: &str = r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝ\x{1F5F}-\x{1F7D}ᾀ-ᾴᾶ-ᾼ\x{1FBE}ῂ-ῄῆ-ῌ\x{1FD0}-\x{1FD3}\x{1FD6}-\x{1FDB}ῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\x{2126}\x{2128}\x{212A}-\x{212D}ℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+";
const CJK_DEEPSEEK: &str = "[一-龥ࠀ-一가-퟿]+";
const BLOOM: &str = r" ?[^(\s|.,!?…。，、।۔،)]+";

/// A way of cutting text, under the names that GGUF files use for it.
#[derive(Debug, PartialEq, Eq)]
pub struct PreTokenizer {
    /// Values of `tokenizer.ggml.pre`; the first one is what we write.
    pub names: &'static [&'static str],
    /// The expressions, applied in order.
    pub splits: &'static [&'static str],
    /// Whether readers take a word that is a token as that token, whatever the merges would give.
    pub ignore_merges: bool,
    /// Whether readers put BOS in front when the file does not say.
    pub adds_bos: bool,
    /// Whether [`recognise`] may choose this entry: the rest are only read.
    writable: bool,
}

const fn entry(names: &'static [&'static str], splits: &'static [&'static str]) -> PreTokenizer {
    PreTokenizer { names, splits, ignore_merges: false, adds_bos: false, writable: false }
}

/// Every known pre-tokenizer. Where two have the same expressions, the one that ignores merges comes first.
pub static PRE_TOKENIZERS: &[PreTokenizer] = &[
    PreTokenizer {
        writable: true,
        ..entry(
            &[
                "gpt-2",
                "mpt",
                "olmo",
                "phi-2",
                "jina-es",
                "jina-de",
                "jina-v2-es",
                "jina-v2-de",
                "jina-v1-en",
                "jina-v2-code",
                "roberta-bpe",
                "gigachat",
                "a.x-4.0",
                "mellum",
                "modern-bert",
                "jais",
                "trillion",
                "granite-docling",
                "exaone4",
            ],
            &[GPT2],
        )
    },
    PreTokenizer {
        writable: true,
        ..entry(
            &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"],
            &[r"\p{N}", GPT2],
        )
    },
    PreTokenizer {
        writable: true,
        ignore_merges: true,
        adds_bos: true,
        ..entry(
            &["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"],
            &[LLAMA3],
        )
    },
    PreTokenizer { writable: true, ..entry(&["dbrx", "smaug-bpe", "chatglm-bpe", "glm4"], &[LLAMA3]) },
    PreTokenizer {
        writable: true,
        ..entry(
            &["qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "stablelm2", "megrez", "hunyuan", "solar-open", "grok-2"],
            &[QWEN2],
        )
    },
    PreTokenizer { writable: true, ..entry(&["qwen35"], &[QWEN35]) },
    PreTokenizer { writable: true, ignore_merges: true, adds_bos: true, ..entry(&["tekken"], &[TEKKEN]) },
    PreTokenizer { writable: true, ..entry(&["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"], &[GPT4O]) },
    PreTokenizer {
        writable: true,
        ..entry(&["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"], &[r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK3])
    },
    PreTokenizer {
        writable: true,
        ..entry(&["deepseek-coder"], &["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", CJK_DEEPSEEK, r"\p{N}"])
    },
    entry(
        &["deepseek-llm"],
        &["[\r\n]", DEEPSEEK_LETTERS, "\\s?[!-/:-~！-／：-～‘-‟\u{3000}-。]+", r"\s+$", CJK_DEEPSEEK, r"\p{N}+"],
    ),
    entry(&["falcon"], &[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"]),
    entry(&["poro-chat", "bloom", "gpt3-finnish"], &[BLOOM]),
    entry(&["viking"], &[BLOOM, r"\p{N}"]),
    entry(&["default", ""], &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"]),
];

/// The cutting that GGUF calls `name`.
pub fn by_name(name: &str) -> Result<&'static PreTokenizer> {
    PRE_TOKENIZERS.iter().find(|p| p.names.contains(&name)).ok_or_else(|| {
        Error::unsupported(format!("unknown pre-tokenizer `{name}`"))
            .hint("the file was made for a newer reader; use the original checkpoint, or name a tokenizer folder")
    })
}

/// Finds the cutting that a byte-level tokenizer's `pre_tokenizer` performs. `ignore_merges` says whether a word that is a token
/// must win over the merges (`None`: both come to the same with this vocabulary).
pub fn recognise(pre_tokenizer: &Value, ignore_merges: Option<bool>) -> Result<&'static PreTokenizer> {
    let splits = expressions(pre_tokenizer)?;
    let same: Vec<_> = PRE_TOKENIZERS
        .iter()
        .filter(|p| p.writable && p.splits.iter().map(|s| canonical(s)).eq(splits.iter().cloned()))
        .collect();
    if same.is_empty() {
        return Err(Error::unsupported(format!("unknown pre-tokenizer; it splits by {}", quoted(&splits))).hint(
            "GGUF names pre-tokenizers instead of describing them, and none of the known names does this; \
             choose an MLX target, which carries tokenizer.json as it is",
        ));
    }
    same.into_iter().find(|p| ignore_merges.is_none_or(|i| i == p.ignore_merges)).ok_or_else(|| {
        Error::unsupported("the vocabulary has tokens that no merges lead to, and GGUF has no pre-tokenizer name for this way of splitting that takes them as they are")
            .hint("choose an MLX target, which carries tokenizer.json as it is")
    })
}

/// `tokenizer.json`'s `pre_tokenizer` for a cutting, followed by the byte-level alphabet.
pub fn to_json(pre: &PreTokenizer) -> Value {
    let mut steps: Vec<Value> = pre
        .splits
        .iter()
        .map(|regex| json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false}))
        .collect();
    steps.push(json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}));
    json!({"type": "Sequence", "pretokenizers": steps})
}

fn quoted(splits: &[String]) -> String {
    let list: Vec<String> = splits.iter().map(|s| format!("/{s}/")).collect();
    if list.is_empty() { "nothing".into() } else { list.join(", then ") }
}

/// The chain as a list of expressions, each in canonical spelling.
fn expressions(pre_tokenizer: &Value) -> Result<Vec<String>> {
    let mut steps = Vec::new();
    flatten(pre_tokenizer, &mut steps);
    let mut splits = Vec::new();
    let mut byte_level = false;
    for step in steps {
        let flag = |key: &str, default: bool| step[key].as_bool().unwrap_or(default);
        let kind = step["type"].as_str().unwrap_or("?");
        if byte_level {
            return Err(unknown(format!("a {kind} step after the byte-level one")));
        }
        match kind {
            "ByteLevel" => {
                if flag("add_prefix_space", true) {
                    return Err(unknown("a space is put in front of every text".into()));
                }
                if flag("use_regex", true) {
                    splits.push(canonical(GPT2));
                }
                byte_level = true;
            }
            "Digits" => splits.push(if flag("individual_digits", false) { r"\p{N}" } else { r"\p{N}+" }.into()),
            "Split" => {
                let regex = match (&step["pattern"]["Regex"], &step["pattern"]["String"]) {
                    (Value::String(regex), _) => regex.clone(),
                    (_, Value::String(text)) => escape(text),
                    _ => return Err(unknown("a split without a pattern".into())),
                };
                // Keeping only the matches equals keeping everything when the expression matches everything, and all that end
                // in "any white space" do.
                let isolated = step["behavior"] == "Isolated" && !flag("invert", false);
                let matches_only = step["behavior"] == "Removed" && flag("invert", false) && regex.ends_with(r"|\s+");
                if !isolated && !matches_only {
                    return Err(unknown(format!("splitting by /{regex}/ with behavior {}", step["behavior"])));
                }
                splits.push(canonical(&regex));
            }
            other => return Err(unknown(format!("a {other} step"))),
        }
    }
    if !byte_level {
        return Err(unknown("no byte-level step".into()));
    }
    Ok(splits)
}

fn unknown(what: String) -> Error {
    Error::unsupported(format!("unknown pre-tokenizer: {what}"))
        .hint("GGUF has no name for it; choose an MLX target, which carries tokenizer.json as it is")
}

/// The steps of nested sequences, in order.
pub(super) fn flatten<'a>(node: &'a Value, out: &mut Vec<&'a Value>) {
    match node["type"].as_str() {
        Some("Sequence") => {
            for key in ["pretokenizers", "normalizers", "decoders", "processors"] {
                for step in node[key].as_array().into_iter().flatten() {
                    flatten(step, out);
                }
            }
        }
        _ if node.is_null() => {}
        _ => out.push(node),
    }
}

/// One spelling for expressions that cut alike.
fn canonical(regex: &str) -> String {
    let mut r = regex
        .replace("(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])", "(?i:'s|'t|'re|'ve|'m|'ll|'d)")
        .replace("(?i:[sdmt]|ll|ve|re)", "(?i:s|t|re|ve|m|ll|d)")
        .replace('\r', r"\r")
        .replace('\n', r"\n")
        .replace("'(?i:s|t|re|ve|m|ll|d)", "(?i:'s|'t|'re|'ve|'m|'ll|'d)");
    // Unmatched white space at the end of a chain of alternatives becomes a word of its own anyway.
    if let Some(rest) = r.strip_suffix(r"|\s+(?!\S)|\s+") {
        r = format!(r"{rest}|\s+(?!\S)");
    }
    r
}

fn escape(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        if r"\.+*?()|[]{}^$#&-~/".contains(c) {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structure_decides() {
        let byte_level = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": use_regex});
        let split = |regex: &str| json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
        let chain = |steps: Vec<Value>| json!({"type": "Sequence", "pretokenizers": steps});
        let name = |v: &Value| recognise(v, None).unwrap().names[0];
        assert_eq!(name(&byte_level(true)), "gpt-2");
        assert_eq!(name(&chain(vec![json!({"type": "Digits", "individual_digits": true}), byte_level(true)])), "smollm");
        assert_eq!(name(&chain(vec![split(LLAMA3), byte_level(false)])), "llama-bpe");
        assert_eq!(name(&chain(vec![split(QWEN2), byte_level(false)])), "qwen2");
        assert_eq!(name(&chain(vec![split(TEKKEN), byte_level(false)])), "tekken");
        assert_eq!(recognise(&chain(vec![split(LLAMA3), byte_level(false)]), Some(false)).unwrap().names[0], "dbrx");
        for bad in [json!(null), json!({"type": "Whitespace"}), chain(vec![split(r"\w+"), byte_level(false)])] {
            let e = recognise(&bad, None).unwrap_err();
            assert_eq!(e.kind, bitsmith_formats::ErrorKind::Unsupported);
            assert!(e.hint.is_some());
        }
        assert!(recognise(&json!({"type": "ByteLevel", "add_prefix_space": true}), None).is_err());
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = PRE_TOKENIZERS.iter().flat_map(|p| p.names).collect();
        let n = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), n);
        assert_eq!(by_name("qwen2").unwrap().splits, [QWEN2]);
        assert!(by_name("no-such").is_err());
    }
}

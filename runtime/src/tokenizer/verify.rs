//! Do two tokenizers agree?

use super::Tokenizer;
use bitsmith_formats::{Error, Result};

/// Short texts that exercise what tokenizers differ in: contractions, digits, white space, scripts, emoji, code, case. None
/// starts with white space or holds characters that Unicode normalization would change: there GGUF readers follow other rules
/// than some Hugging Face tokenizers.
pub const PROBES: &[&str] = &[
    "Hello, world! It's what we're testing; don't you'll I'd they've",
    "IT'S WHAT WE'RE testing, HELLO World helloWorld HTTPServer",
    "3 33 333 3333 33333 333333 1234567890 3.14159 1,000,000 ½ ² Ⅷ ٣٤٥",
    "a  b   c    d\te\t\tf\n\ng\r\n  h   \n",
    "def f(x):\n    if x >= 0:\n        return x**2  # square\n    else:\n        raise ValueError(f\"{x!r}\")\n",
    "{\"key\": [1, 2, null], \"url\": \"https://example.org/a?b=c&d=%20\"}",
    "Straße, café, naïve, Zürich, Øresund, ﬁne, ŁÓDŹ łódź, Ångström",
    "Москва и Киев, Ελλάδα, עברית, العربية, हिन्दी, ไทย, ខ្មែរ",
    "東京都は日本の首都です。我想在apple工作1314151天～ 한국어 텍스트",
    "🚀 (normal) 😶\u{200d}🌫\u{fe0f} ✅ 👩\u{200d}👩\u{200d}👧 🇩🇪",
    "!!!!!! ... --- ??? <=> != == && || $100 #tag @name ~/path \\escape",
    "x\u{a0}y\u{2003}z\u{3000}w \u{200b}zero",
];

/// Tokenizes every text with both and returns the number of tokens compared, or an error that names the first text and position
/// where they differ.
pub fn verify_roundtrip(source: &Tokenizer, rebuilt: &Tokenizer, texts: &[&str]) -> Result<usize> {
    let mut n = 0;
    for (i, text) in texts.iter().enumerate() {
        let (a, b) = (source.encode(text, true)?, rebuilt.encode(text, true)?);
        if let Some(at) = (0..a.len().max(b.len())).find(|&k| a.get(k) != b.get(k)) {
            let show = |t: &Tokenizer, ids: &[u32]| match ids.get(at) {
                Some(&id) => format!("{id} (`{}`)", t.token(id).unwrap_or_default()),
                None => "nothing".to_string(),
            };
            let before = source.decode(&a[..at.min(a.len())], false)?;
            let excerpt: String = text.chars().take(60).collect();
            return Err(Error::failed(format!(
                "the tokenizer written would not cut text as its source does: text {} (`{}`), token {at}, after `{}`: {} instead of {}",
                i + 1,
                excerpt.escape_debug(),
                tail(&before).escape_debug(),
                show(rebuilt, &b),
                show(source, &a),
            ))
            .file(source.origin())
            .hint("the vocabulary or its merges have no exact form in GGUF; choose an MLX target, which carries tokenizer.json as it is"));
        }
        n += a.len();
    }
    Ok(n)
}

fn tail(text: &str) -> &str {
    let start = text.char_indices().rev().nth(19).map_or(0, |(i, _)| i);
    &text[start..]
}

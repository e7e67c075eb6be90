//! What single tokens stand for.

use super::Tokenizer;
use tokenizers::DecoderWrapper;

impl Tokenizer {
    /// Whether decoding leaves this token out if it is told to skip special tokens.
    pub fn is_special(&self, id: u32) -> bool {
        self.inner.get_added_vocabulary().get_added_tokens_decoder().get(&id).is_some_and(|t| t.special)
    }

    /// The bytes that a token stands for inside a text: part of a character for some. Special tokens stand for their spelling. Nothing
    /// for ids outside the vocabulary.
    pub fn bytes(&self, id: u32) -> Option<Vec<u8>> {
        let spelling = self.token(id)?;
        if self.inner.get_added_vocabulary().get_added_tokens_decoder().contains_key(&id) {
            return Some(spelling.into_bytes());
        }
        let steps = match self.inner.get_decoder() {
            Some(DecoderWrapper::Sequence(steps)) => steps.get_decoders(),
            Some(one) => std::slice::from_ref(one),
            None => &[],
        };
        if steps.iter().any(|s| matches!(s, DecoderWrapper::ByteLevel(_))) {
            // A spelling outside the alphabet stands for itself.
            return Some(spelling.chars().map(byte_of).collect::<Option<_>>().unwrap_or_else(|| spelling.into_bytes()));
        }
        if steps.iter().any(|s| matches!(s, DecoderWrapper::ByteFallback(_)))
            && let Some(hex) = spelling.strip_prefix("<0x").and_then(|s| s.strip_suffix('>'))
            && let Ok(byte) = u8::from_str_radix(hex, 16)
        {
            return Some(vec![byte]);
        }
        Some(spelling.replace(super::rebuild::SPACE, " ").into_bytes())
    }
}

/// The byte that a character of GPT-2's alphabet stands for: printable ones stand for themselves, the others for characters from 256
/// on, in their order.
fn byte_of(c: char) -> Option<u8> {
    let printable = |b: u8| matches!(b, 33..=126 | 161..=172 | 174..=255);
    match u32::from(c) {
        c @ 0..=255 => u8::try_from(c).ok().filter(|b| printable(*b)),
        c => (0..=255).filter(|b| !printable(*b)).nth(c as usize - 256),
    }
}

//! A tokenizer in GGUF's terms.

use super::chat::ChatTemplates;

/// How the vocabulary is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VocabModel {
    /// Byte-level BPE: GGUF's `gpt2`.
    Bpe,
    /// SentencePiece-style BPE with byte fallback, merging by score: GGUF's `llama`.
    Spm,
    /// WordPiece (BERT): words from the longest pieces that fit: GGUF's `bert`.
    WordPiece,
}

/// What a token is for, with GGUF's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum TokenType {
    /// Made from text.
    Normal = 1,
    /// Stands for what the vocabulary cannot spell.
    Unknown = 2,
    /// Special: found in text only where special tokens are parsed, and not shown.
    Control = 3,
    /// Added to the vocabulary, always found in text first.
    UserDefined = 4,
    /// Never produced.
    Unused = 5,
    /// One byte, `<0x0A>`.
    Byte = 6,
}

impl TokenType {
    /// From GGUF's number; what is not known counts as normal, as in llama.cpp.
    pub fn from_id(id: i64) -> Self {
        match id {
            2 => TokenType::Unknown,
            3 => TokenType::Control,
            4 => TokenType::UserDefined,
            5 => TokenType::Unused,
            6 => TokenType::Byte,
            _ => TokenType::Normal,
        }
    }
}

/// Everything that GGUF's `tokenizer.*` keys say.
#[derive(Debug, Clone, PartialEq)]
pub struct GgufVocab {
    /// `tokenizer.ggml.model`.
    pub model: VocabModel,
    /// `tokenizer.ggml.pre`: how text is cut into words (byte-level BPE only; `default` otherwise).
    pub pre: String,
    /// The tokens by id, as GGUF spells them: pieces of SentencePiece and WordPiece that begin a word begin with `▁`.
    pub tokens: Vec<String>,
    /// What each is for.
    pub types: Vec<TokenType>,
    /// Score of each token: of two merges, the one whose result scores higher comes first. Empty for byte-level BPE.
    pub scores: Vec<f32>,
    /// Merges in order of rank. Empty for SentencePiece.
    pub merges: Vec<(String, String)>,
    /// Beginning of sequence; WordPiece's `[CLS]`.
    pub bos: Option<u32>,
    /// End of sequence; WordPiece's `[SEP]`.
    pub eos: Option<u32>,
    /// End of turn and the like: further tokens that end generation.
    pub more_eos: Vec<u32>,
    /// Unknown token.
    pub unk: Option<u32>,
    /// Padding.
    pub pad: Option<u32>,
    /// Whether BOS is put in front of every text.
    pub add_bos: bool,
    /// Whether EOS is put at the end of every text.
    pub add_eos: bool,
    /// Whether a space is put in front of every text (SentencePiece).
    pub add_space_prefix: bool,
    /// Whether spaces at both ends go and runs of spaces become one (SentencePiece). llama.cpp does not do this for `llama`
    /// vocabularies; bitsmith does.
    pub remove_extra_whitespaces: bool,
    /// Whether text is made lower case (WordPiece).
    pub lowercase: bool,
    /// Whether accents go (WordPiece).
    pub strip_accents: bool,
    /// Chat templates.
    pub templates: ChatTemplates,
    /// What the format or llama.cpp cannot do as the source does, in words for the user.
    pub notes: Vec<String>,
}

impl GgufVocab {
    /// The ids that end generation, the principal one first.
    pub fn all_eos(&self) -> Vec<u32> {
        let mut out: Vec<u32> = self.eos.into_iter().collect();
        for &id in &self.more_eos {
            if !out.contains(&id) {
                out.push(id);
            }
        }
        out
    }
}

//! Decoding token by token.

use super::Tokenizer;
use bitsmith_formats::Result;

/// Turns token ids into text as they come. A character may need several tokens: text is given out only when it is whole.
#[derive(Debug)]
pub struct StreamDecoder<'a> {
    tokenizer: &'a Tokenizer,
    /// The last tokens whose text is out, and those after them whose text is not.
    ids: Vec<u32>,
    /// How many of `ids` are out.
    done: usize,
}

/// Tokens kept as context: how a token reads may depend on the one before it (a leading space is dropped at the start).
const CONTEXT: usize = 4;

impl<'a> StreamDecoder<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer, context: &[u32]) -> Self {
        let ids = context[context.len().saturating_sub(CONTEXT)..].to_vec();
        StreamDecoder { tokenizer, done: ids.len(), ids }
    }

    /// Adds a token and returns the text that is now whole, which may be empty.
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        let text = self.pending()?;
        // An unfinished character decodes to the replacement character at the end.
        if text.is_empty() || text.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok(String::new());
        }
        self.ids.drain(..self.done.saturating_sub(CONTEXT));
        self.done = self.ids.len();
        Ok(text)
    }

    /// The text of what is left at the end, unfinished characters included.
    pub fn finish(mut self) -> Result<String> {
        self.rest()
    }

    /// As [`StreamDecoder::finish`], for a decoder that is part of something else.
    pub fn rest(&mut self) -> Result<String> {
        let text = self.pending()?;
        self.done = self.ids.len();
        Ok(text)
    }

    fn pending(&self) -> Result<String> {
        let before = self.tokenizer.decode(&self.ids[..self.done], true)?;
        let all = self.tokenizer.decode(&self.ids, true)?;
        // The context itself may end in part of a character, which new tokens complete: then the common start counts as out.
        let common = before.chars().zip(all.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum::<usize>();
        Ok(all[common..].to_string())
    }
}

//! From tokens to the text that goes out.

use bitsmith_formats::Result;
use bitsmith_runtime::Tokenizer;
use bitsmith_runtime::generate::{Score, StopStrings};
use bitsmith_runtime::tokenizer::StreamDecoder;

/// A token of the answer, or of the prompt if that is echoed.
#[derive(Debug, Clone, PartialEq)]
pub struct Scored {
    /// The token.
    pub token: u32,
    /// Its log-probability and the likeliest tokens in its place; the first token of a text has none.
    pub score: Option<Score>,
    /// Characters of text before it.
    pub offset: usize,
}

/// A part of an answer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Piece {
    /// Whole characters.
    pub text: String,
    /// Its tokens, if log-probabilities are wanted.
    pub tokens: Vec<Scored>,
}

impl Piece {
    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.text.is_empty() && self.tokens.is_empty()
    }
}

/// Decodes tokens, watches for stop strings, and keeps scores next to their text.
#[derive(Debug)]
pub struct Writer<'t> {
    decoder: StreamDecoder<'t>,
    stops: StopStrings,
    /// Tokens whose text is not out, each with the bytes of text before it.
    waiting: Vec<(Scored, usize)>,
    /// Characters and bytes decoded so far, and bytes given out.
    characters: usize,
    decoded: usize,
    given: usize,
}

impl<'t> Writer<'t> {
    /// A writer of what follows `prompt`. If that is echoed, it counts as text.
    pub fn new(tokenizer: &'t Tokenizer, prompt: &[u32], echo: bool, stop: &[String]) -> Self {
        let decoder = tokenizer.stream(if echo { &[] } else { prompt });
        Writer { decoder, stops: StopStrings::new(stop), waiting: Vec::new(), characters: 0, decoded: 0, given: 0 }
    }

    /// A token of an echoed prompt.
    pub fn prompt(&mut self, token: u32, score: Option<Score>) -> Result<Scored> {
        let scored = Scored { token, score, offset: self.characters };
        self.characters += self.decoder.push(token)?.chars().count();
        Ok(scored)
    }

    /// A token of the answer; `score` if scores are wanted. Gives what can go out, and whether a stop string was met.
    pub fn push(&mut self, token: u32, score: Option<Score>) -> Result<(Piece, bool)> {
        if score.is_some() {
            self.waiting.push((Scored { token, score, offset: self.characters }, self.decoded));
        }
        let text = self.decoder.push(token)?;
        Ok(self.release(text))
    }

    /// An end-of-sequence token, which has a score but no text.
    pub fn end(&mut self, token: u32, score: Option<Score>) {
        if score.is_some() {
            self.waiting.push((Scored { token, score, offset: self.characters }, self.decoded));
        }
    }

    /// What is left when the answer ends by itself.
    pub fn finish(&mut self) -> Result<Piece> {
        let rest = self.decoder.rest()?;
        let (mut piece, stopped) = self.release(rest);
        if !stopped {
            piece.text.push_str(&self.stops.finish());
            piece.tokens.extend(self.waiting.drain(..).map(|(scored, _)| scored));
        }
        Ok(piece)
    }

    fn release(&mut self, text: String) -> (Piece, bool) {
        self.characters += text.chars().count();
        self.decoded += text.len();
        let released = self.stops.push(&text);
        self.given += released.text.len();
        // A token goes with the first of its text; after a stop string, tokens that lie behind it are gone.
        let all = self.given == self.decoded && !released.stopped;
        let ready = self.waiting.iter().take_while(|(_, start)| all || *start < self.given).count();
        let tokens = self.waiting.drain(..ready).map(|(scored, _)| scored).collect();
        if released.stopped {
            self.waiting.clear();
        }
        (Piece { text: released.text, tokens }, released.stopped)
    }
}

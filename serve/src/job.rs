//! One answer being made.

use crate::error::ApiError;
use crate::writer::{Piece, Scored, Writer};
use bitsmith_formats::Result;
use bitsmith_runtime::Tokenizer;
use bitsmith_runtime::generate::{Score, Wanted, not_finite};
use bitsmith_runtime::kernels;
use bitsmith_runtime::sampler::{Sampler, Sampling};
use std::sync::Arc;
use tokio::sync::mpsc::UnboundedSender;

/// What all answers to a request have in common.
#[derive(Debug)]
pub struct Params {
    /// Most tokens to generate; the prompt and they fit into the context.
    pub max_tokens: usize,
    /// No end before this many tokens.
    pub min_tokens: usize,
    /// Tokens that end the answer and are no part of it.
    pub ends: Vec<u32>,
    /// Strings that end the answer and are no part of it.
    pub stop: Vec<String>,
    /// Whether the prompt's tokens are sent first, with their scores if there are any.
    pub echo: bool,
    /// Scores with this many alternatives.
    pub logprobs: Option<usize>,
}

/// An answer to be made.
#[derive(Debug)]
pub struct Job {
    /// Which answer of the request it is.
    pub index: usize,
    /// Token ids, at least one; all in the vocabulary.
    pub prompt: Vec<u32>,
    /// How to choose tokens.
    pub sampling: Sampling,
    /// The rest of the request.
    pub params: Arc<Params>,
    /// Where its pieces go. Once nobody listens the job is dropped.
    pub events: UnboundedSender<(usize, Event)>,
}

/// What becomes of a job.
#[derive(Debug)]
pub enum Event {
    /// The prompt has been read; its tokens, if they are echoed and scored.
    Prompt(Vec<Scored>),
    /// More of the answer.
    Piece(Piece),
    /// The answer is whole.
    Done(Done),
    /// It cannot be made.
    Failed(ApiError),
}

/// How an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Done {
    /// OpenAI's name for the reason: `stop` or `length`.
    pub reason: &'static str,
    /// Tokens generated, one that ended the answer included.
    pub tokens: usize,
}

/// An answer under way.
#[derive(Debug)]
pub struct Answer<'t> {
    job: Job,
    sampler: Sampler,
    writer: Writer<'t>,
    /// Tokens of the prompt that have been read.
    read: usize,
    /// The token chosen last, to be read next.
    next: Option<u32>,
    generated: usize,
    echoed: Vec<Scored>,
    finished: bool,
}

impl<'t> Answer<'t> {
    /// Starts a job.
    pub fn new(job: Job, tokenizer: &'t Tokenizer) -> Self {
        let writer = Writer::new(tokenizer, &job.prompt, job.params.echo, &job.params.stop);
        let sampler = Sampler::new(job.sampling.clone());
        let mut answer = Answer { job, sampler, writer, read: 0, next: None, generated: 0, echoed: Vec::new(), finished: false };
        // Nothing to compute.
        if answer.job.params.max_tokens == 0 && !answer.scores_prompt() {
            answer.after_prompt();
        }
        answer
    }

    /// Whether its place can go to another: it is whole, or nobody waits for it.
    pub fn is_over(&self) -> bool {
        self.finished || self.job.events.is_closed()
    }

    /// Whether the prompt has been read.
    pub fn is_writing(&self) -> bool {
        self.next.is_some()
    }

    fn scores_prompt(&self) -> bool {
        self.job.params.echo && self.job.params.logprobs.is_some()
    }

    /// What to read next, and the logits to compute: the token chosen last, or part of the prompt. What is read of the prompt is taken
    /// from `budget`; nothing if there is none left.
    pub fn read(&mut self, budget: &mut usize) -> Option<(Vec<u32>, Wanted)> {
        if let Some(token) = self.next {
            return Some((vec![token], Wanted::Last));
        }
        let n = (self.job.prompt.len() - self.read).min(*budget);
        let tokens = self.job.prompt[self.read..self.read + n].to_vec();
        *budget -= n;
        self.read += n;
        let wanted = match (self.scores_prompt(), self.read == self.job.prompt.len()) {
            (true, _) => Wanted::All,
            (false, true) => Wanted::Last,
            (false, false) => Wanted::Nothing,
        };
        (n > 0).then_some((tokens, wanted))
    }

    /// Takes the logits after the token at `position`.
    pub fn take(&mut self, position: usize, logits: &[f32]) {
        if self.finished {
            return;
        }
        if let Err(e) = self.advance(position, logits) {
            self.fail(e.into());
        }
    }

    fn advance(&mut self, position: usize, logits: &[f32]) -> Result<()> {
        if !kernels::all_finite(logits) {
            return Err(not_finite(position));
        }
        if self.scores_prompt() && position < self.job.prompt.len() {
            if position == 0 {
                let first = self.writer.prompt(self.job.prompt[0], None)?;
                self.echoed.push(first);
            }
            if let Some(next) = self.job.prompt.get(position + 1) {
                let score = self.score(logits, *next);
                let scored = self.writer.prompt(*next, score)?;
                self.echoed.push(scored);
            }
        }
        if position + 1 < self.job.prompt.len() {
            return Ok(());
        }
        if position + 1 == self.job.prompt.len() {
            self.after_prompt();
        }
        if self.finished { Ok(()) } else { self.choose(logits) }
    }

    fn score(&self, logits: &[f32], token: u32) -> Option<Score> {
        self.job.params.logprobs.map(|top| Score::of(logits, token, top))
    }

    fn after_prompt(&mut self) {
        if self.job.params.echo {
            let tokens = std::mem::take(&mut self.echoed);
            self.send(Event::Prompt(tokens));
        }
        if self.job.params.max_tokens == 0 {
            self.end("length");
        }
    }

    fn choose(&mut self, logits: &[f32]) -> Result<()> {
        let params = self.job.params.clone();
        let banned = if self.generated < params.min_tokens { params.ends.as_slice() } else { &[] };
        let token = self.sampler.pick_except(logits, banned);
        let score = self.score(logits, token);
        self.generated += 1;
        self.next = Some(token);
        if params.ends.contains(&token) && self.generated > params.min_tokens {
            self.writer.end(token, score);
            return self.flush("stop");
        }
        let (piece, stopped) = self.writer.push(token, score)?;
        if !piece.is_empty() {
            self.send(Event::Piece(piece));
        }
        if stopped {
            self.end("stop");
        } else if self.generated == params.max_tokens {
            return self.flush("length");
        }
        Ok(())
    }

    fn flush(&mut self, reason: &'static str) -> Result<()> {
        let piece = self.writer.finish()?;
        if !piece.is_empty() {
            self.send(Event::Piece(piece));
        }
        self.end(reason);
        Ok(())
    }

    fn end(&mut self, reason: &'static str) {
        self.finished = true;
        self.send(Event::Done(Done { reason, tokens: self.generated }));
    }

    /// Ends the job with an error.
    pub fn fail(&mut self, error: ApiError) {
        self.finished = true;
        self.send(Event::Failed(error));
    }

    /// Those who went away need no answer.
    fn send(&self, event: Event) {
        let _ = self.job.events.send((self.job.index, event));
    }
}

//! Asking a model: likelihoods many items at a time in one pass over the weights, writing several texts side by side.

use super::prompt::{Ask, continuation, prompt};
use super::{Answer, Generation};
use bitsmith_formats::{Error, Result};
use bitsmith_runtime::generate::{Batch, Feed, Sequence, Wanted, not_finite};
use bitsmith_runtime::likelihood::{Continuation, score};
use bitsmith_runtime::{CacheType, Device, Model, Tokenizer, WeightSource};
use rayon::prelude::*;

/// Tokens of a pass, about: few enough that a killed run loses little, and enough that reading the weights does not count.
pub const PASS_TOKENS: usize = 16_384;
/// Texts written side by side.
pub const SLOTS: usize = 8;
/// Prompt tokens read in one step.
const PROMPT_CHUNK: usize = 512;
/// Common tokens of all prompts that are worth being read once.
const MIN_SHARED: usize = 16;

/// Called with the number of an item and its answer; an error from it ends the work.
pub type Each<'a> = &'a mut dyn FnMut(usize, Answer) -> Result<()>;

/// A model to be asked for likelihoods.
#[derive(Clone, Copy)]
pub struct Likely<'a> {
    /// Its weights.
    pub source: &'a dyn WeightSource,
    /// Its tokenizer, with special tokens spelled out in texts read as such.
    pub tokenizer: &'a Tokenizer,
    /// Where it runs.
    pub device: &'a Device,
}

impl Likely<'_> {
    /// Answers the items of `asks` that `ids` names, in their order. `watch` is told of layers done.
    pub fn answer(
        &self,
        asks: &[Vec<Ask>],
        ids: &[usize],
        each: Each<'_>,
        watch: &dyn Fn(usize, usize) -> Result<()>,
    ) -> Result<()> {
        let longest = self.source.spec().context_length;
        let tokenizer = self.tokenizer;
        let texts = |id: &usize| asks[*id].iter().map(|a| text(tokenizer, a, longest)).collect::<Result<Vec<Continuation>>>();
        let mut rest = ids;
        while !rest.is_empty() {
            // Tokenized in pieces that are larger than a pass, so that there is work for all threads.
            let piece = &rest[..rest.len().min(256)];
            let texts: Vec<Vec<Continuation>> = piece.par_iter().map(texts).collect::<Result<_>>()?;
            let mut tokens = 0;
            // Contexts are counted once, as they are run once.
            let new =
                |t: &[Continuation]| t.first().map_or(0, |t| t.from) + t.iter().map(|t| t.tokens.len() - t.from).sum::<usize>();
            let fitting = texts.iter().take_while(|t| {
                tokens += new(t);
                tokens <= PASS_TOKENS
            });
            let n = fitting.count().max(1);
            let counts: Vec<usize> = texts[..n].iter().map(Vec::len).collect();
            let flat: Vec<Continuation> = texts.into_iter().take(n).flatten().collect();
            let scored = score(self.source, &flat, self.device, watch)?;
            let mut likelihoods = scored.likelihoods.into_iter();
            for (id, count) in piece.iter().zip(counts) {
                each(*id, Answer::Likelihoods(likelihoods.by_ref().take(count).map(|l| (l.log, l.greedy)).collect()))?;
            }
            rest = &rest[n..];
        }
        Ok(())
    }
}

fn text(tokenizer: &Tokenizer, ask: &Ask, longest: usize) -> Result<Continuation> {
    match ask {
        Ask::Likelihood { context, continuation: c } => continuation(tokenizer, context, c, longest),
        Ask::Writing { .. } => Err(Error::failed("a text to be written has no likelihood")),
    }
}

/// A text being written.
struct Slot {
    id: usize,
    sequence: Sequence,
    /// Tokens to be read next.
    next: Vec<u32>,
    written: Vec<u32>,
}

/// Lets a model write, always taking the likeliest token, for the items of `asks` that `ids` names. They are done in the order in which
/// they come to an end.
pub fn write(
    model: &Model,
    tokenizer: &Tokenizer,
    cache: CacheType,
    generation: &Generation,
    asks: &[Vec<Ask>],
    ids: &[usize],
    each: Each<'_>,
) -> Result<()> {
    let spec = model.spec();
    let tokens = |id: &usize| match asks[*id].as_slice() {
        [Ask::Writing { prompt: text }] => prompt(tokenizer, text, generation.max_tokens, spec.context_length),
        _ => Err(Error::failed("this item is not to be written")),
    };
    let prompts: Vec<Vec<u32>> = ids.par_iter().map(tokens).collect::<Result<_>>()?;
    let mut batch = Batch::new(model);
    let shared = shared(&prompts);
    let mut header = batch.sequence(cache)?;
    for chunk in prompts.first().map_or(&[][..], |p| &p[..shared]).chunks(PROMPT_CHUNK) {
        batch.step(&mut [Feed { sequence: &mut header, tokens: chunk, wanted: Wanted::Nothing }], |_, _, _| {})?;
    }
    let mut waiting = ids.iter().zip(prompts);
    let mut slots: Vec<Slot> = Vec::new();
    loop {
        while slots.len() < SLOTS {
            let Some((id, prompt)) = waiting.next() else { break };
            slots.push(Slot { id: *id, sequence: header.fork()?, next: prompt[shared..].to_vec(), written: Vec::new() });
        }
        if slots.is_empty() {
            return Ok(());
        }
        let chosen = step(&mut batch, &mut slots)?;
        let mut going = Vec::with_capacity(slots.len());
        for (mut slot, token) in slots.into_iter().zip(chosen) {
            let Some(token) = token else {
                going.push(slot);
                continue;
            };
            let ended = spec.eos.contains(&token) || tokenizer.eos().contains(&token);
            if !ended {
                slot.written.push(token);
            }
            let text = tokenizer.decode(&slot.written, true)?;
            let cut = generation.until.iter().filter(|u| !u.is_empty()).filter_map(|u| text.find(u.as_str())).min();
            if ended || cut.is_some() || slot.written.len() >= generation.max_tokens {
                each(slot.id, Answer::Text(text[..cut.unwrap_or(text.len())].to_string()))?;
            } else {
                slot.next = vec![token];
                going.push(slot);
            }
        }
        slots = going;
    }
}

/// Reads on in every text and gives the likeliest next token of those whose prompt has been read.
fn step(batch: &mut Batch<'_>, slots: &mut [Slot]) -> Result<Vec<Option<u32>>> {
    let mut now: Vec<(Vec<u32>, bool)> = Vec::with_capacity(slots.len());
    for slot in slots.iter_mut() {
        let rest = slot.next.split_off(slot.next.len().min(PROMPT_CHUNK));
        now.push((std::mem::replace(&mut slot.next, rest), slot.next.is_empty()));
    }
    let mut chosen = vec![None; now.len()];
    let mut damaged = None;
    let mut feeds = Vec::with_capacity(now.len());
    for (slot, (tokens, last)) in slots.iter_mut().zip(&now) {
        let wanted = if *last { Wanted::Last } else { Wanted::Nothing };
        feeds.push(Feed { sequence: &mut slot.sequence, tokens, wanted });
    }
    batch.step(&mut feeds, |feed, position, logits| {
        let best = (1..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best });
        if !logits[best].is_finite() {
            damaged = Some(position);
        }
        chosen[feed] = Some(best as u32);
    })?;
    damaged.map_or(Ok(chosen), |position| Err(not_finite(position)))
}

/// Tokens that all prompts begin with, if they are many; each prompt keeps at least one of its own.
fn shared(prompts: &[Vec<u32>]) -> usize {
    let Some(first) = prompts.first() else { return 0 };
    let with = |p: &Vec<u32>| p.iter().zip(first).take_while(|(a, b)| a == b).count().min(p.len() - 1);
    let n = prompts.iter().map(with).min().unwrap_or(0);
    if prompts.len() > 1 && n >= MIN_SHARED { n } else { 0 }
}

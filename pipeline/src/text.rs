//! Text through a model: token ids, next-token distributions, generation.

use crate::context::Context;
use crate::estimate::check_ram;
use crate::model::{Located, resolve};
use crate::opened::Opened;
use bitsmith_formats::gguf::GgufStore;
use bitsmith_formats::links;
use bitsmith_formats::store::Container;
use bitsmith_formats::{Error, Result};
use bitsmith_runtime::generate::{CacheType, Flow, Generate, Released, Stop, StopStrings};
use bitsmith_runtime::sampler::Sampling;
use bitsmith_runtime::spec::Pooling;
use bitsmith_runtime::{ChatMessage, Head, Layer, Model, Sweep, Tokenizer, WeightSource, sweep};
use candle_core::Tensor;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Token ids of several texts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sequences {
    /// One list of ids per text.
    pub sequences: Vec<Vec<u32>>,
    /// The file that they come from.
    #[serde(skip)]
    pub file: Option<PathBuf>,
}

impl Sequences {
    /// Reads `{"sequences":[[id,…],…]}`.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read(path).map_err(|e| Error::read(path, e))?;
        let read: Sequences = serde_json::from_slice(&text).map_err(|e| {
            Error::corrupt(format!("not a list of token sequences: {e}"))
                .file(path)
                .hint("the file must read {\"sequences\":[[id,…],…]}, as `bitsmith tokenize --json` writes it")
        })?;
        Ok(Sequences { file: Some(path.to_path_buf()), ..read })
    }
}

/// The model's tokenizer, from the folder's files or the GGUF's metadata. Needs no weights.
pub fn tokenizer(located: &Located) -> Result<Tokenizer> {
    let path = &located.path;
    if path.is_dir() {
        links::check(path)?;
        return Tokenizer::from_hf_folder(path);
    }
    match Container::detect(path)? {
        Container::Gguf => Tokenizer::from_gguf(GgufStore::open(path)?.metadata(), path),
        _ => Tokenizer::from_hf_folder(path.parent().unwrap_or(Path::new("."))),
    }
}

/// Token ids of each text, with the tokens that the model expects around a text if `special`.
pub fn tokenize(model: &str, texts: &[&str], special: bool, context: &Context) -> Result<Sequences> {
    let tokenizer = tokenizer(&resolve(model, context)?)?;
    let sequences = texts.par_iter().map(|t| tokenizer.encode(t, special)).collect::<Result<_>>()?;
    Ok(Sequences { sequences, file: None })
}

/// The most likely next tokens after one position.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Next {
    /// The last token read, counted from 0.
    pub position: usize,
    /// Token ids with their log-probabilities, the most likely first; equal ones by id.
    pub top: Vec<(u32, f64)>,
}

/// Next-token distributions of several sequences.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Distributions {
    /// One list of positions per sequence.
    pub sequences: Vec<Vec<Next>>,
}

/// The `top` most likely next tokens after every position of every sequence, reading each sequence alone.
pub fn logits(model: &Opened, input: &Sequences, top: usize, context: &Context) -> Result<Distributions> {
    model.checkpoint.spec().require_head()?;
    let head = Head::load(&model.checkpoint, &context.device)?;
    let of_window = |states: &Tensor| {
        let mut positions = Vec::new();
        head.for_each_chunk(states, |first, rows| {
            let next = |(i, row): (usize, &[f32])| Next { position: first + i, top: most_likely(row, top) };
            positions.extend(rows.par_chunks_exact(head.vocab_size()).enumerate().map(next).collect::<Vec<_>>());
            Ok(())
        })?;
        Ok(positions)
    };
    Ok(Distributions { sequences: for_each_sequence(model, input, context, of_window)? })
}

/// What a model makes of one text.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct TextStates {
    /// The last hidden state of each token, after the output norm.
    pub states: Vec<Vec<f32>>,
    /// The embedding of the text, where the model says how to make one; not normalized.
    pub embedding: Option<Vec<f32>>,
}

/// Hidden states of several sequences.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Embeddings {
    /// How states become an embedding: `none`, `mean` or `cls`.
    pub pooling: &'static str,
    /// One entry per sequence.
    pub sequences: Vec<TextStates>,
}

/// The hidden states and embeddings of every sequence, reading each sequence alone.
pub fn embed(model: &Opened, input: &Sequences, context: &Context) -> Result<Embeddings> {
    let pooling = model.checkpoint.spec().pooling;
    let of_window = |states: &Tensor| {
        let states: Vec<Vec<f32>> =
            states.to_vec2().map_err(|e| Error::failed(format!("reading hidden states: {e}")).with_source(e))?;
        let mean = |column: usize| states.iter().map(|row| f64::from(row[column])).sum::<f64>() / states.len() as f64;
        let embedding = match pooling {
            Pooling::None => None,
            Pooling::Cls => states.first().cloned(),
            Pooling::Mean => states.first().map(|row| (0..row.len()).map(|c| mean(c) as f32).collect()),
        };
        Ok(TextStates { states, embedding })
    };
    Ok(Embeddings { pooling: pooling.name(), sequences: for_each_sequence(model, input, context, of_window)? })
}

/// What `f` makes of the last hidden states, `(tokens, hidden)`, of each sequence; nothing of empty ones, which keep their places.
fn for_each_sequence<T: Default>(
    model: &Opened,
    input: &Sequences,
    context: &Context,
    mut f: impl FnMut(&Tensor) -> Result<T>,
) -> Result<Vec<T>> {
    let source = &model.checkpoint;
    let spec = source.spec();
    let windows: Vec<Vec<u32>> = input.sequences.iter().filter(|s| !s.is_empty()).cloned().collect();
    if let Some(long) = windows.iter().map(Vec::len).find(|n| *n > spec.context_length) {
        context.progress.warn(&format!("a sequence of {long} tokens exceeds the model's context of {}", spec.context_length));
    }
    let mut results = Vec::with_capacity(windows.len());
    if !windows.is_empty() {
        let device = &context.device;
        let (tokens, longest) = (windows.iter().map(Vec::len).sum(), windows.iter().map(Vec::len).max().unwrap_or(0));
        check_ram("running the sequences", sweep::peak_bytes(spec, tokens, longest, context.threads), context.max_ram)?;
        let mut sweep = Sweep::new(spec, &windows, device).map_err(|e| match &input.file {
            Some(file) => e.file(file),
            None => e,
        })?;
        context.progress.start("layers", spec.n_layers as u64);
        sweep.embed_from(source)?;
        for index in 0..spec.n_layers {
            let layer = Layer::load(source, index, device)?;
            sweep.run_layer(&layer, index, None)?;
            context.progress.advance(1);
        }
        context.progress.finish();
        let normed = sweep.finish_from(source, None)?;
        for w in 0..windows.len() {
            results.push(f(&normed.window(w)?)?);
        }
    }
    let mut results = results.into_iter();
    Ok(input.sequences.iter().map(|s| if s.is_empty() { T::default() } else { results.next().unwrap_or_default() }).collect())
}

/// Log-probabilities of the `top` largest logits.
fn most_likely(logits: &[f32], top: usize) -> Vec<(u32, f64)> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total = logits.iter().map(|l| f64::from(l - max).exp()).sum::<f64>().ln() + f64::from(max);
    let order = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    let keep = top.min(ids.len());
    if keep < ids.len() && keep > 0 {
        ids.select_nth_unstable_by(keep - 1, order);
    }
    ids.truncate(keep);
    ids.sort_unstable_by(order);
    ids.into_iter().map(|id| (id, f64::from(logits[id as usize]) - total)).collect()
}

/// What to generate.
#[derive(Debug, Clone)]
pub struct GenerateOptions {
    /// The text to continue, or the user's turn.
    pub prompt: String,
    /// Whether to wrap the prompt in the model's chat template.
    pub chat: bool,
    /// The system's turn, with `chat`.
    pub system: Option<String>,
    /// Most tokens to generate.
    pub max_tokens: usize,
    /// How to choose them.
    pub sampling: Sampling,
    /// Storage of keys and values.
    pub cache: CacheType,
    /// Strings that end the text and are no part of it.
    pub stop: Vec<String>,
}

/// What was generated.
#[derive(Debug, Clone, Serialize)]
pub struct Generation {
    /// The model.
    pub model: String,
    /// The prompt as the model saw it.
    pub prompt: String,
    /// Its length in tokens.
    pub prompt_tokens: usize,
    /// The new text.
    pub text: String,
    /// The new tokens.
    pub tokens: Vec<u32>,
    /// Why it ended: `length`, `eos`, `context` or `stop` (a stop string).
    pub stop: &'static str,
    /// Seconds for prompt and text together, loading not counted.
    pub seconds: f64,
    /// Seconds until the first new token was known, which are spent on the prompt.
    pub seconds_to_first_token: Option<f64>,
    /// New tokens per second after the first.
    pub tokens_per_second: Option<f64>,
}

/// Loads a whole model for generation, if there is memory for it and for `cached` tokens.
pub fn load(model: &Opened, cache: CacheType, cached: usize, context: &Context) -> Result<Model> {
    let spec = model.checkpoint.spec();
    // All layers are held as they are stored, for every token needs each of them.
    let weights = model.checkpoint.weight_bytes();
    check_ram("generation", weights + cached as u64 * cache.bytes_per_token(spec)?, context.max_ram)?;
    Model::load(&model.checkpoint, &context.device)
}

/// Generates text, giving it to `each` piece by piece.
pub fn generate(
    model: &Opened,
    options: &GenerateOptions,
    context: &Context,
    mut each: impl FnMut(&str) -> Result<()>,
) -> Result<Generation> {
    let tokenizer = model.tokenizer()?;
    let prompt = if options.chat {
        let system = options.system.iter().map(|s| ChatMessage::new("system", s));
        let messages: Vec<ChatMessage> = system.chain([ChatMessage::new("user", &options.prompt)]).collect();
        tokenizer.apply_chat(&messages, true)?
    } else {
        options.prompt.clone()
    };
    let ids = tokenizer.encode(&prompt, !options.chat)?;
    let loaded = load(model, options.cache, ids.len() + options.max_tokens, context)?;
    let start = Instant::now();
    let mut first = None;
    let mut stream = tokenizer.stream(&ids);
    let mut stops = StopStrings::new(&options.stop);
    let mut text = String::new();
    // Gives out what a piece of decoded text releases; says whether a stop string was met.
    let mut give = |piece: &str, last: bool| -> Result<bool> {
        let Released { text: mut out, stopped } = stops.push(piece);
        if last && !stopped {
            out += &stops.finish();
        }
        text += &out;
        if !out.is_empty() {
            each(&out)?;
        }
        Ok(stopped)
    };
    let run =
        Generate { max_tokens: options.max_tokens, sampling: options.sampling.clone(), cache: options.cache, ignore_eos: false };
    let mut given = Ok(false);
    let generated = loaded.generate(&ids, &run, |token| {
        first.get_or_insert_with(|| start.elapsed().as_secs_f64());
        given = stream.push(token).and_then(|piece| give(&piece, false));
        if matches!(given, Ok(false)) { Flow::Continue } else { Flow::Stop }
    })?;
    let seconds = start.elapsed().as_secs_f64();
    let stopped = given? || give(&stream.finish()?, true)?;
    let stop = match generated.stop {
        _ if stopped => "stop",
        Stop::Length => "length",
        Stop::Eos(_) => "eos",
        Stop::Context => "context",
        Stop::Caller => "stop",
    };
    let after = first.map(|f| seconds - f).filter(|s| *s > 0.0 && generated.tokens.len() > 1);
    Ok(Generation {
        model: model.name.clone(),
        prompt,
        prompt_tokens: ids.len(),
        text,
        stop,
        seconds,
        seconds_to_first_token: first,
        tokens_per_second: after.map(|s| (generated.tokens.len() - 1) as f64 / s),
        tokens: generated.tokens,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_likely_first_and_ties_by_id() {
        let top = most_likely(&[1.0, 3.0, 3.0, -2.0], 3);
        assert_eq!(top.iter().map(|t| t.0).collect::<Vec<_>>(), [1, 2, 0]);
        let all = most_likely(&[1.0, 3.0, 3.0, -2.0], 9);
        assert!((all.iter().map(|t| t.1.exp()).sum::<f64>() - 1.0).abs() < 1e-12);
        assert!(most_likely(&[1.0], 0).is_empty());
    }
}

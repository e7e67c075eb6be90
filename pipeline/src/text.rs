//! Text through a model: token ids, next-token distributions, generation.

use crate::context::Context;
use crate::estimate::check_ram;
use crate::model::{Located, resolve};
use crate::opened::Opened;
use bitsmith_formats::gguf::GgufStore;
use bitsmith_formats::store::Container;
use bitsmith_formats::{Error, Result};
use bitsmith_runtime::generate::{CacheType, Flow, Generate, Stop};
use bitsmith_runtime::sampler::Sampling;
use bitsmith_runtime::{ChatMessage, Head, Layer, Model, Sweep, Tokenizer, WeightSource, sweep};
use candle_core::Device;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::Instant;

/// Token ids of several texts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sequences {
    /// One list of ids per text.
    pub sequences: Vec<Vec<u32>>,
}

impl Sequences {
    /// Reads `{"sequences":[[id,…],…]}`.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read(path).map_err(|e| Error::read(path, e))?;
        serde_json::from_slice(&text).map_err(|e| {
            Error::corrupt(format!("not a list of token sequences: {e}"))
                .file(path)
                .hint("the file must read {\"sequences\":[[id,…],…]}, as `bitsmith tokenize --json` writes it")
        })
    }
}

/// The model's tokenizer, from the folder's files or the GGUF's metadata. Needs no weights.
pub fn tokenizer(located: &Located) -> Result<Tokenizer> {
    let path = &located.path;
    if path.is_dir() {
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
    Ok(Sequences { sequences })
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
    let source = &model.checkpoint;
    let spec = source.spec();
    // Empty texts have no positions, but keep their places.
    let windows: Vec<Vec<u32>> = input.sequences.iter().filter(|s| !s.is_empty()).cloned().collect();
    if let Some(long) = windows.iter().map(Vec::len).find(|n| *n > spec.context_length) {
        context.progress.warn(&format!("a sequence of {long} tokens exceeds the model's context of {}", spec.context_length));
    }
    let mut results = Vec::with_capacity(windows.len());
    if !windows.is_empty() {
        let device = Device::Cpu;
        let (tokens, longest) = (windows.iter().map(Vec::len).sum(), windows.iter().map(Vec::len).max().unwrap_or(0));
        check_ram("running the sequences", sweep::peak_bytes(spec, tokens, longest, context.threads), context.max_ram)?;
        let mut sweep = Sweep::new(spec, &windows, &device)?;
        context.progress.start("layers", spec.n_layers as u64);
        sweep.embed_from(source)?;
        for index in 0..spec.n_layers {
            let layer = Layer::load(source, index, &device)?;
            sweep.run_layer(&layer, index, None)?;
            context.progress.advance(1);
        }
        context.progress.finish();
        let normed = sweep.finish_from(source, None)?;
        let head = Head::load(source, &device)?;
        for (w, window) in windows.iter().enumerate() {
            let mut positions = Vec::with_capacity(window.len());
            head.for_each_chunk(&normed.window(w)?, |first, rows| {
                let vocab = head.vocab_size();
                let next = |(i, row): (usize, &[f32])| Next { position: first + i, top: most_likely(row, top) };
                positions.extend(rows.par_chunks_exact(vocab).enumerate().map(next).collect::<Vec<_>>());
                Ok(())
            })?;
            results.push(positions);
        }
    }
    let mut results = results.into_iter();
    let sequences =
        input.sequences.iter().map(|s| if s.is_empty() { Vec::new() } else { results.next().unwrap_or_default() }).collect();
    Ok(Distributions { sequences })
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
    /// Why it ended: `length`, `eos`, `context` or `stopped`.
    pub stop: &'static str,
    /// Seconds for prompt and text together, loading not counted.
    pub seconds: f64,
}

/// Generates text, giving it to `each` piece by piece.
pub fn generate(
    model: &Opened,
    options: &GenerateOptions,
    max_ram: Option<u64>,
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
    // All layers are held as they are stored, for every token needs each of them.
    check_ram("generation", model.checkpoint.weight_bytes(), max_ram)?;
    let loaded = Model::load(&model.checkpoint, &Device::Cpu)?;
    let start = Instant::now();
    let mut stream = tokenizer.stream(&ids);
    let mut text = String::new();
    let mut failure = None;
    let mut give = |piece: Result<String>| -> Flow {
        let given = piece.and_then(|piece| {
            text.push_str(&piece);
            if piece.is_empty() { Ok(()) } else { each(&piece) }
        });
        match given {
            Ok(()) => Flow::Continue,
            Err(e) => {
                failure = Some(e);
                Flow::Stop
            }
        }
    };
    let run =
        Generate { max_tokens: options.max_tokens, sampling: options.sampling.clone(), cache: options.cache, ignore_eos: false };
    let generated = loaded.generate(&ids, &run, |token| give(stream.push(token)))?;
    give(stream.finish());
    if let Some(e) = failure {
        return Err(e);
    }
    let stop = match generated.stop {
        Stop::Length => "length",
        Stop::Eos(_) => "eos",
        Stop::Context => "context",
        Stop::Caller => "stopped",
    };
    Ok(Generation {
        model: model.name.clone(),
        prompt,
        prompt_tokens: ids.len(),
        text,
        tokens: generated.tokens,
        stop,
        seconds: start.elapsed().as_secs_f64(),
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

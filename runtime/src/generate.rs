//! Token-major execution: all layers resident, keys and values of earlier tokens cached, text one token at a time.

mod batch;
mod score;
mod stops;

pub use crate::cache::CacheType;
pub(crate) use batch::Segment;
pub use batch::{Batch, Feed, Sequence, Wanted};
pub use score::Score;
pub use stops::{Released, StopStrings};

use crate::checkpoint::WeightSource;
use crate::embedding::{Embedding, OutputNorm};
use crate::head::Head;
use crate::layer::Layer;
use crate::sampler::{Sampler, Sampling};
use crate::spec::ModelSpec;
use bitsmith_formats::{Error, Result};
use candle_core::Device;

/// Prompt tokens processed together.
const PROMPT_CHUNK: usize = 512;

/// A whole model in memory, for generation.
#[derive(Debug)]
pub struct Model {
    spec: ModelSpec,
    device: Device,
    embedding: Embedding,
    layers: Vec<Layer>,
    output_norm: OutputNorm,
    head: Head,
}

impl Model {
    /// Loads every layer, matrices in the blocks they are stored in, to run in the source's mode.
    pub fn load(source: &dyn WeightSource, device: &Device) -> Result<Self> {
        let spec = source.spec().clone();
        let embedding = Embedding::load(source, device)?;
        let head =
            if spec.tied { Head::with_matrix(source, embedding.table().clone(), device)? } else { Head::load(source, device)? };
        let layers = (0..spec.n_layers).map(|l| Layer::load(source, l, device)).collect::<Result<_>>()?;
        Ok(Model { output_norm: OutputNorm::load(source, device)?, device: device.clone(), spec, embedding, layers, head })
    }

    /// The model's hyperparameters.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// Where the weights live.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// A new, empty sequence; an error if the model's heads cannot be stored so.
    pub fn session(&self, cache: CacheType) -> Result<Session<'_>> {
        let batch = Batch::new(self);
        Ok(Session { sequence: batch.sequence(cache)?, batch })
    }

    /// Continues `prompt`, calling `each` with every new token; `each` may stop the generation. Tokens given to `each` never
    /// include an end-of-sequence token.
    pub fn generate(&self, prompt: &[u32], options: &Generate, mut each: impl FnMut(u32) -> Flow) -> Result<Generated> {
        if prompt.is_empty() {
            return Err(
                Error::usage("the prompt has no tokens").hint("give some text, or use a model whose tokenizer adds a BOS token")
            );
        }
        let mut session = self.session(options.cache)?;
        let mut sampler = Sampler::new(options.sampling.clone());
        let mut logits = session.feed(prompt)?;
        let mut tokens = Vec::new();
        let stop = loop {
            if tokens.len() >= options.max_tokens {
                break Stop::Length;
            }
            let token = sampler.pick(&logits);
            if !options.ignore_eos && self.spec.eos.contains(&token) {
                break Stop::Eos(token);
            }
            tokens.push(token);
            if each(token) == Flow::Stop {
                break Stop::Caller;
            }
            if session.len() >= self.spec.context_length {
                break Stop::Context;
            }
            if tokens.len() < options.max_tokens {
                logits = session.feed(&[token])?;
            }
        };
        Ok(Generated { tokens, stop })
    }
}

/// One sequence being read or written by a [`Model`].
#[derive(Debug)]
pub struct Session<'a> {
    batch: Batch<'a>,
    sequence: Sequence,
}

impl Session<'_> {
    /// Tokens fed so far.
    #[expect(clippy::len_without_is_empty, reason = "a length in tokens, not a container")]
    pub fn len(&self) -> usize {
        self.sequence.len()
    }

    /// Feeds tokens and gives the logits after the last one, `vocab` values.
    pub fn feed(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        let mut last = Vec::new();
        let mut chunks = tokens.chunks(PROMPT_CHUNK).peekable();
        while let Some(tokens) = chunks.next() {
            let wanted = if chunks.peek().is_none() { Wanted::Last } else { Wanted::Nothing };
            let feed = Feed { sequence: &mut self.sequence, tokens, wanted };
            self.batch.step(&mut [feed], |_, _, logits| last = logits.to_vec())?;
        }
        if !crate::kernels::all_finite(&last) {
            return Err(not_finite(self.len() - 1));
        }
        Ok(last)
    }
}

/// The error for logits that mean nothing, after the token at `position`.
pub fn not_finite(position: usize) -> Error {
    Error::corrupt(format!("logits at position {position} are not finite"))
        .hint("a weight is damaged, or the activations overflow")
}

/// Options of [`Model::generate`].
#[derive(Debug, Clone)]
pub struct Generate {
    /// Most tokens to generate.
    pub max_tokens: usize,
    /// How to choose them.
    pub sampling: Sampling,
    /// Storage of keys and values.
    pub cache: CacheType,
    /// Whether to go on after an end-of-sequence token.
    pub ignore_eos: bool,
}

impl Default for Generate {
    fn default() -> Self {
        Generate { max_tokens: 128, sampling: Sampling::default(), cache: CacheType::F32, ignore_eos: false }
    }
}

/// Whether a callback wants more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// Go on.
    Continue,
    /// Stop here.
    Stop,
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// `max_tokens` reached.
    Length,
    /// The model said this end-of-sequence token.
    Eos(u32),
    /// The callback said stop.
    Caller,
    /// The context is full.
    Context,
}

/// What was generated.
#[derive(Debug, Clone)]
pub struct Generated {
    /// New tokens, without the end-of-sequence token.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub stop: Stop,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Rounded, model, tokens};
    use bitsmith_formats::ErrorKind;
    use serde_json::json;

    /// Generation sees the keys and values that an evaluation with the same type of cache sees.
    #[test]
    fn incremental_logits_equal_the_sweeps() {
        let cases = [
            ("llama", json!({"max_position_embeddings": 700, "head_dim": 32})),
            ("mistral", json!({"sliding_window": 7, "head_dim": 32})),
            ("qwen3", json!({"head_dim": 32})),
        ];
        for (model_type, changes) in cases {
            let weights = model(model_type, changes);
            let window = tokens(if model_type == "llama" { 600 } else { 60 }, 4);
            let model = Model::load(&weights, &Device::Cpu).unwrap();
            let mut exact = Vec::new();
            for kind in CacheType::ALL {
                let source = Rounded(weights.clone(), kind);
                let normed = crate::sweep::run(&source, std::slice::from_ref(&window), &Device::Cpu, None).unwrap();
                let want = normed.logits(&model.head, 0).unwrap();
                let mut session = model.session(kind).unwrap();
                // A prompt longer than a chunk, then a few tokens at once, then one by one.
                let mut at = window.len() - 30;
                let mut steps = vec![at, 5];
                steps.extend([1; 25]);
                at = 0;
                let (mut worst, mut rounding) = (0f32, 0f32);
                for n in steps {
                    let logits = session.feed(&window[at..at + n]).unwrap();
                    at += n;
                    for (i, (a, b)) in logits.iter().zip(&want[(at - 1) * 61..]).enumerate() {
                        worst = worst.max((a - b).abs());
                        rounding = rounding.max((b - exact.get((at - 1) * 61 + i).unwrap_or(b)).abs());
                    }
                }
                assert_eq!(session.len(), window.len());
                // Sums of other numbers of rows may be rounded differently, and now and then a code with them.
                match kind {
                    CacheType::F32 => assert!(worst < 1e-4, "{model_type}: {worst}"),
                    _ => assert!(worst < 0.2 * rounding, "{model_type} {kind}: {worst} of {rounding}"),
                }
                if exact.is_empty() {
                    exact = want;
                }
            }
        }
    }

    #[test]
    fn greedy_follows_the_largest_logit_and_stops() {
        let source = model("llama", json!({"max_position_embeddings": 24}));
        let model = Model::load(&source, &Device::Cpu).unwrap();
        let options = Generate { max_tokens: 10, ignore_eos: true, ..Generate::default() };
        let mut streamed = Vec::new();
        let out = model
            .generate(&[1, 5], &options, |t| {
                streamed.push(t);
                Flow::Continue
            })
            .unwrap();
        assert_eq!((out.tokens.len(), out.stop), (10, Stop::Length));
        assert_eq!(streamed, out.tokens);
        let mut text = vec![1, 5];
        for t in &out.tokens {
            let logits = model.session(CacheType::F32).unwrap().feed(&text).unwrap();
            let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap();
            assert_eq!(*t as usize, best);
            text.push(*t);
        }
        // The third token as end of sequence.
        let mut spec = source.spec().clone();
        spec.eos = vec![out.tokens[2]];
        let first = out.tokens.iter().position(|t| *t == out.tokens[2]).unwrap();
        let with_eos = Model { spec, ..Model::load(&source, &Device::Cpu).unwrap() };
        let stopped = with_eos.generate(&[1, 5], &Generate { ignore_eos: false, ..options.clone() }, |_| Flow::Continue).unwrap();
        assert_eq!((stopped.tokens.len(), stopped.stop), (first, Stop::Eos(out.tokens[2])));
        let caller = model.generate(&[1, 5], &options, |_| Flow::Stop).unwrap();
        assert_eq!((caller.tokens.len(), caller.stop), (1, Stop::Caller));
        let full = model.generate(&[1; 20], &Generate { max_tokens: 100, ..options.clone() }, |_| Flow::Continue).unwrap();
        assert_eq!((full.tokens.len(), full.stop), (5, Stop::Context));
        assert_eq!(model.generate(&[1; 25], &options, |_| Flow::Continue).unwrap_err().kind, ErrorKind::Usage);
        assert_eq!(model.generate(&[], &options, |_| Flow::Continue).unwrap_err().kind, ErrorKind::Usage);
        assert_eq!(model.generate(&[99], &options, |_| Flow::Continue).unwrap_err().kind, ErrorKind::Corrupt);
    }
}

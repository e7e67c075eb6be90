//! Token-major execution: all layers resident, keys and values of earlier tokens cached, text one token at a time.

use crate::block::{Rows, Run};
use crate::checkpoint::WeightSource;
use crate::head::Head;
use crate::layer::Layer;
use crate::ops::{self, OrFail, rms_norm};
use crate::product::Weight;
use crate::role::{Part, Role};
use crate::rope::RopeTable;
use crate::sampler::{Sampler, Sampling};
use crate::spec::ModelSpec;
use bitsmith_formats::{Error, Result};
use candle_core::{DType, Device, Tensor};

/// Prompt tokens processed together.
const PROMPT_CHUNK: usize = 512;
/// Cached positions are allocated in steps of this many tokens.
const CACHE_STEP: usize = 256;

/// Storage type of cached keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CacheType {
    /// Exact.
    #[default]
    F32,
    /// Half the memory.
    F16,
}

/// Keys and values of one layer.
#[derive(Debug)]
pub(crate) struct LayerCache {
    /// Keys and values, `(capacity, kv_heads × head_dim)` each.
    planes: Option<[Tensor; 2]>,
    len: usize,
    dtype: DType,
}

impl LayerCache {
    fn new(kind: CacheType) -> Self {
        let dtype = match kind {
            CacheType::F32 => DType::F32,
            CacheType::F16 => DType::F16,
        };
        LayerCache { planes: None, len: 0, dtype }
    }

    /// Appends rows of keys and values and gives all so far, as f32.
    pub(crate) fn append(&mut self, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        self.append_inner(k, v).or_fail()
    }

    fn append_inner(&mut self, k: &Tensor, v: &Tensor) -> candle_core::Result<(Tensor, Tensor)> {
        let (rows, width) = k.dims2()?;
        let len = self.len + rows;
        let capacity = match &self.planes {
            Some([k, _]) => k.dim(0)?,
            None => 0,
        };
        if len > capacity {
            let larger = len.max(capacity * 2).next_multiple_of(CACHE_STEP);
            let grow = |old: Option<&Tensor>| -> candle_core::Result<Tensor> {
                let new = Tensor::zeros((larger, width), self.dtype, k.device())?;
                if let (Some(old), 1..) = (old, self.len) {
                    new.slice_set(&old.narrow(0, 0, self.len)?.contiguous()?, 0, 0)?;
                }
                Ok(new)
            };
            let old = self.planes.as_ref();
            self.planes = Some([grow(old.map(|p| &p[0]))?, grow(old.map(|p| &p[1]))?]);
        }
        let Some([ck, cv]) = &self.planes else {
            candle_core::bail!("key-value cache without rows");
        };
        ck.slice_set(&k.to_dtype(self.dtype)?, 0, self.len)?;
        cv.slice_set(&v.to_dtype(self.dtype)?, 0, self.len)?;
        self.len = len;
        let all = |t: &Tensor| t.narrow(0, 0, len)?.to_dtype(DType::F32);
        Ok((all(ck)?, all(cv)?))
    }
}

/// A whole model in memory, for generation.
#[derive(Debug)]
pub struct Model {
    spec: ModelSpec,
    device: Device,
    embedding: Weight,
    layers: Vec<Layer>,
    output_norm: Tensor,
    head: Head,
}

impl Model {
    /// Loads every layer, matrices in the blocks they are stored in, to run in the source's mode.
    pub fn load(source: &dyn WeightSource, device: &Device) -> Result<Self> {
        let spec = source.spec().clone();
        let embedding = source.weight(Role::global(Part::TokenEmbd), device)?;
        let head = if spec.tied { Head::from_weight(&spec, embedding.clone())? } else { Head::load(source, device)? };
        let layers = (0..spec.n_layers).map(|l| Layer::load(source, l, device)).collect::<Result<_>>()?;
        let norm = source.read(Role::global(Part::OutputNorm))?;
        let output_norm = ops::from_host(norm.data, &norm.shape, device)?;
        Ok(Model { output_norm, device: device.clone(), spec, embedding, layers, head: head.with_mode(source.compute()) })
    }

    /// The model's hyperparameters.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// Where the weights live.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// A new, empty sequence.
    pub fn session(&self, cache: CacheType) -> Session<'_> {
        let caches = self.layers.iter().map(|_| LayerCache::new(cache)).collect();
        Session { model: self, caches, rope: RopeTable::new(&self.spec.rope, self.spec.head_dim, 0), len: 0 }
    }

    /// Continues `prompt`, calling `each` with every new token; `each` may stop the generation. Tokens given to `each` never
    /// include an end-of-sequence token.
    pub fn generate(&self, prompt: &[u32], options: &Generate, mut each: impl FnMut(u32) -> Flow) -> Result<Generated> {
        if prompt.is_empty() {
            return Err(
                Error::usage("the prompt has no tokens").hint("give some text, or use a model whose tokenizer adds a BOS token")
            );
        }
        let mut session = self.session(options.cache);
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
    model: &'a Model,
    caches: Vec<LayerCache>,
    rope: RopeTable,
    len: usize,
}

impl Session<'_> {
    /// Tokens fed so far.
    #[expect(clippy::len_without_is_empty, reason = "a length in tokens, not a container")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Feeds tokens and gives the logits after the last one, `vocab` values.
    pub fn feed(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        let mut last = Vec::new();
        for chunk in tokens.chunks(PROMPT_CHUNK) {
            last = self.feed_chunk(chunk)?;
        }
        Ok(last)
    }

    fn feed_chunk(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        let spec = &self.model.spec;
        if let Some(bad) = tokens.iter().find(|t| **t as usize >= spec.vocab_size) {
            return Err(Error::corrupt(format!("token {bad} is outside the model's vocabulary of {}", spec.vocab_size)));
        }
        let end = self.len + tokens.len();
        if end > spec.context_length {
            return Err(Error::usage(format!("{end} tokens exceed the model's context of {}", spec.context_length)));
        }
        if end > self.rope.positions() {
            let positions = end.max(2 * self.rope.positions()).next_multiple_of(CACHE_STEP);
            self.rope = RopeTable::new(&spec.rope, spec.head_dim, positions);
        }
        let rows = Rows { windows: 1, len: tokens.len(), start: self.len };
        let mut x = self.model.embedding.embed(tokens, &self.model.device)?;
        for (index, (layer, cache)) in self.model.layers.iter().zip(&mut self.caches).enumerate() {
            let run = Run { spec, rope: &self.rope, layer_index: index, observer: None };
            x = run.forward(layer, &x, rows, Some(cache))?;
        }
        self.len = end;
        let last = x.narrow(0, tokens.len() - 1, 1).or_fail()?;
        let normed = rms_norm(&last, &self.model.output_norm, spec.rms_eps)?;
        let logits: Vec<f32> = self.model.head.logits(&normed)?.flatten_all().and_then(|t| t.to_vec1()).or_fail()?;
        if !crate::kernels::all_finite(&logits) {
            return Err(Error::corrupt(format!("logits at position {} are not finite", end - 1))
                .hint("a weight is damaged, or the activations overflow"));
        }
        Ok(logits)
    }
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
    use crate::testing::{model, tokens};
    use bitsmith_formats::ErrorKind;
    use serde_json::json;

    #[test]
    fn incremental_logits_equal_the_sweeps() {
        for (model_type, changes) in
            [("llama", json!({"max_position_embeddings": 700})), ("mistral", json!({"sliding_window": 7})), ("qwen3", json!({}))]
        {
            let source = model(model_type, changes);
            let window = tokens(if model_type == "llama" { 600 } else { 60 }, 4);
            let normed = crate::sweep::run(&source, std::slice::from_ref(&window), &Device::Cpu, None).unwrap();
            let model = Model::load(&source, &Device::Cpu).unwrap();
            let want = normed.logits(&model.head, 0).unwrap();
            for (cache, tolerance) in [(CacheType::F32, 1e-4), (CacheType::F16, 2e-2)] {
                let mut session = model.session(cache);
                // A prompt longer than a chunk, then a few tokens at once, then one by one.
                let mut at = window.len() - 30;
                let mut steps = vec![at, 5];
                steps.extend([1; 25]);
                at = 0;
                for n in steps {
                    let logits = session.feed(&window[at..at + n]).unwrap();
                    at += n;
                    for (a, b) in logits.iter().zip(&want[(at - 1) * 61..]) {
                        assert!((a - b).abs() < tolerance, "{model_type} {cache:?} at {at}: {a} {b}");
                    }
                }
                assert_eq!(session.len(), window.len());
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
            let logits = model.session(CacheType::F32).feed(&text).unwrap();
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

//! Layer-major execution: every token window goes through one layer, then through the next, so that one layer of weights is
//! resident at a time and each is read once.
//!
//! Windows of equal length are grouped into batches of about [`BATCH_TOKENS`] tokens. Batches depend on the windows alone and run
//! one after the other, each using all threads inside, so results do not depend on the number of threads.

use crate::block::{Observer, Rows, Run};
use crate::checkpoint::WeightSource;
use crate::head::Head;
use crate::layer::Layer;
use crate::ops::{self, OrFail, rms_norm};
use crate::role::{Input, Part, Role, Site};
use crate::rope::RopeTable;
use crate::spec::ModelSpec;
use bitsmith_formats::{Error, Result};
use candle_core::{Device, Tensor};

/// Tokens per batch, unless one window is longer.
pub const BATCH_TOKENS: usize = 1024;

#[derive(Debug)]
struct Batch {
    /// Indices of the windows, in ascending order.
    windows: Vec<usize>,
    /// Tokens per window.
    len: usize,
    /// The tokens of all windows.
    tokens: Vec<u32>,
}

/// Hidden states of all windows. Cloning is cheap; nothing changes them in place.
#[derive(Debug, Clone)]
pub struct Hidden {
    /// One tensor `(windows × len, hidden)` per batch.
    batches: Vec<Tensor>,
}

/// Token windows on their way through a model.
#[derive(Debug)]
pub struct Sweep {
    spec: ModelSpec,
    device: Device,
    rope: RopeTable,
    batches: Vec<Batch>,
    /// Batch and row of each window's first token.
    places: Vec<(usize, usize)>,
    hidden: Option<Hidden>,
}

/// Output-normed hidden states, by window.
#[derive(Debug, Clone)]
pub struct Normed {
    batches: Vec<Tensor>,
    places: Vec<(usize, usize, usize)>,
}

impl Sweep {
    /// Prepares windows of token ids. Windows may differ in length; none may be empty.
    pub fn new(spec: &ModelSpec, windows: &[Vec<u32>], device: &Device) -> Result<Self> {
        let mut order: Vec<usize> = (0..windows.len()).collect();
        order.sort_by_key(|i| windows[*i].len());
        let mut batches: Vec<Batch> = Vec::new();
        let mut places = vec![(0, 0); windows.len()];
        for i in order {
            let window = &windows[i];
            if window.is_empty() {
                return Err(Error::usage(format!("token window {i} is empty")));
            }
            if let Some(bad) = window.iter().find(|t| **t as usize >= spec.vocab_size) {
                return Err(Error::corrupt(format!(
                    "token {bad} in window {i} is outside the model's vocabulary of {}",
                    spec.vocab_size
                ))
                .hint("the tokenizer does not belong to this model"));
            }
            let fits = |b: &Batch| b.len == window.len() && b.tokens.len() + window.len() <= BATCH_TOKENS;
            if !batches.last().is_some_and(fits) {
                batches.push(Batch { windows: Vec::new(), len: window.len(), tokens: Vec::new() });
            }
            let at = batches.len() - 1;
            if let Some(batch) = batches.last_mut() {
                places[i] = (at, batch.tokens.len());
                batch.windows.push(i);
                batch.tokens.extend_from_slice(window);
            }
        }
        let longest = batches.iter().map(|b| b.len).max().unwrap_or(0);
        let rope = RopeTable::new(&spec.rope, spec.head_dim, longest);
        Ok(Sweep { spec: spec.clone(), device: device.clone(), rope, batches, places, hidden: None })
    }

    /// The model's hyperparameters.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }
    /// Where tensors live.
    pub fn device(&self) -> &Device {
        &self.device
    }
    /// Number of windows.
    pub fn n_windows(&self) -> usize {
        self.places.len()
    }
    /// Tokens in all windows.
    pub fn n_tokens(&self) -> usize {
        self.batches.iter().map(|b| b.tokens.len()).sum()
    }

    /// Starts the sweep: hidden states become the tokens' embeddings. `embedding` is `(vocab, hidden)`.
    pub fn embed(&mut self, embedding: &Tensor) -> Result<()> {
        let want = self.spec.shape(Part::TokenEmbd);
        if embedding.dims() != want {
            return Err(Error::corrupt(format!("shape {:?}, expected {want:?}", embedding.dims())).tensor(Part::TokenEmbd.name()));
        }
        let batches = self.batches.iter().map(|b| ops::embed(embedding, &b.tokens)).collect::<Result<_>>()?;
        self.hidden = Some(Hidden { batches });
        Ok(())
    }

    /// The hidden states now.
    pub fn hidden(&self) -> Result<&Hidden> {
        self.hidden.as_ref().ok_or_else(|| Error::failed("the sweep has no hidden states yet"))
    }

    /// Puts other hidden states in place, from [`Sweep::apply_layer`] for example.
    pub fn set_hidden(&mut self, hidden: Hidden) {
        self.hidden = Some(hidden);
    }

    fn for_each<T>(&self, hidden: &Hidden, f: impl Fn(&Tensor, Rows) -> Result<T>) -> Result<Vec<T>> {
        if hidden.batches.len() != self.batches.len() {
            return Err(Error::failed("these hidden states belong to another sweep"));
        }
        self.batches
            .iter()
            .zip(&hidden.batches)
            .map(|(b, x)| f(x, Rows { windows: b.windows.len(), len: b.len, start: 0 }))
            .collect()
    }

    fn checked(&self, layer: usize, x: Tensor) -> Result<Tensor> {
        if !ops::all_finite(&x)? {
            return Err(Error::corrupt(format!("hidden states of layer {layer} are not finite"))
                .tensor(format!("blk.{layer}"))
                .hint("a weight of this layer or an earlier one is damaged, or the activations overflow"));
        }
        Ok(x)
    }

    /// New hidden states: `hidden` after layer `index` with weights `layer`. The sweep's own hidden states stay.
    pub fn apply_layer(&self, hidden: &Hidden, layer: &Layer, index: usize, observer: Option<&dyn Observer>) -> Result<Hidden> {
        let run = Run { spec: &self.spec, rope: &self.rope, layer_index: index, observer };
        let batches = self.for_each(hidden, |x, rows| self.checked(index, run.forward(layer, x, rows, None)?))?;
        Ok(Hidden { batches })
    }

    /// Shows the observer the layer's linear inputs and discards the rest.
    pub fn observe_layer(&self, hidden: &Hidden, layer: &Layer, index: usize, observer: &dyn Observer) -> Result<()> {
        let run = Run { spec: &self.spec, rope: &self.rope, layer_index: index, observer: Some(observer) };
        self.for_each(hidden, |x, rows| self.checked(index, run.until_down(layer, x, rows, None)?.1))?;
        Ok(())
    }

    /// Pushes the hidden states through layer `index`, replacing them.
    pub fn run_layer(&mut self, layer: &Layer, index: usize, observer: Option<&dyn Observer>) -> Result<()> {
        let mut hidden = self.hidden.take().ok_or_else(|| Error::failed("the sweep has no hidden states yet"))?;
        if hidden.batches.len() != self.batches.len() {
            return Err(Error::failed("these hidden states belong to another sweep"));
        }
        let run = Run { spec: &self.spec, rope: &self.rope, layer_index: index, observer };
        // Batch by batch, so that old and new states exist twice for one batch only.
        for (b, x) in self.batches.iter().zip(&mut hidden.batches) {
            let rows = Rows { windows: b.windows.len(), len: b.len, start: 0 };
            *x = self.checked(index, run.forward(layer, x, rows, None)?)?;
        }
        self.hidden = Some(hidden);
        Ok(())
    }

    /// Applies the output norm, `(hidden)`, and shows the result to the observer as the head's input.
    pub fn finish(&self, output_norm: &Tensor, observer: Option<&dyn Observer>) -> Result<Normed> {
        let site = Site { layer: None, input: Input::Head };
        let batches = self.for_each(self.hidden()?, |x, _| {
            let normed = rms_norm(x, output_norm, self.spec.rms_eps)?;
            match observer {
                Some(o) if o.wants(site) => o.observe(site, &normed)?,
                _ => {}
            }
            Ok(normed)
        })?;
        let places = self.places.iter().map(|(b, row)| (*b, *row, self.batches[*b].len)).collect();
        Ok(Normed { batches, places })
    }

    /// The whole sweep: loads the embedding and each layer from `source`, runs it and frees it.
    pub fn run(&mut self, source: &dyn WeightSource, observer: Option<&dyn Observer>) -> Result<Normed> {
        self.embed_from(source)?;
        for index in 0..self.spec.n_layers {
            let layer = Layer::load(source, index, &self.device)?;
            self.run_layer(&layer, index, observer)?;
        }
        self.finish_from(source, observer)
    }

    /// [`Sweep::embed`] with the embedding read from `source`.
    pub fn embed_from(&mut self, source: &dyn WeightSource) -> Result<()> {
        let host = source.read(Role::global(Part::TokenEmbd))?;
        self.embed(&ops::from_host(host.data, &host.shape, &self.device)?)
    }

    /// [`Sweep::finish`] with the output norm read from `source`.
    pub fn finish_from(&self, source: &dyn WeightSource, observer: Option<&dyn Observer>) -> Result<Normed> {
        let norm = source.read(Role::global(Part::OutputNorm))?;
        self.finish(&ops::from_host(norm.data, &norm.shape, &self.device)?, observer)
    }
}

impl Normed {
    /// Number of windows.
    pub fn n_windows(&self) -> usize {
        self.places.len()
    }
    /// The states of one window, `(tokens, hidden)`.
    pub fn window(&self, index: usize) -> Result<Tensor> {
        let (batch, row, len) =
            *self.places.get(index).ok_or_else(|| Error::failed(format!("no window {index} of {}", self.n_windows())))?;
        self.batches[batch].narrow(0, row, len).or_fail()
    }
    /// Logits of one window, `(tokens, vocab)`, row-major on the host.
    pub fn logits(&self, head: &Head, index: usize) -> Result<Vec<f32>> {
        head.logits(&self.window(index)?)?.flatten_all().and_then(|t| t.to_vec1()).or_fail()
    }
}

/// Runs all windows through the model, one layer at a time, and gives the normed hidden states.
pub fn run(source: &dyn WeightSource, windows: &[Vec<u32>], device: &Device, observer: Option<&dyn Observer>) -> Result<Normed> {
    Sweep::new(source.spec(), windows, device)?.run(source, observer)
}

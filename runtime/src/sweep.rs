//! Layer-major execution: every token window goes through one layer, then through the next, so that one layer of weights is
//! resident at a time and each is read once.
//!
//! Windows of equal length are grouped into batches of about [`BATCH_TOKENS`] tokens. Batches depend on the windows alone and run
//! one after the other, each using all threads inside, so results do not depend on the number of threads.

use crate::block::{Mixed, Observer, Ropes, Rows, Run};
use crate::checkpoint::WeightSource;
use crate::embedding::{Embedding, OutputNorm, check_tokens};
use crate::head::Head;
use crate::layer::Layer;
use crate::ops::{self, OrFail};
use crate::role::{Input, Part, Site};
use crate::spec::ModelSpec;
use bitsmith_formats::{Error, Result};
use candle_core::{Device, Tensor};
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::Path;

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

/// A layer on its way: what attention gives is computed once, when all that it comes from is what it will be.
#[derive(Debug)]
pub struct Pieces {
    index: usize,
    /// Per batch.
    mixed: Vec<Mixed>,
}

impl Hidden {
    /// The states as tensors `(tokens, hidden)`, several windows in each. Two sweeps over the same windows agree in the order.
    pub fn tensors(&self) -> &[Tensor] {
        &self.batches
    }
}

/// Bytes that a sweep over `n_tokens` tokens in windows of at most `window` holds at its peak, besides what observers keep: hidden
/// states, the largest of embedding, layer and output matrix as f32, and one batch's intermediate results.
pub fn peak_bytes(spec: &ModelSpec, n_tokens: usize, window: usize, threads: usize) -> u64 {
    let layer = spec.largest_layer() as u64;
    let rows = BATCH_TOKENS.max(window).min(n_tokens) as u64;
    let kv_heads = if spec.latent.is_some() { spec.n_heads } else { spec.n_kv_heads };
    // Keys and values, and their copies as a cache has them.
    let heads = (spec.q_width() + 2 * kv_heads * (spec.head_dim + spec.v_head_dim)) as u64;
    // At most two of gate, up and down's output, and a few copies of the residual stream, live together.
    let batch = rows * (4 * spec.hidden_size as u64 + heads + 2 * spec.ffn_size as u64);
    let scores = (threads * crate::attention::scratch_values(spec.n_heads, spec.head_dim, spec.v_head_dim)) as u64;
    4 * (n_tokens as u64 * spec.hidden_size as u64 + layer.max(spec.numel(Part::TokenEmbd) as u64) + batch + scores)
}

impl Hidden {
    /// Bytes of all states.
    pub fn bytes(&self) -> u64 {
        self.batches.iter().map(|x| 4 * x.elem_count() as u64).sum()
    }

    /// Writes the states as little-endian f32, for [`Sweep::load_hidden`].
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut file = BufWriter::new(File::create(path).map_err(|e| Error::write(path, e))?);
        let mut write = |x: &Tensor| -> Result<()> {
            let written = ops::with_f32(x, |v| v.iter().try_for_each(|x| file.write_all(&x.to_le_bytes())))?;
            written.map_err(|e| Error::write(path, e))
        };
        self.batches.iter().try_for_each(&mut write)?;
        file.flush().map_err(|e| Error::write(path, e))
    }

    /// `‖self − other‖ / ‖other‖` over all tokens; 0 if both are zero.
    pub fn relative_error(&self, other: &Hidden) -> Result<f64> {
        let (mut error, mut size) = (0.0, 0.0);
        for (a, b) in self.batches.iter().zip(&other.batches) {
            let sums = ops::with_f32(a, |a| {
                ops::with_f32(b, |b| {
                    let squares = a.iter().zip(b).map(|(a, b)| (f64::from(a - b).powi(2), f64::from(*b).powi(2)));
                    squares.fold((0.0, 0.0), |sum, of| (sum.0 + of.0, sum.1 + of.1))
                })
            })??;
            (error, size) = (error + sums.0, size + sums.1);
        }
        Ok(if error == 0.0 { 0.0 } else { (error / size).sqrt() })
    }

    /// The largest magnitude of any hidden state.
    pub fn max_abs(&self) -> Result<f32> {
        let of = |x: &Tensor| ops::with_f32(x, |v| v.iter().fold(0f32, |m, x| m.max(x.abs())));
        self.batches.iter().try_fold(0f32, |m, x| Ok(m.max(of(x)?)))
    }
}

/// Token windows on their way through a model.
#[derive(Debug)]
pub struct Sweep {
    spec: ModelSpec,
    device: Device,
    ropes: Ropes,
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
            check_tokens(spec, window, || format!(" in window {i}"))?;
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
        let ropes = Ropes::new(spec, longest);
        Ok(Sweep { spec: spec.clone(), device: device.clone(), ropes, batches, places, hidden: None })
    }

    /// The model's hyperparameters.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }
    /// Where tensors live.
    pub fn device(&self) -> &Device {
        &self.device
    }
    /// The tables of rotations.
    pub(crate) fn ropes(&self) -> &Ropes {
        &self.ropes
    }
    /// How each batch's rows stand in their windows.
    pub(crate) fn rows(&self) -> impl Iterator<Item = Rows> {
        self.batches.iter().map(|b| Rows { windows: b.windows.len(), len: b.len, start: 0 })
    }
    /// Number of windows.
    pub fn n_windows(&self) -> usize {
        self.places.len()
    }
    /// Tokens in all windows.
    pub fn n_tokens(&self) -> usize {
        self.batches.iter().map(|b| b.tokens.len()).sum()
    }

    /// Starts the sweep: hidden states become the tokens' embeddings.
    pub fn embed(&mut self, embedding: &Embedding) -> Result<()> {
        self.hidden = Some(self.embedded(embedding)?);
        Ok(())
    }

    /// The tokens' embeddings. The sweep's own hidden states stay.
    pub fn embedded(&self, embedding: &Embedding) -> Result<Hidden> {
        let batches = self.batches.iter().map(|b| embedding.rows(&b.tokens, |i| i % b.len)).collect::<Result<_>>()?;
        Ok(Hidden { batches })
    }

    /// States that [`Hidden::save`] wrote in a sweep over the same windows.
    pub fn load_hidden(&self, path: &Path) -> Result<Hidden> {
        let failed = |e| Error::read(path, e);
        let mut file = BufReader::new(File::open(path).map_err(failed)?);
        let n = self.spec.hidden_size;
        let mut read = |b: &Batch| {
            let mut bytes = vec![0; 4 * n * b.tokens.len()];
            file.read_exact(&mut bytes).map_err(failed)?;
            let (values, _) = bytes.as_chunks::<4>();
            let values = values.iter().map(|v| f32::from_le_bytes(*v)).collect();
            ops::from_host(values, &[b.tokens.len(), n], &self.device)
        };
        Ok(Hidden { batches: self.batches.iter().map(&mut read).collect::<Result<_>>()? })
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
        self.rows().zip(&hidden.batches).map(|(rows, x)| f(x, rows)).collect()
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
        let run = Run { spec: &self.spec, ropes: &self.ropes, layer_index: index, observer };
        let batches = self.for_each(hidden, |x, rows| self.checked(index, run.forward(layer, x, rows, None)?))?;
        Ok(Hidden { batches })
    }

    /// Shows the observer the layer's linear inputs and discards the rest.
    pub fn observe_layer(&self, hidden: &Hidden, layer: &Layer, index: usize, observer: &dyn Observer) -> Result<()> {
        let run = Run { spec: &self.spec, ropes: &self.ropes, layer_index: index, observer: Some(observer) };
        self.for_each(hidden, |x, rows| run.observe_all(layer, x, rows))?;
        Ok(())
    }

    /// Number of batches: tensors in [`Hidden::tensors`].
    pub fn n_batches(&self) -> usize {
        self.batches.len()
    }

    /// Shows the observer the layer's linear inputs up to `last`, of one batch. Returns the residual stream, `(tokens, hidden)`, that the
    /// output of the block which reads `last` is added to.
    pub fn observe_batch(
        &self,
        hidden: &Hidden,
        pieces: &mut Pieces,
        layer: &Layer,
        batch: usize,
        last: Input,
        observer: &dyn Observer,
    ) -> Result<Tensor> {
        let run = Run { spec: &self.spec, ropes: &self.ropes, layer_index: pieces.index, observer: Some(observer) };
        match (self.batches.get(batch), hidden.batches.get(batch), pieces.mixed.get_mut(batch)) {
            (Some(b), Some(x), Some(mixed)) => {
                run.observe_until(layer, x, Rows { windows: b.windows.len(), len: b.len, start: 0 }, last, mixed)
            }
            _ => Err(Error::failed("these hidden states belong to another sweep")),
        }
    }

    /// Begins to run layer `index` in pieces.
    pub fn pieces(&self, index: usize) -> Pieces {
        Pieces { index, mixed: vec![Mixed::Wanted; self.batches.len()] }
    }

    /// Pushes the hidden states through the rest of a layer that was run in pieces, replacing them.
    pub fn finish_layer(&mut self, layer: &Layer, pieces: Pieces) -> Result<()> {
        self.replace(layer, pieces, None)
    }

    /// Pushes the hidden states through layer `index`, replacing them.
    pub fn run_layer(&mut self, layer: &Layer, index: usize, observer: Option<&dyn Observer>) -> Result<()> {
        self.replace(layer, Pieces { index, mixed: Vec::new() }, observer)
    }

    fn replace(&mut self, layer: &Layer, pieces: Pieces, observer: Option<&dyn Observer>) -> Result<()> {
        let index = pieces.index;
        let mut hidden = self.hidden.take().ok_or_else(|| Error::failed("the sweep has no hidden states yet"))?;
        if hidden.batches.len() != self.batches.len() {
            return Err(Error::failed("these hidden states belong to another sweep"));
        }
        let run = Run { spec: &self.spec, ropes: &self.ropes, layer_index: index, observer };
        // Batch by batch, so that old and new states exist twice for one batch only.
        let mut mixed = pieces.mixed.into_iter();
        for (b, x) in self.batches.iter().zip(&mut hidden.batches) {
            let rows = Rows { windows: b.windows.len(), len: b.len, start: 0 };
            *x = self.checked(index, run.forward_from(layer, x, rows, None, &mut mixed.next().unwrap_or_default())?)?;
        }
        self.hidden = Some(hidden);
        Ok(())
    }

    /// Applies the output norm and shows the result to the observer as the head's input.
    pub fn finish(&self, output_norm: &OutputNorm, observer: Option<&dyn Observer>) -> Result<Normed> {
        self.normed(self.hidden()?, output_norm, observer)
    }

    /// As [`Sweep::finish`], of other hidden states.
    pub fn normed(&self, hidden: &Hidden, output_norm: &OutputNorm, observer: Option<&dyn Observer>) -> Result<Normed> {
        let site = Site { layer: None, input: Input::Head };
        let batches = self.for_each(hidden, |x, _| {
            let normed = output_norm.apply(x)?;
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

    /// [`Sweep::embed`] with the rows of the embedding that are needed read from `source`.
    pub fn embed_from(&mut self, source: &dyn WeightSource) -> Result<()> {
        self.embed(&Embedding::load(source, &self.device)?)
    }

    /// [`Sweep::finish`] with the output norm read from `source`.
    pub fn finish_from(&self, source: &dyn WeightSource, observer: Option<&dyn Observer>) -> Result<Normed> {
        self.finish(&OutputNorm::load(source, &self.device)?, observer)
    }
}

impl Normed {
    /// The states as tensors `(tokens, hidden)`, in the order of [`Hidden::tensors`].
    pub fn tensors(&self) -> &[Tensor] {
        &self.batches
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::role::Role;
    use crate::testing::{model, plain_logits, tokens};
    use bitsmith_formats::ErrorKind;
    use serde_json::json;
    use std::collections::BTreeMap;
    use std::sync::Mutex;

    fn logits(source: &dyn WeightSource, windows: &[Vec<u32>]) -> Vec<Vec<f32>> {
        let normed = run(source, windows, &Device::Cpu, None).unwrap();
        let head = Head::load(source, &Device::Cpu).unwrap();
        (0..windows.len()).map(|i| normed.logits(&head, i).unwrap()).collect()
    }

    #[test]
    fn every_architecture_follows_its_definition() {
        let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32});
        let cases = [
            ("llama", json!({})),
            ("llama", json!({"attention_bias": true, "mlp_bias": true, "tie_word_embeddings": true})),
            ("llama", json!({"num_key_value_heads": 4, "head_dim": null, "rope_scaling": llama3})),
            ("llama", json!({"num_key_value_heads": 1, "rope_scaling": {"type": "linear", "factor": 4.0}})),
            ("mistral", json!({"sliding_window": 9, "head_dim": 10})),
            ("qwen2", json!({})),
            ("qwen3", json!({"head_dim": 12})),
        ];
        // Longer than a query block, equal lengths that share a batch, and a single token.
        let windows = [tokens(150, 0), tokens(20, 1), tokens(1, 2), tokens(20, 3)];
        for (model_type, changes) in cases {
            let source = model(model_type, changes.clone());
            for (got, window) in logits(&source, &windows).iter().zip(&windows) {
                let want = plain_logits(&source, window).concat();
                assert_eq!(got.len(), want.len());
                for (g, w) in got.iter().zip(&want) {
                    assert!((f64::from(*g) - w).abs() < 2e-4, "{model_type} {changes}: {g} {w}");
                }
            }
        }
    }

    #[test]
    fn future_tokens_change_nothing() {
        let source = model("llama", json!({}));
        let mut other = tokens(40, 0);
        other[30] = 5;
        let out = logits(&source, &[tokens(40, 0), other]);
        assert_eq!(out[0][..30 * 61], out[1][..30 * 61]);
        assert_ne!(out[0][30 * 61..31 * 61], out[1][30 * 61..31 * 61]);
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let source =
            model("llama", json!({"hidden_size": 256, "intermediate_size": 640, "head_dim": 32, "num_attention_heads": 8}));
        let windows: Vec<Vec<u32>> = (0..12).map(|i| tokens(200 + i % 2, i)).collect();
        let with = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| logits(&source, &windows))
        };
        let one = with(1);
        assert!(one == with(2) && one == with(3));
    }

    /// Counts tokens and sums inputs per site.
    #[derive(Default)]
    struct Sums(Mutex<BTreeMap<Site, (usize, usize, f64)>>);

    impl Observer for Sums {
        fn observe(&self, site: Site, x: &Tensor) -> Result<()> {
            let (rows, width) = x.dims2().or_fail()?;
            let sum = ops::with_f32(x, |v| v.iter().map(|v| f64::from(*v)).sum::<f64>())?;
            let mut sums = self.0.lock().unwrap();
            let entry = sums.entry(site).or_insert((0, width, 0.0));
            entry.0 += rows;
            entry.2 += sum;
            Ok(())
        }
    }

    #[test]
    fn observer_sees_every_site_once_per_token() {
        let source = model("qwen3", json!({"head_dim": 12}));
        let windows = [tokens(600, 0), tokens(600, 1), tokens(3, 1)];
        let sums = Sums::default();
        run(&source, &windows, &Device::Cpu, Some(&sums)).unwrap();
        let seen = sums.0.into_inner().unwrap();
        let width = |i: Input| match i {
            Input::AttnOut => 48,
            Input::FfnOut => 48,
            _ => 32,
        };
        assert_eq!(seen.len(), 2 * 4 + 1);
        for (site, (rows, w, _)) in &seen {
            assert_eq!((*rows, *w), (1203, width(site.input)), "{site}");
        }
        // Gathering alone sees the same numbers as running.
        let again = Sums::default();
        let mut sweep = Sweep::new(source.spec(), &windows, &Device::Cpu).unwrap();
        sweep.embed_from(&source).unwrap();
        for l in 0..2 {
            let layer = Layer::load(&source, l, &Device::Cpu).unwrap();
            sweep.observe_layer(sweep.hidden().unwrap(), &layer, l, &again).unwrap();
            let next = sweep.apply_layer(sweep.hidden().unwrap(), &layer, l, None).unwrap();
            sweep.set_hidden(next);
        }
        sweep.finish_from(&source, Some(&again)).unwrap();
        assert_eq!(again.0.into_inner().unwrap(), seen);
    }

    #[test]
    fn replaced_weights_take_effect_and_the_original_states_stay() {
        let source = model("llama", json!({}));
        let mut sweep = Sweep::new(source.spec(), &[tokens(10, 0)], &Device::Cpu).unwrap();
        sweep.embed_from(&source).unwrap();
        let start = sweep.hidden().unwrap().clone();
        let mut layer = Layer::load(&source, 0, &Device::Cpu).unwrap();
        let a = sweep.apply_layer(&start, &layer, 0, None).unwrap();
        let up = layer.host(Part::FfnUp).unwrap();
        layer.replace_host(Part::FfnUp, up.iter().map(|v| v * 0.5).collect()).unwrap();
        let b = sweep.apply_layer(&start, &layer, 0, None).unwrap();
        let first = |h: &Hidden| h.batches[0].to_vec2::<f32>().unwrap();
        assert_ne!(first(&a), first(&b));
        layer.replace_host(Part::FfnUp, up).unwrap();
        assert_eq!(first(&a), first(&sweep.apply_layer(&start, &layer, 0, None).unwrap()));
        assert!(layer.replace_host(Part::FfnUp, vec![0.0; 3]).is_err());
    }

    #[test]
    fn bad_input_is_named() {
        let mut source = model("llama", json!({}));
        let e = Sweep::new(source.spec(), &[vec![1, 2], vec![3, 61]], &Device::Cpu).unwrap_err();
        assert_eq!(e.kind, ErrorKind::Corrupt);
        assert!(e.message.contains("token 61 in window 1"), "{e}");
        assert_eq!(Sweep::new(source.spec(), &[vec![]], &Device::Cpu).unwrap_err().kind, ErrorKind::Usage);
        source.set(Role::layer(1, Part::FfnDown), vec![3e38; 32 * 48]).unwrap();
        let e = run(&source, &[tokens(10, 0)], &Device::Cpu, None).unwrap_err();
        assert_eq!(e.kind, ErrorKind::Corrupt);
        assert!(e.message.contains("layer 1"), "{e}");
    }

    #[test]
    fn nll_is_minus_log_softmax() {
        let source = model("llama", json!({"tie_word_embeddings": true}));
        let window = tokens(30, 0);
        let normed = run(&source, std::slice::from_ref(&window), &Device::Cpu, None).unwrap();
        let head = Head::load(&source, &Device::Cpu).unwrap();
        let states = normed.window(0).unwrap().narrow(0, 0, 29).unwrap();
        let nll = head.nll(&states, &window[1..]).unwrap();
        let mut rows = normed.logits(&head, 0).unwrap();
        for ((nll, row), target) in nll.iter().zip(rows.chunks_mut(61)).zip(&window[1..]) {
            crate::head::log_softmax(row);
            assert!((nll + f64::from(row[*target as usize])).abs() < 1e-5);
            let total: f64 = row.iter().map(|v| f64::from(*v).exp()).sum();
            assert!((total - 1.0).abs() < 1e-5);
        }
        assert!(head.nll(&states, &[61; 29]).is_err());
    }
}

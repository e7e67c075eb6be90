//! The layer loop with two streams of hidden states, the dense model's and the quantized one's, for asymmetric calibration.
//!
//! Within a layer, matrices are encoded in the order in which they run, so that what each reads is what those before it give once they
//! are quantized. Every eighth batch of text is held out, to choose how much is made up for and to see that it helps.

use crate::encode::{Encoder, SiteMap, layer_roles};
use bitsmith_calibrate::{Collector, Detail, PairCollector, Paired};
use bitsmith_formats::{EncodedTensor, Error, Result};
use bitsmith_quantize::Hessian;
use bitsmith_quantize::asymmetric::{self, Corrected};
use bitsmith_quantize::transform::DenseLayer;
use bitsmith_runtime::role::PartKind;
use bitsmith_runtime::{Embedding, Hidden, Input, Layer, Observer, OutputNorm, Part, Pieces, Role, Site, Sweep, ops};
use candle_core::Tensor;
use ndarray::{Array2, ArrayView2};
use std::collections::BTreeMap;

/// Inputs in the order in which they occur; those of one line are observed together.
const STAGES: &[&[Input]] = &[
    &[Input::AttnIn],
    &[Input::QueryLatent, Input::QueryHeads, Input::KvLatent],
    &[Input::AttnOut],
    &[Input::FfnIn],
    &[Input::FfnOut, Input::ExpertOut, Input::SharedOut],
];
/// One batch of so many is held out ...
const HOLD: usize = 8;
/// ... of at most this many batches,
const MOST_HELD: usize = 4;
/// if there are at least this many.
const LEAST: usize = 4;

/// Both streams of hidden states.
struct Streams {
    /// With the quantized model's.
    sweep: Sweep,
    dense: Hidden,
    /// The layer on its way in the dense model and in the quantized one.
    pieces: [Pieces; 2],
}

impl Streams {
    /// Goes on to another layer; what there is of the last one is returned.
    fn next(&mut self, index: usize) -> [Pieces; 2] {
        std::mem::replace(&mut self.pieces, [self.sweep.pieces(index), self.sweep.pieces(index)])
    }
}

/// What a site's matrices are encoded with besides statistics.
pub(crate) struct Pair<'a> {
    pub paired: &'a Paired,
    /// What the matrices' output is multiplied by before it is added to the residual stream.
    pub scale: f32,
}

impl Encoder<'_> {
    /// Layer-major, as in sequential mode.
    pub(crate) fn run_asymmetric(&self, windows: &[Vec<u32>], notes: &mut Vec<String>) -> Result<()> {
        let spec = self.source.spec();
        let device = &self.context.device;
        let mut sweep = Sweep::new(spec, windows, device)?;
        sweep.embed_from(self.source)?;
        let dense = sweep.hidden()?.clone();
        if !spec.tied {
            let data = self.decoded(Role::global(Part::TokenEmbd))?;
            let table = ops::from_host(data, &spec.shape(Part::TokenEmbd), device)?;
            sweep.embed(&Embedding::with_table(self.source, table.into(), device)?)?;
        }
        let pieces = [sweep.pieces(0), sweep.pieces(0)];
        let mut streams = Streams { sweep, dense, pieces };
        if streams.sweep.n_batches() < LEAST {
            notes.push(format!("too little text for qep: {} tokens", streams.sweep.n_tokens()));
        }
        for index in 0..spec.n_layers {
            let original = Layer::load(self.source, index, device)?;
            let mut quantized = original.clone();
            if !self.layer_done(index) {
                let mut dense = self.read_group(&layer_roles(self.source, index))?;
                let mut layer = original.clone();
                if !self.method.transforms.is_empty() {
                    let collector = Collector::new(Detail::Gram);
                    let hidden = streams.sweep.hidden()?.clone();
                    streams.sweep.observe_layer(&hidden, &original, index, &collector)?;
                    let mut stats = collector.take()?.into_iter().map(|(site, s)| (site.input, s)).collect();
                    self.transform(Some(index), &mut dense, &mut stats, notes)?;
                    for (&part, w) in &dense {
                        layer.replace_host(part, w.iter().copied().collect())?;
                    }
                }
                self.encode_in_stages(index, &dense, &layer, &mut quantized, &mut streams, notes)?;
            } else {
                self.fill(index, &mut quantized)?;
            }
            let [_, pieces] = streams.next(index + 1);
            // The original layer, as a run that goes on where another ended has no other.
            streams.dense = streams.sweep.apply_layer(&streams.dense, &original, index, None)?;
            streams.sweep.finish_layer(&quantized, pieces)?;
            self.context.progress.advance(1);
        }
        self.encode_head_pair(&streams, notes)?;
        self.context.progress.advance(1);
        Ok(())
    }

    /// Puts encoded tensors into a layer.
    fn fill(&self, index: usize, layer: &mut Layer) -> Result<()> {
        for role in layer_roles(self.source, index) {
            layer.replace_host(role.part, self.decoded(role)?)?;
        }
        Ok(())
    }

    /// Encodes a layer's tensors in the order in which they run, and puts each into `quantized`. `dense` are those of `layer`.
    fn encode_in_stages(
        &self,
        index: usize,
        dense: &DenseLayer,
        layer: &Layer,
        quantized: &mut Layer,
        streams: &mut Streams,
        notes: &mut Vec<String>,
    ) -> Result<()> {
        let scales = self.scales(Some(index), dense);
        let read = |part: Part| part.input().is_some();
        self.encode_unobserved(Some(index), dense, &scales, &read, notes)?;
        for &part in dense.keys() {
            let data = if read(part) { dense[&part].iter().copied().collect() } else { self.decoded(Role::layer(index, part))? };
            quantized.replace_host(part, data)?;
        }
        for &stage in STAGES {
            let inputs: Vec<Input> = stage.iter().copied().filter(|i| !self.readers(*i, dense).is_empty()).collect();
            if inputs.is_empty() {
                continue;
            }
            let mut sites = self.observe_pair(index, &inputs, [layer, quantized], streams)?;
            for input in inputs {
                let paired = sites.remove(&Site { layer: Some(index), input });
                let pair = paired.as_ref().map(|paired| Pair { paired, scale: self.source.spec().scales.residual });
                let stats = paired.as_ref().map(|p| &p.stats);
                self.encode_site(Site { layer: Some(index), input }, dense, &scales, stats, pair.as_ref(), notes)?;
                // With their biases, which may have been corrected.
                let readers = self.readers(input, dense);
                let biases = readers.iter().filter_map(|p| p.bias()).filter(|b| dense.contains_key(b));
                for part in readers.iter().copied().chain(biases) {
                    quantized.replace_host(part, self.decoded(Role::layer(index, part))?)?;
                }
            }
        }
        Ok(())
    }

    /// Shows a collector what both models' layers, the dense one's first, read at some inputs, given in order.
    fn observe_pair(
        &self,
        index: usize,
        inputs: &[Input],
        layers: [&Layer; 2],
        streams: &mut Streams,
    ) -> Result<BTreeMap<Site, Paired>> {
        let spec = self.source.spec();
        let wants = |site: Site| inputs.contains(&site.input);
        // Where a norm stands between, or other blocks add to the sum, what the stream lacks is not the matrix's to give.
        let has = |part: Part| spec.has_role(Role::layer(index, part));
        let writes = |site: Site| match site.input {
            Input::AttnOut => !has(Part::AttnPostNorm),
            Input::FfnOut => !has(Part::FfnPostNorm),
            _ => false,
        };
        let collector = PairCollector::new(&wants);
        let Streams { sweep, dense, pieces: [of_dense, of_quantized] } = streams;
        let (batches, last) = (sweep.n_batches(), inputs.iter().copied().max().expect("an input"));
        for batch in 0..batches {
            collector.begin(held_out(batch, batches));
            let dense = sweep.observe_batch(dense, of_dense, layers[0], batch, last, &collector)?;
            collector.quantized();
            let quantized = sweep.observe_batch(sweep.hidden()?, of_quantized, layers[1], batch, last, &collector)?;
            let lacking = difference(&dense, &quantized)?;
            collector.end(Some(lacking.view()), &writes)?;
        }
        collector.take()
    }

    /// As [`Encoder::encode_head`], with both streams at the output matrix.
    fn encode_head_pair(&self, streams: &Streams, notes: &mut Vec<String>) -> Result<()> {
        let roles = self.head_roles();
        if roles.iter().all(|r| self.spool.has(*r)) {
            return Ok(());
        }
        let site = Site { layer: None, input: Input::Head };
        let mut dense = self.read_group(&roles)?;
        if !self.method.transforms.is_empty() {
            let collector = Collector::new(Detail::Gram);
            streams.sweep.finish_from(self.source, Some(&collector))?;
            let mut stats: SiteMap = collector.take()?.into_iter().map(|(site, s)| (site.input, s)).collect();
            self.transform(None, &mut dense, &mut stats, notes)?;
        }
        let vector = |part: Part| -> Result<Option<Tensor>> {
            let of = |v: &Array2<f32>| ops::from_host(v.iter().copied().collect(), &[v.len()], &self.context.device);
            dense.get(&part).map(of).transpose()
        };
        let norm = OutputNorm::new(vector(Part::OutputNorm)?, vector(Part::OutputNormBias)?, self.source.spec().norm);
        let collector = PairCollector::new(&|_| true);
        let hidden = streams.dense.tensors().iter().zip(streams.sweep.hidden()?.tensors());
        let batches = hidden.len();
        for (batch, (dense, quantized)) in hidden.enumerate() {
            collector.begin(held_out(batch, batches));
            collector.observe(site, &norm.apply(dense)?)?;
            collector.quantized();
            collector.observe(site, &norm.apply(quantized)?)?;
            collector.end(None, &|_| false)?;
        }
        let paired = collector.take()?.remove(&site);
        // A tied table is read at the other end too.
        let pair = paired.as_ref().filter(|_| !self.source.spec().tied).map(|paired| Pair { paired, scale: 1.0 });
        let scales = self.scales(None, &dense);
        self.encode_site(site, &dense, &scales, paired.as_ref().map(|p| &p.stats), pair.as_ref(), notes)?;
        let read = |part: Part| self.readers(Input::Head, &dense).contains(&part);
        self.encode_unobserved(None, &dense, &scales, &read, notes)
    }
}

impl Pair<'_> {
    /// The weights that make up for what earlier matrices lost; `None` if there is nothing to tell them by.
    pub fn correct(&self, part: Part, weights: &Array2<f32>, hessian: Option<&Hessian>) -> Option<Corrected> {
        match part.kind() {
            PartKind::Stacked => None,
            _ => asymmetric::correct(weights, self.paired, hessian?, self.scale),
        }
    }

    /// The format's own encoding of the weights where the solver's loses more on held-out text, with a note.
    pub fn guard(
        &self,
        role: Role,
        weights: &Array2<f32>,
        tensor: EncodedTensor,
        importance: Option<&[f32]>,
        notes: &mut Vec<String>,
    ) -> Result<EncodedTensor> {
        if role.part.kind() == PartKind::Stacked {
            return Ok(tensor);
        }
        let lost = |tensor: &EncodedTensor| -> Result<Option<f64>> {
            let values = tensor.decode();
            let values = ArrayView2::from_shape(weights.dim(), &values).map_err(|e| Error::failed(e.to_string()))?;
            Ok(asymmetric::held_loss(weights, values, &self.paired.held, self.scale))
        };
        let Some(own) = lost(&tensor)? else { return Ok(tensor) };
        let values = weights.as_slice().ok_or_else(|| Error::failed("weights are not in order"))?;
        let reference = EncodedTensor::encode_scaled(tensor.codec, &tensor.shape, values, importance, tensor.scale)?;
        match lost(&reference)? {
            Some(reference_loss) if reference_loss < own => {
                notes.push(format!(
                    "{role}: the format's own encoder is kept: on held-out text it loses {:.3} times as much",
                    reference_loss / own
                ));
                Ok(reference)
            }
            _ => Ok(tensor),
        }
    }
}

/// Whether a batch of so many is held out.
fn held_out(batch: usize, batches: usize) -> bool {
    let stride = HOLD.max(batches.div_ceil(MOST_HELD));
    batches >= LEAST && batch % stride == LEAST - 1
}

/// What `quantized` lacks to be `dense`.
fn difference(dense: &Tensor, quantized: &Tensor) -> Result<Array2<f32>> {
    let array = |x: &Tensor| -> Result<Array2<f32>> {
        let dims = x.dims2().map_err(|e| Error::failed(e.to_string()))?;
        ops::with_f32(x, |v| Array2::from_shape_vec(dims, v.to_vec()))?.map_err(|e| Error::failed(e.to_string()))
    };
    Ok(array(dense)? - array(quantized)?)
}

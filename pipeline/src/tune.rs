//! End-to-end tuning: matrices that were encoded layer by layer move together so that the model's predictions come closer to the dense
//! model's (see [`bitsmith_quantize::solver::tuned`]).
//!
//! Each round takes the gradient of the divergence on the calibration text, and from it makes two candidates, a bolder and a more cautious
//! one; text that was held out chooses between them and the model as it was. So the divergence on that text never grows.

use crate::encode::{Encoder, Evidence};
use bitsmith_calibrate::{Collector, Detail};
use bitsmith_eval::metrics;
use bitsmith_formats::{CodecId, EncodedTensor, Encoding, Error, Result};
use bitsmith_quantize::Hessian;
use bitsmith_quantize::solver::tuned::{row_curvature, step};
use bitsmith_runtime::gradient::{self, Backward};
use bitsmith_runtime::role::PartKind;
use bitsmith_runtime::sampler::Rng;
use bitsmith_runtime::{
    Embedding, Head, HostTensor, Input, Layer, ModelSpec, OutputNorm, Part, Role, Sweep, WeightSource, kernels, ops,
};
use candle_core::Tensor;
use ndarray::{Array2, ArrayView2};
use rayon::prelude::*;
use std::collections::BTreeMap;

/// Rounds at most.
const ROUNDS: usize = 8;
/// κ to begin with.
const CAUTION: f32 = 512.0;
/// How far the two candidates of a round lie from κ, and by how much κ grows when neither is better.
const SPREAD: f32 = 2.0;
const RETREAT: f32 = 4.0;
/// Rounds without gain after which tuning ends.
const PATIENCE: usize = 2;
/// A round that gains less than this fraction counts as none.
const GAIN: f64 = 2e-3;
/// One window of so many is held out,
const HOLD: usize = 8;
/// if there are at least this many.
const LEAST_WINDOWS: usize = 8;

/// Encoded matrices.
pub(crate) type Tuned = BTreeMap<Role, EncodedTensor>;

/// Takes a matrix's gradient, `(out, in)`, and the curvature of its input.
type Give<'g> = dyn FnMut(Role, ArrayView2<'_, f32>, &Hessian) -> Result<()> + 'g;

/// Windows, and what the dense model makes of them.
struct Text {
    sweep: Sweep,
    /// Normed states before the output matrix, by batch.
    dense: Vec<Tensor>,
}

/// The dense model with encoded matrices in the place of its own.
struct Student<'a> {
    encoder: &'a Encoder<'a>,
    tuned: &'a Tuned,
}

struct Tuning<'a> {
    encoder: &'a Encoder<'a>,
    train: Text,
    held: Text,
    /// The dense model's output matrix.
    head: Head,
    roles: Vec<Role>,
}

/// What a derivative by the logits is of.
#[derive(Clone, Copy)]
enum Loss {
    /// The divergence from the dense model.
    Divergence,
    /// The negative log-likelihood of a token that the model itself samples at each place.
    Sampled,
}

impl Encoder<'_> {
    /// The quantized matrices, tuned together if the method says so. Nothing if there is too little text, or none to run.
    pub(crate) fn tuned(&self, notes: &mut Vec<String>) -> Result<Tuned> {
        if !self.method.solver.tunes() {
            return Ok(Tuned::new());
        }
        let Evidence::Windows { windows, .. } = &self.evidence else {
            notes.push("end-to-end tuning is left out: it needs the text itself".into());
            return Ok(Tuned::new());
        };
        if self.source.spec().require_head().is_err() {
            notes.push("end-to-end tuning is left out: the model predicts no tokens".into());
            return Ok(Tuned::new());
        }
        if windows.len() < LEAST_WINDOWS {
            notes.push(format!("too little text to tune on: {} windows of at least {LEAST_WINDOWS}", windows.len()));
            return Ok(Tuned::new());
        }
        let roles = self.tunable();
        let stacked = self.plan.entries.iter().any(|e| e.role.part.kind() == PartKind::Stacked && e.codec.float().is_none());
        if stacked {
            notes.push("matrices of experts are not tuned".into());
        }
        if roles.is_empty() {
            return Ok(Tuned::new());
        }
        let (held, train): (Vec<_>, Vec<_>) = windows.iter().cloned().enumerate().partition(|(i, _)| i % HOLD == HOLD - 1);
        let text = |windows: Vec<(usize, Vec<u32>)>| -> Result<Text> {
            let windows: Vec<Vec<u32>> = windows.into_iter().map(|(_, w)| w).collect();
            let mut sweep = Sweep::new(self.source.spec(), &windows, &self.context.device)?;
            let dense = sweep.run(self.source, None)?.tensors().to_vec();
            Ok(Text { sweep, dense })
        };
        let head = Head::load(self.source, &self.context.device)?;
        let tuning = Tuning { encoder: self, train: text(train)?, held: text(held)?, head, roles };
        tuning.run(notes)
    }

    /// Quantized matrices that read an input which is observed.
    fn tunable(&self) -> Vec<Role> {
        let spec = self.source.spec();
        let read = |role: Role| match role.part {
            Part::TokenEmbd => spec.tied,
            part => part.input().is_some() && part.kind() != PartKind::Stacked,
        };
        let runs = |role: Role| role.layer.is_none_or(|l| l < spec.n_layers);
        let quantized = self.plan.entries.iter().filter(|e| e.codec.codec().grid().is_some() && e.codec.float().is_none());
        quantized.map(|e| e.role).filter(|r| spec.has_role(*r) && runs(*r) && read(*r)).collect()
    }
}

impl Tuning<'_> {
    fn run(&self, notes: &mut Vec<String>) -> Result<Tuned> {
        let progress = &self.encoder.context.progress;
        progress.start("tune", ROUNDS as u64);
        let start = self.roles.iter().map(|r| Ok((*r, self.encoder.encoded(*r)?)));
        let mut best: Tuned = start.collect::<Result<_>>()?;
        let curvature = self.curvature(&best)?;
        let first = self.divergence(&self.held, &best)?;
        let (mut lost, mut kappa, mut idle, mut rounds) = (first, CAUTION, 0, 0);
        while rounds < ROUNDS && idle < PATIENCE && lost > 0.0 {
            rounds += 1;
            let candidates = self.step(&best, &curvature, [kappa / SPREAD, kappa * SPREAD])?;
            let mut found = None;
            let mut least = lost;
            for (candidate, kappa) in candidates.into_iter().zip([kappa / SPREAD, kappa * SPREAD]) {
                let loss = self.divergence(&self.held, &candidate)?;
                if loss < least {
                    least = loss;
                    found = Some((candidate, kappa));
                }
            }
            idle = if least < lost * (1.0 - GAIN) { 0 } else { idle + 1 };
            match found {
                Some((candidate, with)) => (best, kappa, lost) = (candidate, with, least),
                None => kappa *= RETREAT,
            }
            progress.advance(1);
        }
        progress.finish();
        notes
            .push(format!("tuned end to end in {rounds} rounds: divergence on held-out text {first:.6} before, {lost:.6} after"));
        Ok(best)
    }

    /// Mean divergence from the dense model, nats per token.
    fn divergence(&self, text: &Text, tuned: &Tuned) -> Result<f64> {
        let student = Student { encoder: self.encoder, tuned };
        let device = &self.encoder.context.device;
        let (head, norm) = (Head::load(&student, device)?, OutputNorm::load(&student, device)?);
        let mut hidden = text.sweep.embedded(&Embedding::load(&student, device)?)?;
        for index in 0..student.spec().n_layers {
            hidden = text.sweep.apply_layer(&hidden, &Layer::load(&student, index, device)?, index, None)?;
        }
        let mut total = 0.0;
        for (states, dense) in hidden.tensors().iter().zip(&text.dense) {
            head.for_each_chunk(&norm.apply(states)?, |first, logits| {
                let each = self.with_dense(dense, first, logits, |dense, logits| metrics::compare(dense, logits, 0).kld)?;
                total += each.into_iter().sum::<f64>();
                Ok(())
            })?;
        }
        Ok(total / text.sweep.n_tokens() as f64)
    }

    /// Calls `f` with rows of the dense model's logits and those given, which begin with row `first` of a batch.
    fn with_dense<T: Send>(
        &self,
        dense: &Tensor,
        first: usize,
        logits: &[f32],
        f: impl Fn(&[f32], &[f32]) -> T + Sync,
    ) -> Result<Vec<T>> {
        let vocab = self.head.vocab_size();
        let rows = dense.narrow(0, first, logits.len() / vocab).map_err(|e| Error::failed(e.to_string()))?;
        let dense = self.head.logits(&rows)?;
        let of =
            |dense: &[f32]| dense.par_chunks_exact(vocab).zip(logits.par_chunks_exact(vocab)).map(|(d, l)| f(d, l)).collect();
        ops::with_f32(&dense, of)
    }

    /// `s` of every matrix's rows.
    fn curvature(&self, tuned: &Tuned) -> Result<BTreeMap<Role, Vec<f32>>> {
        let mut all = BTreeMap::new();
        let tokens = self.train.sweep.n_tokens();
        self.backward(tuned, Loss::Sampled, &mut |role, gradient, hessian| {
            all.insert(role, row_curvature(gradient, &hessian.importance, tokens));
            Ok(())
        })?;
        Ok(all)
    }

    /// Candidates a step away, one for each κ.
    fn step(&self, tuned: &Tuned, curvature: &BTreeMap<Role, Vec<f32>>, kappas: [f32; 2]) -> Result<[Tuned; 2]> {
        let mut candidates = [Tuned::new(), Tuned::new()];
        self.backward(tuned, Loss::Divergence, &mut |role, gradient, hessian| {
            for (candidate, kappa) in candidates.iter_mut().zip(kappas) {
                let curvature: Vec<f32> = curvature[&role].iter().map(|s| s * kappa).collect();
                candidate.insert(role, step(&tuned[&role], gradient, &curvature, hessian, &self.encoder.context.device)?);
            }
            Ok(())
        })?;
        Ok(candidates)
    }

    /// Gives every matrix's gradient of a mean loss over the training text, `(out, in)`, and the curvature of its input.
    fn backward(&self, tuned: &Tuned, loss: Loss, give: &mut Give<'_>) -> Result<()> {
        let student = Student { encoder: self.encoder, tuned };
        let (spec, device, sweep) = (student.spec(), &self.encoder.context.device, &self.train.sweep);
        let mut states = vec![sweep.embedded(&Embedding::load(&student, device)?)?];
        for index in 0..spec.n_layers {
            states.push(sweep.apply_layer(&states[index], &Layer::load(&student, index, device)?, index, None)?);
        }
        let last = states.pop().ok_or_else(|| Error::failed("no hidden states"))?;
        let (head, norm, out) = (Head::load(&student, device)?, OutputNorm::load(&student, device)?, spec.head_part());
        let derivative = |batch: usize, first: usize, logits: &[f32]| self.derivative(loss, batch, first, logits);
        let mut back = gradient::through_head(&head, out, &norm, &last, &derivative)?;
        if self.roles.contains(&Role::global(out)) {
            let collector = Collector::new(Detail::Gram);
            sweep.normed(&last, &norm, Some(&collector))?;
            self.give(None, &mut back, collector, give)?;
        }
        for (index, hidden) in states.iter().enumerate().rev() {
            let layer = Layer::load(&student, index, device)?;
            let parts: Vec<Part> = self.roles.iter().filter(|r| r.layer == Some(index)).map(|r| r.part).collect();
            back = sweep.back_through(hidden, &layer, index, &parts, &back.states)?;
            let collector = Collector::new(Detail::Gram);
            sweep.observe_layer(hidden, &layer, index, &collector)?;
            self.give(Some(index), &mut back, collector, give)?;
        }
        Ok(())
    }

    /// Passes on a layer's gradients, those that read the same input one after the other.
    fn give(&self, layer: Option<usize>, back: &mut Backward, collector: Collector, give: &mut Give<'_>) -> Result<()> {
        let spec = self.encoder.source.spec();
        let mut matrices = std::mem::take(&mut back.matrices);
        for (site, stats) in collector.take()? {
            let tied_head = site.input == Input::Head && spec.tied;
            let readers: &[Part] = if tied_head { &[Part::TokenEmbd] } else { site.input.readers() };
            let readers: Vec<Part> = readers.iter().copied().filter(|p| matrices.contains_key(p)).collect();
            let Some(mut h) = stats.hessian().filter(|_| !readers.is_empty()) else { continue };
            if tied_head {
                self.encoder.add_table(&mut h)?;
            }
            let hessian = Hessian::new(h);
            for part in readers {
                let Some(gradient) = matrices.remove(&part) else { continue };
                let dims = gradient.dims2().map_err(|e| Error::failed(e.to_string()))?;
                let gradient = ops::with_f32(&gradient, |g| Array2::from_shape_vec(dims, g.to_vec()))?;
                let gradient = gradient.map_err(|e| Error::failed(e.to_string()))?;
                give(Role { layer, part }, gradient.view(), &hessian)?;
            }
        }
        Ok(())
    }

    /// The derivative of a mean loss over the training text by rows of logits.
    fn derivative(&self, loss: Loss, batch: usize, first: usize, logits: &[f32]) -> Result<Vec<f32>> {
        let vocab = self.head.vocab_size();
        let share = 1.0 / self.train.sweep.n_tokens() as f32;
        let mut by = logits.to_vec();
        by.par_chunks_exact_mut(vocab).for_each(|row| kernels::softmax(row, 1.0));
        match loss {
            Loss::Divergence => {
                let rows = self.with_dense(&self.train.dense[batch], first, logits, |dense, _| {
                    let mut dense = dense.to_vec();
                    kernels::softmax(&mut dense, 1.0);
                    dense
                })?;
                by.par_chunks_exact_mut(vocab).zip(rows).for_each(|(by, dense)| {
                    by.iter_mut().zip(dense).for_each(|(by, p)| *by = (*by - p) * share);
                });
            }
            Loss::Sampled => by.par_chunks_exact_mut(vocab).enumerate().for_each(|(i, by)| {
                let place = ((batch as u64) << 32) + (first + i) as u64;
                let token = sample(by, Rng::new(self.encoder.context.seed ^ place.wrapping_mul(0x9e37_79b9_7f4a_7c15)).uniform());
                by.iter_mut().for_each(|p| *p *= share);
                by[token] -= share;
            }),
        }
        Ok(by)
    }
}

/// The token at which the probabilities add up to `at`.
fn sample(probabilities: &[f32], at: f64) -> usize {
    let mut sum = 0.0;
    let found = probabilities.iter().position(|p| {
        sum += f64::from(*p);
        sum > at
    });
    found.unwrap_or(probabilities.len() - 1)
}

impl WeightSource for Student<'_> {
    fn spec(&self) -> &ModelSpec {
        self.encoder.source.spec()
    }
    fn codec(&self, role: Role) -> Result<Encoding> {
        let _ = role;
        Ok(Encoding::Codec(CodecId::F32))
    }
    fn read(&self, role: Role) -> Result<HostTensor> {
        let data = match (self.tuned.get(&role), self.encoder.plan.codec(role)) {
            (Some(tensor), _) => tensor.decode(),
            (None, Some(_)) => self.encoder.decoded(role)?,
            (None, None) => return self.encoder.source.read(role),
        };
        Ok(HostTensor { shape: self.spec().shape(role.part), data })
    }
}

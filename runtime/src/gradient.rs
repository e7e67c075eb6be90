//! Gradients of a loss over the logits with respect to the model's matrices, by reverse differentiation one layer at a time.
//!
//! Hidden states before every layer are kept from a sweep; from the last layer to the first, one batch of windows goes through a layer
//! once more with its operations recorded, and back. So memory holds one layer's intermediate results per thread and no more. What
//! experts the router chooses is taken as given.

use crate::block::{Rows, Run};
use crate::embedding::OutputNorm;
use crate::head::Head;
use crate::layer::Layer;
use crate::ops::OrFail;
use crate::role::Part;
use crate::sweep::{Hidden, Sweep};
use bitsmith_formats::{Error, Result};
use candle_core::{Tensor, Var, backprop::GradStore};
use rayon::prelude::*;
use std::collections::BTreeMap;

/// Gradients by part, each in the shape of its matrix.
pub type Gradients = BTreeMap<Part, Tensor>;

/// The derivative of a loss by logits: gets a batch's number, a chunk's first row in the batch, and the chunk's logits, `(rows, vocab)`.
pub type Derivative<'a> = dyn Fn(usize, usize, &[f32]) -> Result<Vec<f32>> + Sync + 'a;

/// What flows back into each batch's hidden states, and the gradients of what was passed.
pub struct Backward {
    /// One tensor `(tokens, hidden)` per batch.
    pub states: Vec<Tensor>,
    /// Of the matrices asked for.
    pub matrices: Gradients,
}

/// From the derivative by the logits back to the last layer's hidden states. The gradient of the output matrix is under `part`.
pub fn through_head(
    head: &Head,
    part: Part,
    norm: &OutputNorm,
    hidden: &Hidden,
    derivative: &Derivative<'_>,
) -> Result<Backward> {
    let of_batch = |(batch, x): (usize, &Tensor)| -> Result<(Tensor, Gradients)> {
        let x = variable(x)?;
        let normed = norm.apply(x.as_tensor())?;
        let rows = normed.dim(0).or_fail()?;
        let matrix = variable(&head.weight().to_tensor(x.device())?)?;
        let recorded = head.with_weight(matrix.as_tensor().clone());
        let mut into_normed = Vec::new();
        let mut sum: Option<Tensor> = None;
        for first in (0..rows).step_by(head.chunk_rows()) {
            let n = head.chunk_rows().min(rows - first);
            let chunk = variable(&normed.narrow(0, first, n).or_fail()?)?;
            let logits = recorded.logits(chunk.as_tensor())?;
            let by_logits = crate::ops::with_f32(&logits.detach(), |values| derivative(batch, first, values))??;
            let grads = pull(&logits, &crate::ops::from_host(by_logits, logits.dims(), x.device())?)?;
            into_normed.push(of(&grads, chunk.as_tensor())?);
            let new = of(&grads, matrix.as_tensor())?;
            sum = Some(match sum {
                Some(sum) => (sum + new).or_fail()?,
                None => new,
            });
        }
        let grads = pull(&normed, &Tensor::cat(&into_normed, 0).or_fail()?)?;
        let matrix = sum.ok_or_else(|| Error::failed("a batch without rows"))?;
        Ok((of(&grads, x.as_tensor())?, Gradients::from([(part, matrix)])))
    };
    summed(hidden.tensors().par_iter().enumerate().map(of_batch).collect::<Result<Vec<_>>>()?)
}

impl Sweep {
    /// From what flows back into the states after layer `index` to the states before it, `hidden`, and the layer's `parts`.
    pub fn back_through(
        &self,
        hidden: &Hidden,
        layer: &Layer,
        index: usize,
        parts: &[Part],
        after: &[Tensor],
    ) -> Result<Backward> {
        let run = Run { spec: self.spec(), ropes: self.ropes(), layer_index: index, observer: None };
        let of_batch = |((x, rows), after): ((&Tensor, Rows), &Tensor)| -> Result<(Tensor, Gradients)> {
            let x = variable(x)?;
            let mut recorded = layer.clone();
            let mut variables = Vec::new();
            for &part in parts {
                let variable = variable(&layer.weight(part)?.to_tensor(x.device())?)?;
                recorded.replace(part, variable.as_tensor().clone())?;
                variables.push((part, variable));
            }
            let out = run.forward(&recorded, x.as_tensor(), rows, None)?;
            let grads = pull(&out, after)?;
            let matrices = variables.iter().map(|(part, v)| Ok((*part, of(&grads, v.as_tensor())?)));
            Ok((of(&grads, x.as_tensor())?, matrices.collect::<Result<_>>()?))
        };
        let batches: Vec<_> = hidden.tensors().iter().zip(self.rows()).zip(after).collect();
        summed(batches.into_par_iter().map(of_batch).collect::<Result<Vec<_>>>()?)
    }
}

/// Batches' results, in their order.
fn summed(batches: Vec<(Tensor, Gradients)>) -> Result<Backward> {
    let mut all = Backward { states: Vec::new(), matrices: Gradients::new() };
    for (states, matrices) in batches {
        all.states.push(states);
        for (part, new) in matrices {
            let sum = match all.matrices.remove(&part) {
                Some(sum) => (sum + new).or_fail()?,
                None => new,
            };
            all.matrices.insert(part, sum);
        }
    }
    Ok(all)
}

fn variable(x: &Tensor) -> Result<Var> {
    Var::from_tensor(&x.detach()).or_fail()
}

/// Back from `out`, given the derivative by it.
fn pull(out: &Tensor, by_out: &Tensor) -> Result<GradStore> {
    (out * by_out).and_then(|product| product.sum_all()?.backward()).or_fail()
}

/// The gradient of a variable; zero if nothing depends on it.
fn of(grads: &GradStore, variable: &Tensor) -> Result<Tensor> {
    match grads.get(variable) {
        Some(gradient) => Ok(gradient.detach()),
        None => variable.zeros_like().or_fail(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::WeightSource;
    use crate::memory::MemoryWeights;
    use crate::ops::with_f32;
    use crate::role::Role;
    use crate::testing::{model, tokens};
    use candle_core::Device;
    use serde_json::{Value, json};

    /// Fixed weights of the logits, whose sum is the loss.
    fn weights(batch: usize, first: usize, n: usize) -> Vec<f32> {
        (0..n).map(|i| (((first * 61 + i + 3 * batch) * 7919 % 1009) as f32 / 1009.0 - 0.5) * 0.1).collect()
    }

    fn loss(source: &dyn WeightSource, windows: &[Vec<u32>]) -> f64 {
        let mut sweep = Sweep::new(source.spec(), windows, &Device::Cpu).unwrap();
        let normed = sweep.run(source, None).unwrap();
        let head = Head::load(source, &Device::Cpu).unwrap();
        let mut total = 0.0;
        for (batch, states) in normed.tensors().iter().enumerate() {
            head.for_each_chunk(states, |first, logits| {
                let by = weights(batch, first, logits.len());
                total += logits.iter().zip(by).map(|(l, w)| f64::from(*l) * f64::from(w)).sum::<f64>();
                Ok(())
            })
            .unwrap();
        }
        total
    }

    /// Every matrix moved along its gradient changes the loss by the squared norm of that, to this fraction.
    fn check(model_type: &str, changes: Value, parts: &[Part], within: f64) {
        let source: MemoryWeights = model(model_type, changes);
        let windows = [tokens(12, 0), tokens(12, 1), tokens(7, 2)];
        let cpu = Device::Cpu;
        let mut sweep = Sweep::new(source.spec(), &windows, &cpu).unwrap();
        sweep.embed_from(&source).unwrap();
        let mut states = vec![sweep.hidden().unwrap().clone()];
        let layers: Vec<Layer> = (0..source.spec().n_layers).map(|i| Layer::load(&source, i, &cpu).unwrap()).collect();
        for (i, layer) in layers.iter().enumerate() {
            states.push(sweep.apply_layer(&states[i], layer, i, None).unwrap());
        }
        let (head, norm) = (Head::load(&source, &cpu).unwrap(), OutputNorm::load(&source, &cpu).unwrap());
        let derivative = |batch: usize, first: usize, logits: &[f32]| Ok(weights(batch, first, logits.len()));
        let out = source.spec().head_part();
        let mut back = through_head(&head, out, &norm, states.last().unwrap(), &derivative).unwrap();
        let mut gradients = vec![(Role::global(out), back.matrices.remove(&out).unwrap())];
        for (i, layer) in layers.iter().enumerate().rev() {
            back = sweep.back_through(&states[i], layer, i, parts, &back.states).unwrap();
            gradients.extend(std::mem::take(&mut back.matrices).into_iter().map(|(part, g)| (Role::layer(i, part), g)));
        }
        for (role, gradient) in gradients {
            let g = with_f32(&gradient, |g| g.to_vec()).unwrap();
            let norm = g.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
            assert!(norm > 0.0, "{model_type} {role}");
            let step = 2e-3 / norm;
            let moved = |sign: f64| {
                let mut moved = source.clone();
                let old = source.read(role).unwrap().data;
                let new = old.iter().zip(&g).map(|(w, g)| w + (sign * step * f64::from(*g)) as f32).collect();
                moved.set(role, new).unwrap();
                loss(&moved, &windows)
            };
            let slope = (moved(1.0) - moved(-1.0)) / (2.0 * step);
            assert!((slope / (norm * norm) - 1.0).abs() < within, "{model_type} {role}: {slope} {}", norm * norm);
        }
    }

    #[test]
    fn gradients_are_the_slopes_of_the_loss() {
        use Part::*;
        let plain = [AttnQ, AttnK, AttnV, AttnOutput, FfnGate, FfnUp, FfnDown];
        check("llama", json!({}), &plain, 0.02);
        check("llama", json!({"attention_bias": true, "mlp_bias": true, "num_key_value_heads": 1}), &plain, 0.02);
        check("qwen3", json!({"head_dim": 12}), &plain, 0.02);
        let gemma = json!({"sliding_window": 5, "query_pre_attn_scalar": 12, "final_logit_softcapping": 3.0,
            "attn_logit_softcapping": 2.0, "hidden_activation": "gelu_pytorch_tanh"});
        check("gemma2", gemma, &plain, 0.02);
        check("phi3", json!({}), &[AttnQkv, AttnOutput, FfnUp, FfnDown], 0.02);
    }

    #[test]
    fn experts_have_gradients() {
        use Part::*;
        let experts = json!({"num_local_experts": 4, "num_experts_per_tok": 2});
        // How much each expert counts is taken as given, but depends on what came before.
        check("mixtral", experts, &[AttnQ, FfnGateExps, FfnUpExps, FfnDownExps], 0.1);
    }
}

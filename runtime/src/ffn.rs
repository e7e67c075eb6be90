//! The feed-forward block: dense, or a mixture of experts.

use crate::block::{Run, project};
use crate::layer::Layer;
use crate::ops::{self, OrFail, linear};
use crate::role::{Input, Part};
use crate::spec::{Experts, Scoring};
use bitsmith_formats::Result;
use candle_core::Tensor;

/// The parts of one gated or plain block.
struct Parts {
    gate: Part,
    up: Part,
    down: Part,
    /// Where the input of `down` is observed.
    inner: Input,
}

const DENSE: Parts = Parts { gate: Part::FfnGate, up: Part::FfnUp, down: Part::FfnDown, inner: Input::FfnOut };
const SHARED: Parts = Parts { gate: Part::FfnGateShexp, up: Part::FfnUpShexp, down: Part::FfnDownShexp, inner: Input::SharedOut };

/// The block's output for `x`, `(tokens, hidden)`. Without `down`, its inputs are observed and there is no output.
pub(crate) fn forward(run: &Run<'_>, layer: &Layer, x: &Tensor, down: bool) -> Result<Option<Tensor>> {
    run.observe(Input::FfnIn, x)?;
    match &run.spec.experts {
        Some(experts) if run.spec.layers[run.layer_index].mixture => mixture(run, layer, x, experts, down),
        _ => block(run, layer, x, &DENSE, down),
    }
}

fn block(run: &Run<'_>, layer: &Layer, x: &Tensor, parts: &Parts, down: bool) -> Result<Option<Tensor>> {
    let activation = run.spec.activation;
    let up = project(layer, parts.up, x)?;
    let inner = if layer.has(parts.gate) {
        let gate = project(layer, parts.gate, x)?;
        ops::activate(activation, gate, &up)?
    } else if run.spec.fused_gate && parts.up == Part::FfnUp {
        let width = run.spec.ffn_size;
        let gate = ops::columns(&up, 0, width)?;
        ops::activate(activation, gate, &ops::columns(&up, width, width)?)?
    } else {
        ops::activate_alone(activation, up)?
    };
    run.observe(parts.inner, &inner)?;
    if down { project(layer, parts.down, &inner).map(Some) } else { Ok(None) }
}

/// Every token goes to the experts that the router chooses for it; outputs are added in the order of the experts, so that nothing
/// depends on which tokens are computed together.
fn mixture(run: &Run<'_>, layer: &Layer, x: &Tensor, experts: &Experts, down: bool) -> Result<Option<Tensor>> {
    let (rows, width) = x.dims2().or_fail()?;
    let logits = project(layer, Part::FfnGateInp, x)?;
    let bias: Option<Vec<f32>> = layer.find(Part::ExpProbsBias).map(|t| t.to_vec1().or_fail()).transpose()?;
    let chosen = ops::with_f32(&logits, |values| {
        values.chunks_exact(experts.count).map(|row| route(experts, row, bias.as_deref())).collect::<Vec<_>>()
    })?;
    let mut sum = Tensor::zeros((rows, width), x.dtype(), x.device()).or_fail()?;
    let mut inners = Vec::new();
    for expert in 0..experts.count {
        let of = |row: &Vec<(usize, f32)>| row.iter().find(|(e, _)| *e == expert).map(|(_, weight)| *weight);
        let mine: Vec<(usize, f32)> = chosen.iter().enumerate().filter_map(|(r, row)| Some((r, of(row)?))).collect();
        if mine.is_empty() {
            continue;
        }
        let index: Vec<u32> = mine.iter().map(|(r, _)| *r as u32).collect();
        let index = Tensor::new(index, x.device()).or_fail()?;
        let mut input = x.index_select(&index, 0).or_fail()?;
        if experts.weigh_input {
            let weights: Vec<f32> = mine.iter().map(|(_, w)| *w).collect();
            let weights = Tensor::new(weights, x.device()).and_then(|w| w.reshape((mine.len(), 1))).or_fail()?;
            input = ops::scale_rows(input, &weights)?;
        }
        run.observe_matrix(Input::FfnIn, expert, experts.count, &input)?;
        let gate = project_expert(layer, Part::FfnGateExps, expert, &input)?;
        let up = project_expert(layer, Part::FfnUpExps, expert, &input)?;
        let gate = ops::activate(run.spec.activation, gate, &up)?;
        run.observe_matrix(Input::ExpertOut, expert, experts.count, &gate)?;
        if down {
            let out = project_expert(layer, Part::FfnDownExps, expert, &gate)?;
            let weight = |weight| if experts.weigh_input { 1.0 } else { weight };
            let weighed: Vec<(usize, f32)> = mine.iter().map(|(row, w)| (*row, weight(*w))).collect();
            sum = ops::add_rows(sum, &weighed, &out)?;
        }
        if run.observer.is_some() {
            inners.push(gate);
        }
    }
    if !inners.is_empty() {
        run.observe(Input::ExpertOut, &Tensor::cat(&inners, 0).or_fail()?)?;
    }
    let shared = match experts.shared_ffn_size {
        0 => None,
        _ => block(run, layer, x, &SHARED, down)?,
    };
    if !down {
        return Ok(None);
    }
    if let Some(mut shared) = shared {
        if let Some(gate) = layer.find(Part::FfnGateInpShexp) {
            shared = ops::scale_rows(shared, &ops::sigmoid(&linear(x, gate)?)?)?;
        }
        sum = ops::add(sum, &shared)?;
    }
    Ok(Some(sum))
}

/// A linear layer of one expert with its bias.
fn project_expert(layer: &Layer, part: Part, expert: usize, x: &Tensor) -> Result<Tensor> {
    let y = layer.weight(part)?.expert(expert)?.product(x, layer.mode())?;
    match part.bias().and_then(|b| layer.find(b)) {
        Some(bias) => ops::add_bias(y, &bias.get(expert).or_fail()?),
        None => Ok(y),
    }
}

/// The experts of one token and their weights, in ascending order of the experts. Of equal scores the first counts as better.
fn route(experts: &Experts, logits: &[f32], bias: Option<&[f32]>) -> Vec<(usize, f32)> {
    let sigmoid = |x: f32| 1.0 / (1.0 + (-x).exp());
    let softmax = |of: &[f32]| -> Vec<f32> {
        let most = of.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let e: Vec<f32> = of.iter().map(|x| (x - most).exp()).collect();
        let total: f32 = e.iter().sum();
        e.iter().map(|e| e / total).collect()
    };
    let scores: Vec<f32> = match experts.scoring {
        Scoring::Softmax => softmax(logits),
        Scoring::SoftmaxChosen => logits.to_vec(),
        Scoring::Sigmoid => logits.iter().map(|x| sigmoid(*x)).collect(),
    };
    let mut ranks: Vec<f32> = match bias {
        Some(bias) => scores.iter().zip(bias).map(|(s, b)| s + b).collect(),
        None => scores.clone(),
    };
    if let Some(groups) = experts.groups {
        let size = experts.count / groups.count;
        let rank = |group: &[f32]| {
            let mut sorted = group.to_vec();
            sorted.sort_by(|a, b| b.total_cmp(a));
            sorted.iter().take(groups.ranked_by).sum::<f32>()
        };
        let of_groups: Vec<f32> = ranks.chunks_exact(size).map(rank).collect();
        let used = best(&of_groups, groups.used);
        for (group, ranks) in ranks.chunks_exact_mut(size).enumerate() {
            if !used.contains(&group) {
                ranks.fill(f32::NEG_INFINITY);
            }
        }
    }
    let mut chosen = best(&ranks, experts.used);
    chosen.sort_unstable();
    let mut weights: Vec<f32> = chosen.iter().map(|e| scores[*e]).collect();
    if experts.scoring == Scoring::SoftmaxChosen {
        weights = softmax(&weights);
    }
    if experts.normalize {
        let total: f32 = weights.iter().sum();
        weights.iter_mut().for_each(|w| *w /= total);
    }
    chosen.into_iter().zip(weights).map(|(e, w)| (e, w * experts.scale)).collect()
}

/// The indices of the `n` largest values, best first.
fn best(values: &[f32], n: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*b].total_cmp(&values[*a]));
    order.truncate(n);
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Groups;

    fn experts() -> Experts {
        Experts::new(4, 2, 8)
    }

    fn close(got: &[(usize, f32)], want: &[(usize, f64)]) {
        assert_eq!(got.len(), want.len());
        for (g, w) in got.iter().zip(want) {
            assert!(g.0 == w.0 && (f64::from(g.1) - w.1).abs() < 1e-6, "{got:?} {want:?}");
        }
    }

    #[test]
    fn routing_by_hand() {
        let logits = [1.0f32, -1.0, 2.0, 0.5];
        let e: Vec<f64> = logits.iter().map(|x| f64::from(*x).exp()).collect();
        let total: f64 = e.iter().sum();
        close(&route(&experts(), &logits, None), &[(0, e[0] / total), (2, e[2] / total)]);
        let normal = Experts { normalize: true, scale: 2.5, ..experts() };
        close(&route(&normal, &logits, None), &[(0, 2.5 * e[0] / (e[0] + e[2])), (2, 2.5 * e[2] / (e[0] + e[2]))]);
        let chosen = Experts { scoring: Scoring::SoftmaxChosen, ..experts() };
        close(&route(&chosen, &logits, None), &[(0, e[0] / (e[0] + e[2])), (2, e[2] / (e[0] + e[2]))]);
    }

    #[test]
    fn a_bias_chooses_but_does_not_weigh() {
        let sigmoid = Experts { scoring: Scoring::Sigmoid, ..experts() };
        let s = |x: f64| 1.0 / (1.0 + (-x).exp());
        let logits = [1.0f32, -1.0, 2.0, 0.5];
        close(&route(&sigmoid, &logits, Some(&[0.0, 5.0, 0.0, 0.0])), &[(1, s(-1.0)), (2, s(2.0))]);
        // Groups {0, 1} and {2, 3}: the sums of their two best are 1.0 and 1.4, the best alone 0.73 and 0.88.
        let groups = Experts { groups: Some(Groups { count: 2, used: 1, ranked_by: 2 }), ..sigmoid };
        close(&route(&groups, &logits, None), &[(2, s(2.0)), (3, s(0.5))]);
        let by_best = Experts { groups: Some(Groups { count: 2, used: 1, ranked_by: 1 }), ..groups };
        close(&route(&by_best, &[1.0, -1.0, 0.9, 0.9], None), &[(0, s(1.0)), (1, s(-1.0))]);
    }
}

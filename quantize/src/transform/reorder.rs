//! Channels between the matrices of a feed-forward block in order of importance.
//!
//! Nothing outside the block sees in which order they are: rows of the matrices that make them, and columns of the one that reads
//! them, move together. Sorted by E(x²), the columns of a group matter about as much as one another, so that no scale has to serve
//! a few columns that matter at the cost of many that matter less, or the other way round.
//!
//! That is what `g_idx` gives a GPTQ checkpoint ("activation order"), but for every format, without a table to look up at run time.

use super::{Context, DenseLayer, Transform};
use bitsmith_calibrate::SiteStats;
use bitsmith_formats::Result;
use bitsmith_runtime::role::{Input, Part};
use bitsmith_runtime::spec::{Activation, ModelSpec};
use ndarray::{Array2, Axis};
use std::collections::BTreeMap;

/// Inputs whose channels move, the matrix that reads them, and those that make them.
pub const PLACES: [(Input, Part, [Part; 2]); 2] = [
    (Input::FfnOut, Part::FfnDown, [Part::FfnUp, Part::FfnGate]),
    (Input::SharedOut, Part::FfnDownShexp, [Part::FfnUpShexp, Part::FfnGateShexp]),
];

/// See the module's documentation.
pub struct Reorder;

impl Transform for Reorder {
    fn name(&self) -> &'static str {
        "reorder"
    }
    fn about(&self) -> &'static str {
        "sorts the channels inside feed-forward blocks by importance, so that those that share a scale matter alike; costs nothing at run time"
    }
    fn parts(&self) -> &'static [Part] {
        use Part::*;
        &[FfnGate, FfnUp, FfnDown, FfnGateShexp, FfnUpShexp, FfnDownShexp]
    }
    fn reorders(&self) -> bool {
        true
    }
    fn apply(
        &self,
        layer: &mut DenseLayer,
        stats: &mut BTreeMap<Input, SiteStats>,
        context: &Context<'_>,
    ) -> Result<Vec<String>> {
        for (input, reader, _) in PLACES.iter().filter(|_| possible(context.spec)) {
            let (Some(site), Some(n)) = (stats.get_mut(input), layer.get(reader).map(Array2::ncols)) else { continue };
            if site.width() != n {
                continue;
            }
            let importance = site.importance();
            let mut order: Vec<usize> = (0..n).collect();
            order.sort_by(|&a, &b| importance[b].total_cmp(&importance[a]).then(a.cmp(&b)));
            for (part, values) in layer.iter_mut() {
                move_channels(*part, values, &order, *input);
            }
            site.reorder(&order);
        }
        Ok(Vec::new())
    }
}

/// Whether the channels of this model's feed-forward blocks may change places.
pub fn possible(spec: &ModelSpec) -> bool {
    // Gate and up of this activation take turns in one matrix.
    spec.activation != Activation::SwigluOai
}

/// Puts channel `order[i]` of an input in place i, in the tensor of a part that makes or reads it: a matrix `(out, in)`, or a bias
/// `(1, out)`. A gate may stand above up in one matrix.
pub fn move_channels(part: Part, values: &mut Array2<f32>, order: &[usize], input: Input) {
    let Some((_, reader, makers)) = PLACES.iter().find(|p| p.0 == input) else { return };
    let of_all = |n: usize| -> Vec<usize> { (0..n).map(|i| i / order.len() * order.len() + order[i % order.len()]).collect() };
    let moved = if part == *reader {
        values.select(Axis(1), order)
    } else if makers.contains(&part) {
        values.select(Axis(0), &of_all(values.nrows()))
    } else if makers.iter().any(|m| m.bias() == Some(part)) {
        values.select(Axis(1), &of_all(values.ncols()))
    } else {
        return;
    };
    // Selected columns lie one after the other.
    *values = moved.as_standard_layout().into_owned();
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitsmith_runtime::sampler::Rng;

    #[test]
    fn the_block_computes_the_same() {
        let mut rng = Rng::new(7);
        let mut noise = |rows: usize, cols: usize| Array2::from_shape_simple_fn((rows, cols), || rng.normal() as f32);
        let (x, gate, up, down, bias) = (noise(5, 3), noise(8, 3), noise(8, 3), noise(3, 8), noise(1, 8));
        let order = [6, 0, 3, 7, 1, 2, 5, 4];
        let block = |gate: &Array2<f32>, up: &Array2<f32>, bias: &Array2<f32>, down: &Array2<f32>| {
            let hidden = (x.dot(&gate.t()) + bias).mapv(|v| v / (1.0 + (-v).exp())) * x.dot(&up.t());
            hidden.dot(&down.t())
        };
        let before = block(&gate, &up, &bias, &down);
        let moved = |part: Part, values: &Array2<f32>| {
            let mut values = values.clone();
            move_channels(part, &mut values, &order, Input::FfnOut);
            values
        };
        let (g, u) = (moved(Part::FfnGate, &gate), moved(Part::FfnUp, &up));
        let (b, d) = (moved(Part::FfnGateBias, &bias), moved(Part::FfnDown, &down));
        assert!(d.is_standard_layout() && b.is_standard_layout());
        assert_eq!((g.row(0), d.column(1), b[[0, 2]]), (gate.row(6), down.column(0), bias[[0, 3]]));
        let after = block(&g, &u, &b, &d);
        assert!((&after - &before).iter().all(|d| d.abs() < 1e-5), "{before} {after}");
        // Both halves of a matrix that is gate and up move alike.
        let both = ndarray::concatenate(Axis(0), &[gate.view(), up.view()]).unwrap();
        assert_eq!(moved(Part::FfnUp, &both), ndarray::concatenate(Axis(0), &[g.view(), u.view()]).unwrap());
        assert_eq!(moved(Part::AttnQ, &up), up);
    }
}

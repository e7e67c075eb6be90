//! The source as a transform put its channels in another order, which the artifact alone tells: each row that makes a channel is that
//! of the source's rows which is most like it.

use bitsmith_formats::{Encoding, Error, Result};
use bitsmith_quantize::transform::reorder::{PLACES, move_channels, possible};
use bitsmith_runtime::role::Input;
use bitsmith_runtime::sampler::Rng;
use bitsmith_runtime::{HostTensor, ModelSpec, Role, WeightSource};
use ndarray::{Array2, ArrayView2, Axis};
use std::collections::HashMap;

/// Directions that rows are compared in: enough to tell thousands of them apart when they are rounded to two bits.
const DIRECTIONS: usize = 64;

/// By layer and input, which channel of the source stands in each place.
pub(super) type Orders = HashMap<(usize, Input), Vec<usize>>;

/// Finds the orders. `columns` are the factors by which the artifact's columns of a matrix are larger than the source's.
pub(super) fn orders(
    artifact: &dyn WeightSource,
    source: &dyn WeightSource,
    columns: impl Fn(Role) -> Result<Option<Vec<f64>>>,
) -> Result<Orders> {
    let mut orders = Orders::new();
    for layer in (0..artifact.spec().n_layers).filter(|_| possible(artifact.spec())) {
        for (input, reader, makers) in PLACES {
            let (reader, up) = (Role::layer(layer, reader), Role::layer(layer, makers[0]));
            if !source.spec().has_role(reader) || !source.spec().has_role(up) {
                continue;
            }
            let n = source.spec().shape(reader.part).last().copied().unwrap_or(0);
            let factors = columns(up)?;
            let theirs = sketches(&source.read(up)?, n, factors.as_deref())?;
            let order = assign(&sketches(&artifact.read(up)?, n, None)?, &theirs);
            orders.insert((layer, input), order);
        }
    }
    Ok(orders)
}

/// A source whose channels have changed places.
pub(super) struct Reordered<'a> {
    pub source: Box<dyn WeightSource + 'a>,
    pub orders: Orders,
}

/// The last `n` rows of a matrix, of length 1, in few dimensions: `(n, DIRECTIONS)`.
fn sketches(matrix: &HostTensor, n: usize, factors: Option<&[f64]>) -> Result<Array2<f32>> {
    let columns = matrix.shape.last().copied().unwrap_or(0);
    let rows = matrix.data.len() / columns.max(1);
    let all = ArrayView2::from_shape((rows, columns), &matrix.data).map_err(|e| Error::failed(e.to_string()))?;
    let mut all = all.slice(ndarray::s![rows.saturating_sub(n).., ..]).to_owned();
    for mut row in all.rows_mut() {
        if let Some(factors) = factors {
            row.iter_mut().zip(factors).for_each(|(w, f)| *w *= *f as f32);
        }
        let length = row.dot(&row).sqrt();
        row.mapv_inplace(|w| if length > 0.0 { w / length } else { 0.0 });
    }
    let mut rng = Rng::new(0);
    let directions = Array2::from_shape_simple_fn((columns, DIRECTIONS), || rng.normal() as f32);
    let mut sketches = all.dot(&directions);
    for mut row in sketches.rows_mut() {
        let length = row.dot(&row).sqrt();
        row.mapv_inplace(|w| if length > 0.0 { w / length } else { 0.0 });
    }
    Ok(sketches)
}

/// For each of `ours` the most similar of `theirs` that no other has.
fn assign(ours: &Array2<f32>, theirs: &Array2<f32>) -> Vec<usize> {
    /// Rows that are compared with all at a time.
    const ROWS: usize = 256;
    let mut free = vec![true; theirs.nrows()];
    let mut order = Vec::with_capacity(ours.nrows());
    for ours in ours.axis_chunks_iter(Axis(0), ROWS) {
        for likeness in ours.dot(&theirs.t()).rows() {
            let best = (0..free.len()).filter(|&i| free[i]).max_by(|&a, &b| likeness[a].total_cmp(&likeness[b]));
            free[best.unwrap_or(0)] = false;
            order.push(best.unwrap_or(0));
        }
    }
    order
}

impl WeightSource for Reordered<'_> {
    fn spec(&self) -> &ModelSpec {
        self.source.spec()
    }

    fn codec(&self, role: Role) -> Result<Encoding> {
        self.source.codec(role)
    }

    fn read(&self, role: Role) -> Result<HostTensor> {
        let mut tensor = self.source.read(role)?;
        for (input, _, _) in PLACES {
            let Some(order) = role.layer.and_then(|layer| self.orders.get(&(layer, input))) else { continue };
            let columns = tensor.shape.last().copied().unwrap_or(1);
            let rows = tensor.data.len() / columns.max(1);
            let mut values = Array2::from_shape_vec((rows, columns), tensor.data).map_err(|e| Error::failed(e.to_string()))?;
            move_channels(role.part, &mut values, order, input);
            tensor.data = values.into_iter().collect();
        }
        Ok(tensor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_found_though_they_were_rounded() {
        let mut rng = Rng::new(3);
        let rows = Array2::from_shape_simple_fn((700, 48), || rng.normal() as f32);
        let order: Vec<usize> = (0..700).map(|i| i * 37 % 700).collect();
        let rounded = rows.select(Axis(0), &order).mapv(|w| w.round().clamp(-2.0, 1.0) * 1.5);
        let host = |m: &Array2<f32>| HostTensor { shape: vec![m.nrows(), 48], data: m.iter().copied().collect() };
        let (ours, theirs) = (sketches(&host(&rounded), 700, None).unwrap(), sketches(&host(&rows), 700, None).unwrap());
        let found = assign(&ours, &theirs);
        assert!(found.iter().zip(&order).filter(|(f, o)| f == o).count() > 690);
        let mut all = found;
        all.sort_unstable();
        assert_eq!(all, (0..700).collect::<Vec<_>>());
    }
}

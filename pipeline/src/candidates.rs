//! Every matrix in several candidate formats, by a solver on the dense model's activations, and the error that each makes.

use crate::context::Context;
use crate::encode::{Encoder, Evidence, layer_roles};
use crate::share::Share;
use crate::spool::Spool;
use bitsmith_calibrate::{Collector, Detail, SiteStats};
use bitsmith_formats::{CodecId, Float, Result};
use bitsmith_quantize::{Method, Plan};
use bitsmith_runtime::{Input, Layer, Part, Role, Sweep, WeightSource};
use ndarray::{Array2, Axis, s};
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Rows that one thread multiplies at once.
const ROWS: usize = 256;

/// A format that all matrices may have.
#[derive(Debug, Clone)]
pub struct Column {
    /// What it is called: the format of most matrices.
    pub codec: CodecId,
    /// The format of each tensor, which is another where dimensions do not allow this one.
    pub plan: Plan,
}

/// Where finished tensors are kept.
#[derive(Debug, Clone, Copy)]
pub struct Kept<'a> {
    /// The folder.
    pub folder: &'a Path,
    /// The job's name: another job's tensors are of no use.
    pub key: &'a str,
}

/// Encoded candidates on disk.
pub struct Candidates<'a> {
    source: &'a dyn WeightSource,
    columns: &'a [Column],
    spools: Vec<Spool>,
    /// `tr(ΔW H ΔWᵀ) / tr(W H Wᵀ)` by tensor, for each column.
    errors: BTreeMap<Role, Vec<f64>>,
}

impl<'a> Candidates<'a> {
    /// Encodes every matrix for every column. What an interrupted run of the same job left is used again. The method's transforms are left out: they change several tensors at once. `vector_type` is that of norms and biases.
    pub fn encode(
        source: &'a dyn WeightSource,
        columns: &'a [Column],
        method: &Method,
        vector_type: Float,
        windows: &[Vec<u32>],
        kept: Kept<'_>,
        context: &Context,
    ) -> Result<Self> {
        let method = Method { transforms: Vec::new(), solver: method.solver };
        let open = |c: &Column| Spool::open(&kept.folder.join(c.codec.to_string()), kept.key);
        let spools: Vec<Spool> = columns.iter().map(open).collect::<Result<_>>()?;
        let encoder = |(column, spool): (&'a Column, _)| Encoder {
            source,
            plan: &column.plan,
            method: &method,
            vector_type,
            evidence: Evidence::None,
            spool,
            share: Share::WHOLE,
            context,
        };
        let encoders: Vec<Encoder> = columns.iter().zip(&spools).map(encoder).collect();
        let mut errors = BTreeMap::new();
        let mut notes = Vec::new();
        let spec = source.spec();
        context.progress.start("candidates", spec.n_layers as u64 + 1);
        let mut sweep = Sweep::new(spec, windows, &context.device)?;
        sweep.embed_from(source)?;
        if !spec.tied {
            encoders.iter().try_for_each(|e| e.encode_embedding(&mut notes))?;
            let role = Role::global(Part::TokenEmbd);
            errors.insert(role, relative_errors(&encoders, role, &encoders[0].embedding_curvature()?)?);
        }
        for index in 0..spec.n_layers {
            let collector = Collector::new(Detail::Gram);
            sweep.run_layer(&Layer::load(source, index, &context.device)?, index, Some(&collector))?;
            let stats: BTreeMap<Input, SiteStats> = collector.take()?.into_iter().map(|(site, s)| (site.input, s)).collect();
            for encoder in encoders.iter().filter(|e| !e.layer_done(index)) {
                let dense = encoder.read_group(&layer_roles(source, index))?;
                encoder.encode_group(Some(index), dense, stats.clone(), &mut notes)?;
            }
            for (input, stats) in &stats {
                let h = stats.hessian().unwrap_or_else(|| Array2::eye(stats.width()));
                for &part in input.readers().iter().filter(|p| spec.has_role(Role::layer(index, **p))) {
                    let role = Role::layer(index, part);
                    errors.insert(role, relative_errors(&encoders, role, &h)?);
                }
            }
            context.progress.advance(1);
        }
        let collector = Collector::new(Detail::Gram);
        sweep.finish_from(source, Some(&collector))?;
        let stats: BTreeMap<Input, SiteStats> = collector.take()?.into_iter().map(|(site, s)| (site.input, s)).collect();
        encoders.iter().try_for_each(|e| e.encode_head(stats.clone(), &mut notes))?;
        if let Some(h) = stats.get(&Input::Head).and_then(SiteStats::hessian) {
            let role = Role::global(spec.head_part());
            errors.insert(role, relative_errors(&encoders, role, &h)?);
        }
        context.progress.finish();
        // A dozen formats say the same of the same inputs.
        for note in BTreeSet::from_iter(notes) {
            context.progress.note(&note);
        }
        drop(encoders);
        Ok(Candidates { source, columns, spools, errors })
    }

    /// The matrices that have candidates, in file order.
    pub fn roles(&self) -> Vec<Role> {
        let has = |r: &Role| self.errors.contains_key(r) && self.columns.iter().any(|c| self.is_quantized(*r, c));
        self.source.spec().roles().into_iter().filter(has).collect()
    }

    fn is_quantized(&self, role: Role, column: &Column) -> bool {
        column.plan.codec(role).is_some_and(|codec| codec.float().is_none())
    }

    /// The relative error of the layer's output for each column.
    pub fn errors(&self, role: Role) -> &[f64] {
        self.errors.get(&role).map_or(&[][..], Vec::as_slice)
    }

    /// The values of a tensor in one of the columns, row-major.
    pub fn decoded(&self, role: Role, column: usize) -> Result<Vec<f32>> {
        let plan = &self.columns[column].plan;
        crate::encode::from_spool(&self.spools[column], plan, self.source.spec(), role).map(|t| t.decode())
    }
}

/// `tr(ΔW H ΔWᵀ) / tr(W H Wᵀ)` of a tensor in each encoder's format; 0 for a tensor that is read from nothing.
fn relative_errors(encoders: &[Encoder<'_>], role: Role, h: &Array2<f32>) -> Result<Vec<f64>> {
    let Some(w) = encoders[0].read_group(&[role])?.remove(&role.part) else { return Ok(Vec::new()) };
    let size = quadratic(&w, h);
    let error = |e: &Encoder| -> Result<f64> {
        let values = Array2::from_shape_vec(w.raw_dim(), e.encoded(role)?.decode()).expect("the shape of the source");
        let error = quadratic(&(values - &w), h);
        Ok(if error == 0.0 { 0.0 } else { error / size })
    };
    encoders.iter().map(error).collect()
}

/// `tr(W H Wᵀ)`. Stacked matrices share H.
fn quadratic(w: &Array2<f32>, h: &Array2<f32>) -> f64 {
    let tiles: Vec<usize> = (0..w.nrows()).step_by(ROWS).collect();
    let of = |&first: &usize| {
        let rows = w.slice(s![first..(first + ROWS).min(w.nrows()), ..]);
        let products = rows.dot(h);
        let each = |(a, b): (ndarray::ArrayView1<f32>, ndarray::ArrayView1<f32>)| {
            a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>()
        };
        products.axis_iter(Axis(0)).zip(rows.axis_iter(Axis(0))).map(each).sum::<f64>()
    };
    // Summed in order, whatever thread made them.
    tiles.par_iter().map(of).collect::<Vec<f64>>().into_iter().sum()
}

//! From dense weights to encoded tensors: the layer loop that calibrates, transforms and solves, one decoder layer at a time.

use crate::asymmetric::Pair;
use crate::context::Context;
use crate::share::Share;
use crate::spool::Spool;
use crate::stream::{Scales, check_range, shared_scales};
use bitsmith_calibrate::{Collector, Detail, SiteStats, Stats, gram};
use bitsmith_formats::{EncodedTensor, Error, Float, Result};
use bitsmith_quantize::transform::{self, DenseLayer};
use bitsmith_quantize::{Hessian, Method, Plan, Problem};
use bitsmith_runtime::role::PartKind;
use bitsmith_runtime::{Embedding, Input, Layer, ModelSpec, Part, Role, Site, Sweep, WeightSource, ops};
use ndarray::{Array1, Array2, s};
use std::collections::{BTreeMap, BTreeSet};

/// Weight of directions that the first layer does not read, in an embedding's curvature.
const EMBEDDING_RIDGE: f32 = 0.1;
/// A tied embedding is the output matrix and a table of rows: weight of the second use, relative to the mean curvature of the first.
const TIED_TABLE: f32 = 1.0;

/// Where a solver's statistics come from.
pub enum Evidence<'a> {
    /// None: the formats' own encoders.
    None,
    /// Gathered earlier, in independent mode.
    Stats(&'a Stats),
    /// Importance per tensor, from an imatrix file.
    Importance(&'a BTreeMap<Role, Vec<f32>>),
    /// Windows of tokens to run through the model now.
    Windows {
        /// The token windows.
        windows: &'a [Vec<u32>],
        /// Whether later layers see the outputs of the quantized earlier ones.
        sequential: bool,
    },
}

/// Everything that decides the encoded tensors.
pub struct Encoder<'a> {
    /// The dense model.
    pub source: &'a dyn WeightSource,
    /// The format of each tensor.
    pub plan: &'a Plan,
    /// Transforms and solver.
    pub method: &'a Method,
    /// The type of norms and biases in the artifact.
    pub vector_type: Float,
    /// Statistics.
    pub evidence: Evidence<'a>,
    /// Where results go.
    pub spool: &'a Spool,
    /// The layers to encode. Less than all where statistics are given or none are needed.
    pub share: Share,
    /// Progress and warnings.
    pub context: &'a Context,
}

/// The curvature of each matrix of a stack, where it has one of its own.
type Own<'a> = dyn Fn(usize) -> Option<Hessian> + 'a;
/// Statistics of one layer's inputs.
pub(crate) type SiteMap = BTreeMap<Input, SiteStats>;

impl Encoder<'_> {
    /// Encodes every tensor of the plan into the spool; those already there are kept. Returns the notes of transforms and
    /// solvers, each with the tensor it concerns.
    pub fn run(&self) -> Result<Vec<String>> {
        let spec = self.source.spec();
        let progress = &self.context.progress;
        progress.start("quantize", self.share.of(spec.n_layers).len() as u64 + 1);
        let mut notes = Vec::new();
        if !spec.tied && self.share.is_first() {
            self.encode_embedding(&mut notes)?;
        }
        match &self.evidence {
            Evidence::Windows { windows, sequential: true } if self.method.asymmetric() => {
                self.run_asymmetric(windows, &mut notes)?;
            }
            evidence => {
                if self.method.asymmetric() {
                    notes.push("qep is left out: it needs the text itself, and layers that follow one another".into());
                }
                match evidence {
                    Evidence::Windows { windows, sequential } => self.run_windows(windows, *sequential, &mut notes)?,
                    _ => self.run_given(&mut notes)?,
                }
            }
        }
        if self.share.is_last() {
            self.encode_extra(&mut notes)?;
        }
        progress.finish();
        Ok(notes)
    }

    /// Layers are independent: statistics are given, or none are needed.
    fn run_given(&self, notes: &mut Vec<String>) -> Result<()> {
        let spec = self.source.spec();
        for layer in self.share.of(spec.n_layers) {
            if !self.layer_done(layer) {
                let dense = self.read_group(&layer_roles(self.source, layer))?;
                self.encode_group(Some(layer), dense, self.given(Some(layer)), notes)?;
            }
            self.context.progress.advance(1);
        }
        if self.share.is_last() {
            self.encode_head(self.given(None), notes)?;
        }
        self.context.progress.advance(1);
        Ok(())
    }

    /// Statistics of one layer from what the caller gave.
    fn given(&self, layer: Option<usize>) -> SiteMap {
        match &self.evidence {
            Evidence::Stats(stats) => {
                stats.sites.iter().filter(|(site, _)| site.layer == layer).map(|(site, s)| (site.input, s.clone())).collect()
            }
            _ => SiteMap::new(),
        }
    }

    /// Layer-major: observe a layer's inputs, encode it, and push the windows through the encoded layer.
    fn run_windows(&self, windows: &[Vec<u32>], sequential: bool, notes: &mut Vec<String>) -> Result<()> {
        let spec = self.source.spec();
        let device = &self.context.device;
        let detail = if self.method.needs_hessian() { Detail::Gram } else { Detail::Channels };
        let mut sweep = Sweep::new(spec, windows, device)?;
        let embedding = match sequential && !spec.tied {
            true => {
                let data = self.decoded(Role::global(Part::TokenEmbd))?;
                let table = ops::from_host(data, &spec.shape(Part::TokenEmbd), device)?;
                Embedding::with_table(self.source, table.into(), device)?
            }
            false => Embedding::load(self.source, device)?,
        };
        sweep.embed(&embedding)?;
        for index in 0..spec.n_layers {
            let mut layer = Layer::load(self.source, index, device)?;
            if !self.layer_done(index) {
                let collector = Collector::new(detail);
                if sequential {
                    let hidden = sweep.hidden()?.clone();
                    sweep.observe_layer(&hidden, &layer, index, &collector)?;
                } else {
                    sweep.run_layer(&layer, index, Some(&collector))?;
                }
                let stats = collector.take()?.into_iter().map(|(site, s)| (site.input, s)).collect();
                let dense = self.read_group(&layer_roles(self.source, index))?;
                self.encode_group(Some(index), dense, stats, notes)?;
            } else if !sequential {
                sweep.run_layer(&layer, index, None)?;
            }
            if sequential {
                for role in layer_roles(self.source, index) {
                    layer.replace_host(role.part, self.decoded(role)?)?;
                }
                sweep.run_layer(&layer, index, None)?;
            }
            self.context.progress.advance(1);
        }
        // Both, as a run may have ended between them.
        if !self.head_roles().iter().all(|r| self.spool.has(*r)) {
            let collector = Collector::new(detail);
            sweep.finish_from(self.source, Some(&collector))?;
            let stats = collector.take()?.into_iter().map(|(site, s)| (site.input, s)).collect();
            self.encode_head(stats, notes)?;
        }
        self.context.progress.advance(1);
        Ok(())
    }

    pub(crate) fn layer_done(&self, layer: usize) -> bool {
        layer_roles(self.source, layer).iter().all(|r| self.spool.has(*r))
    }

    /// Everything outside the layers but an embedding that is only a table.
    pub(crate) fn head_roles(&self) -> Vec<Role> {
        let spec = self.source.spec();
        let table = |r: &Role| r.part == Part::TokenEmbd && !spec.tied;
        spec.roles().into_iter().filter(|r| r.layer.is_none() && !table(r)).collect()
    }

    /// The output norm, the output matrix and what else stands outside the layers; with tied embeddings, the embedding stands for the
    /// output matrix.
    pub(crate) fn encode_head(&self, stats: SiteMap, notes: &mut Vec<String>) -> Result<()> {
        let roles = self.head_roles();
        if roles.iter().all(|r| self.spool.has(*r)) {
            return Ok(());
        }
        let dense = self.read_group(&roles)?;
        self.encode_group(None, dense, stats, notes)
    }

    /// Layers after the last, which the model does not run: without statistics, and as they are.
    fn encode_extra(&self, notes: &mut Vec<String>) -> Result<()> {
        let spec = self.source.spec();
        for layer in spec.n_layers..spec.n_layers + spec.mtp_layers {
            let roles = layer_roles(self.source, layer).into_iter().filter(|r| self.plan.codec(*r).is_some());
            for role in roles.filter(|r| !self.spool.has(*r)) {
                let dense = self.read_group(&[role])?;
                let scale = self.scales(Some(layer), &dense).get(&role).copied().unwrap_or(1.0);
                let tensor = self.solve(role, &dense[&role.part], scale, None, None, &|_| None, notes)?;
                self.spool.put(role, &tensor)?;
            }
        }
        Ok(())
    }

    /// An embedding that is only a table.
    pub(crate) fn encode_embedding(&self, notes: &mut Vec<String>) -> Result<()> {
        let role = Role::global(Part::TokenEmbd);
        if self.spool.has(role) {
            return Ok(());
        }
        let dense = self.read_group(&[role])?;
        let on_grid = self.plan.codec(role).is_some_and(|codec| codec.codec().grid().is_some());
        let hessian = match self.method.solver.needs_hessian() && on_grid {
            true => Some(Hessian::new(self.embedding_curvature()?)),
            false => None,
        };
        let tensor = self.solve(role, &dense[&Part::TokenEmbd], 1.0, None, hessian.as_ref(), &|_| None, notes)?;
        self.spool.put(role, &tensor)
    }

    /// What an error in an embedding row does to the first layer, which reads it before anything else is added:
    /// `Σ G_r / tr G_r` with `G_r = diag(γ) W_rᵀ W_r diag(γ)` over its readers q, k, v, gate and up and their norms γ, and a ridge for
    /// the later readers. `(hidden, hidden)`, mean diagonal 1.
    pub(crate) fn embedding_curvature(&self) -> Result<Array2<f32>> {
        let spec = self.source.spec();
        let n = spec.hidden_size;
        let mut sum = Array2::<f32>::zeros((n, n));
        for (norm, input) in [(Part::AttnNorm, Input::AttnIn), (Part::FfnNorm, Input::FfnIn)] {
            // Without a norm of its own, a block reads what the embedding says, or the other block's norm.
            let gamma = match spec.has(norm) {
                true => Array1::from(self.source.read(Role::layer(0, norm))?.data) + spec.norm.offset,
                false => Array1::ones(n),
            };
            let readers: Vec<Role> = input.readers().iter().map(|&p| Role::layer(0, p)).filter(|r| spec.has_role(*r)).collect();
            for w in self.read_group(&readers)?.into_values() {
                let gram = gram((w * &gamma).view());
                let trace = gram.diag().sum();
                if trace > 0.0 {
                    sum.scaled_add(1.0 / trace, &gram);
                }
            }
        }
        let mean = sum.diag().sum() / n as f32;
        if mean > 0.0 {
            sum /= mean * (1.0 + EMBEDDING_RIDGE);
        }
        sum.diag_mut().iter_mut().for_each(|d| *d += EMBEDDING_RIDGE / (1.0 + EMBEDDING_RIDGE));
        Ok(sum)
    }

    /// Adds what a tied embedding's second use, as a table of rows, says to the curvature of the first.
    pub(crate) fn add_table(&self, h: &mut Array2<f32>) -> Result<()> {
        let mean = h.diag().sum() / h.ncols() as f32;
        h.scaled_add(TIED_TABLE * mean, &self.embedding_curvature()?);
        Ok(())
    }

    pub(crate) fn read_group(&self, roles: &[Role]) -> Result<DenseLayer> {
        let mut dense = DenseLayer::new();
        for &role in roles {
            let host = self.source.read(role)?;
            let cols = *host.shape.last().unwrap_or(&1);
            let rows = host.data.len() / cols.max(1);
            let matrix = Array2::from_shape_vec((rows, cols), host.data)
                .map_err(|e| Error::failed(e.to_string()).tensor(role.to_string()))?;
            dense.insert(role.part, matrix);
        }
        Ok(dense)
    }

    /// Transforms and solves a group of tensors that transforms may change together.
    pub(crate) fn encode_group(
        &self,
        layer: Option<usize>,
        mut dense: DenseLayer,
        mut stats: SiteMap,
        notes: &mut Vec<String>,
    ) -> Result<()> {
        self.transform(layer, &mut dense, &mut stats, notes)?;
        let scales = self.scales(layer, &dense);
        let read: BTreeSet<Part> = Input::ALL.iter().flat_map(|input| self.readers(*input, &dense)).collect();
        self.encode_unobserved(layer, &dense, &scales, &|part| read.contains(&part), notes)?;
        for &input in Input::ALL {
            // The factor is as large as the Gram matrix: one site at a time.
            let site = stats.remove(&input);
            self.encode_site(Site { layer, input }, &dense, &scales, site.as_ref(), None, notes)?;
        }
        Ok(())
    }

    /// Applies the transforms to a group of tensors and the statistics of their inputs.
    pub(crate) fn transform(
        &self,
        layer: Option<usize>,
        dense: &mut DenseLayer,
        stats: &mut SiteMap,
        notes: &mut Vec<String>,
    ) -> Result<()> {
        let spec = self.source.spec();
        let codec = |part| self.plan.codec(Role { layer, part }).expect("the plan has every tensor");
        let context = transform::Context { spec, codec: &codec, vector_type: self.vector_type, solver: self.method.solver };
        let units = if self.method.transforms.is_empty() { Vec::new() } else { self.units(layer, dense) };
        units.iter().for_each(|(part, unit)| dense.get_mut(part).expect("has a unit").mapv_inplace(|w| w / unit));
        for t in &self.method.transforms {
            for note in t.apply(dense, stats, &context)? {
                notes.push(match layer {
                    Some(layer) => format!("layer {layer}: {note}"),
                    None => format!("output: {note}"),
                });
            }
        }
        units.iter().for_each(|(part, unit)| dense.get_mut(part).expect("has a unit").mapv_inplace(|w| w * unit));
        Ok(())
    }

    /// The matrices of a group that read an input.
    pub(crate) fn readers(&self, input: Input, dense: &DenseLayer) -> Vec<Part> {
        let tied_head = input == Input::Head && self.source.spec().tied;
        let readers: &[Part] = if tied_head { &[Part::TokenEmbd] } else { input.readers() };
        readers.iter().copied().filter(|p| dense.contains_key(p)).collect()
    }

    /// Solves the matrices of a group that read a site, given what is known of it.
    pub(crate) fn encode_site(
        &self,
        at: Site,
        dense: &DenseLayer,
        scales: &Scales,
        site: Option<&SiteStats>,
        pair: Option<&Pair<'_>>,
        notes: &mut Vec<String>,
    ) -> Result<()> {
        let spec = self.source.spec();
        let readers = self.readers(at.input, dense);
        let codec = |part| self.plan.codec(Role { layer: at.layer, part }).expect("the plan has every tensor");
        let quantized = readers.iter().any(|&p| codec(p).float().is_none());
        notes.extend(site.and_then(|s| unseen(s, at)).filter(|_| quantized));
        let needed = quantized && (self.method.solver.needs_hessian() || pair.is_some());
        let hessian = match site.and_then(SiteStats::hessian) {
            Some(mut h) if needed => {
                if at.input == Input::Head && spec.tied {
                    self.add_table(&mut h)?;
                }
                Some(Hessian::new(h))
            }
            _ => None,
        };
        for part in readers {
            let role = Role { layer: at.layer, part };
            let importance = match &self.evidence {
                Evidence::Importance(by_role) => by_role.get(&role).cloned(),
                _ => site.map(|s| importance(s, spec, part)),
            };
            let scale = scales.get(&role).copied().unwrap_or(1.0);
            let weights = &dense[&part];
            let pair = pair.filter(|_| codec(part).float().is_none());
            let corrected = pair.and_then(|pair| pair.correct(part, weights, hessian.as_ref()));
            let target = corrected.as_ref().map_or(weights, |c| &c.weights);
            let known = hessian.as_ref().filter(|_| self.method.solver.needs_hessian());
            let own = |i: usize| site.and_then(|s| s.hessian_of(i)).map(Hessian::new);
            let own: &Own<'_> = if part.kind() == PartKind::Stacked && known.is_some() { &own } else { &|_| None };
            let mut tensor = self.solve(role, target, scale, importance.as_deref(), known, own, notes)?;
            if let Some(pair) = pair {
                tensor = pair.guard(role, weights, tensor, importance.as_deref(), notes)?;
            }
            if let Some(site) = site.filter(|_| self.method.corrects_biases() && codec(part).float().is_none()) {
                self.correct_bias(role, dense, &tensor, site, notes)?;
            }
            self.spool.put(role, &tensor)?;
        }
        Ok(())
    }

    /// Encodes the bias of a matrix that has one once more, with the mean of the matrix's error.
    fn correct_bias(
        &self,
        role: Role,
        dense: &DenseLayer,
        tensor: &EncodedTensor,
        site: &SiteStats,
        notes: &mut Vec<String>,
    ) -> Result<()> {
        let Some(part) = role.part.bias().filter(|b| dense.contains_key(b)) else { return Ok(()) };
        let mut bias = dense[&part].clone();
        transform::bias::correct(role.part, &mut bias, &dense[&role.part], &tensor.decode(), site);
        let role = Role { part, ..role };
        self.spool.put(role, &self.solve(role, &bias, 1.0, None, None, &|_| None, notes)?)
    }

    /// Encodes the tensors of a group that read no site, or none that was observed.
    pub(crate) fn encode_unobserved(
        &self,
        layer: Option<usize>,
        dense: &DenseLayer,
        scales: &Scales,
        read: &dyn Fn(Part) -> bool,
        notes: &mut Vec<String>,
    ) -> Result<()> {
        for (&part, weights) in dense.iter().filter(|(part, _)| !read(**part)) {
            let role = Role { layer, part };
            let scale = scales.get(&role).copied().unwrap_or(1.0);
            let tensor = self.solve(role, weights, scale, None, None, &|_| None, notes)?;
            self.spool.put(role, &tensor)?;
        }
        Ok(())
    }

    /// The scales that tensors of a group have as a whole.
    pub(crate) fn scales(&self, layer: Option<usize>, dense: &DenseLayer) -> Scales {
        let largest = |w: &Array2<f32>| w.iter().fold(0f32, |most, w| most.max(w.abs()));
        let scaled = dense.iter().map(|(&part, w)| (Role { layer, part }, w)).filter(|(role, _)| self.plan.has_scale(*role));
        shared_scales(self.plan, &scaled.map(|(role, w)| (role, largest(w))).collect())
    }

    /// Powers of two next to these scales. Transforms try blocks without a tensor's scale, whose own scales do not reach far enough for
    /// most weights; divided by such a unit, which is exact, they do.
    fn units(&self, layer: Option<usize>, dense: &DenseLayer) -> Vec<(Part, f32)> {
        let power = |scale: f32| f32::from_bits(scale.to_bits() & f32::INFINITY.to_bits());
        self.scales(layer, dense).into_iter().map(|(role, scale)| (role.part, power(scale))).collect()
    }

    /// `hessian` serves all of a stack's matrices that have no `own`.
    #[expect(clippy::too_many_arguments, reason = "a matrix and all that is known of it")]
    fn solve(
        &self,
        role: Role,
        weights: &Array2<f32>,
        scale: f32,
        importance: Option<&[f32]>,
        hessian: Option<&Hessian>,
        own: &Own<'_>,
        notes: &mut Vec<String>,
    ) -> Result<EncodedTensor> {
        let codec = self.plan.codec(role).expect("the plan has every tensor");
        let shape = self.source.spec().shape(role.part);
        if let Some(float) = codec.float() {
            let values = weights.as_slice().expect("standard layout");
            check_range(role, float, values)?;
            return EncodedTensor::encode(codec, &shape, values, None);
        }
        // Curvature says more than importance.
        let importance = importance.filter(|_| hessian.is_none());
        let first = own(0);
        let count = match (&first, importance) {
            (Some(_), _) => shape[0],
            (None, Some(i)) => (i.len() / weights.ncols().max(1)).max(1),
            (None, None) => 1,
        };
        let each = weights.nrows() / count;
        let mut first = Some(first);
        let mut bytes = Vec::new();
        let mut said = BTreeSet::new();
        for i in 0..count {
            let importance = importance.map(|all| &all[i * weights.ncols()..(i + 1) * weights.ncols()]);
            let weights = weights.slice(s![i * each..(i + 1) * each, ..]);
            let device = &self.context.device;
            let own = first.take().unwrap_or_else(|| own(i));
            let problem = Problem { weights, codec, scale, importance, hessian: own.as_ref().or(hessian), device };
            let solution = self.method.solver.solve(&problem).map_err(|e| e.tensor(role.to_string()))?;
            bytes.extend(solution.tensor.bytes);
            said.extend(solution.notes);
        }
        notes.extend(said.into_iter().map(|n| format!("{role}: {n}")));
        Ok(EncodedTensor { scale, ..EncodedTensor::new(&shape, codec, bytes) })
    }

    /// The values of a tensor that is in the spool.
    pub(crate) fn decoded(&self, role: Role) -> Result<Vec<f32>> {
        Ok(self.encoded(role)?.decode())
    }

    /// A tensor that is in the spool.
    pub fn encoded(&self, role: Role) -> Result<EncodedTensor> {
        from_spool(self.spool, self.plan, self.source.spec(), role)
    }
}

/// A tensor that was encoded as the plan says.
pub(crate) fn from_spool(spool: &Spool, plan: &Plan, spec: &ModelSpec, role: Role) -> Result<EncodedTensor> {
    let codec = plan.codec(role).ok_or_else(|| Error::failed("the plan lacks this tensor").tensor(role.to_string()))?;
    let found = spool.get(role, codec, &spec.shape(role.part))?;
    found.ok_or_else(|| {
        Error::corrupt("a finished tensor is missing or damaged in the work folder")
            .tensor(role.to_string())
            .hint("remove the work folder beside the output and run again")
    })
}

/// The importance of a part's columns, of stacked matrices one after the other.
pub fn importance(site: &SiteStats, spec: &ModelSpec, part: Part) -> Vec<f32> {
    match part.kind() {
        PartKind::Stacked => site.importance_of(spec.shape(part)[0]),
        _ => site.importance(),
    }
}

/// Says which experts no calibration token went to, and which got too few to tell what matters to them.
pub fn unseen(stats: &SiteStats, site: Site) -> Option<String> {
    if site.input != Input::ExpertOut {
        return None;
    }
    let list = |experts: &[usize]| experts.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
    let (unseen, seldom, all) = (stats.unseen(), stats.seldom(), stats.matrices.len());
    let mut said = Vec::new();
    if !unseen.is_empty() {
        let list = list(&unseen);
        said.push(format!("{} of {all} experts saw no token ({list}); what all others saw stands for them", unseen.len()));
    }
    if !seldom.is_empty() {
        let (n, channels, list) = (seldom.len(), stats.width(), list(&seldom));
        said.push(format!(
            "{n} of {all} experts saw fewer tokens than their {channels} channels ({list}); what all saw counts more"
        ));
    }
    (!said.is_empty()).then(|| format!("{site}: {}", said.join("; ")))
}

pub(crate) fn layer_roles(source: &dyn WeightSource, layer: usize) -> Vec<Role> {
    source.spec().roles().into_iter().filter(|r| r.layer == Some(layer)).collect()
}

//! What changing a few tensors of a model does to its predictions, the rest staying as it is.
//!
//! The model's hidden states before every layer are kept, so that a change re-runs only the layers from its own on; changes that are
//! measured together go through each of these layers while its weights are at hand.

use crate::map::{Baseline, Measured};
use crate::metrics::{self, Position};
use crate::perplexity::not_finite;
use crate::states::{Stage, States, Watch};
use crate::stats::mean_and_stderr;
use bitsmith_datasets::EvalWindows;
use bitsmith_formats::Result;
use bitsmith_runtime::sweep::Hidden;
use bitsmith_runtime::{Device, Embedding, Head, Layer, OutputNorm, Part, Role, Sweep, WeightSource, ops};
use rayon::prelude::*;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Hidden states of changes that go through the layers together, in bytes; one change goes alone if it takes more.
pub const TOGETHER: u64 = 256 << 20;
/// The model's own hidden states in memory, in bytes; beyond that they go to the disk.
pub const IN_MEMORY: u64 = 1 << 30;

/// Tensors that are replaced together.
pub struct Change<'a> {
    /// Which tensors.
    pub roles: Vec<Role>,
    /// Their new values, row-major.
    pub values: Box<dyn Fn(Role) -> Result<Vec<f32>> + 'a>,
}

impl Change<'_> {
    fn has(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }
}

/// Hidden states before a layer.
enum Kept {
    Memory(Hidden),
    File(PathBuf),
}

/// What a change did.
#[derive(Debug, Clone, PartialEq)]
pub struct Effect {
    /// The scored positions of each window, in the order of the windows.
    pub windows: Vec<Vec<Position>>,
    /// Relative error of the embedded tokens and of the hidden states after each layer.
    pub depth: Vec<f64>,
}

/// A model and its way through a set of windows.
pub struct Perturber<'a> {
    source: &'a dyn WeightSource,
    eval: EvalWindows,
    sweep: Sweep,
    /// Before each layer, and after the last.
    before: Vec<Kept>,
    states: States,
    norm: OutputNorm,
    device: Device,
    /// Tokens that went through a decoder layer, the model's own sweep included.
    work: u64,
}

impl<'a> Perturber<'a> {
    /// Runs the model over the windows. States that do not fit into memory go to files in `folder`, which is created.
    pub fn new(
        source: &'a dyn WeightSource,
        eval: EvalWindows,
        folder: &Path,
        device: &Device,
        watch: Watch<'_>,
    ) -> Result<Self> {
        Self::with_memory(source, eval, folder, device, watch, IN_MEMORY)
    }

    fn with_memory(
        source: &'a dyn WeightSource,
        eval: EvalWindows,
        folder: &Path,
        device: &Device,
        watch: Watch<'_>,
        in_memory: u64,
    ) -> Result<Self> {
        let spec = source.spec();
        spec.require_head()?;
        let mut sweep = Sweep::new(spec, &eval.set.windows, device)?;
        watch(Stage::Layers, 0, spec.n_layers)?;
        sweep.embed_from(source)?;
        let mut before = Vec::new();
        for index in 0..=spec.n_layers {
            let hidden = sweep.hidden()?.clone();
            before.push(if hidden.bytes() * (spec.n_layers as u64 + 1) <= in_memory {
                Kept::Memory(hidden)
            } else {
                std::fs::create_dir_all(folder).map_err(|e| bitsmith_formats::Error::write(folder, e))?;
                let path = folder.join(format!("states-{index}"));
                hidden.save(&path)?;
                Kept::File(path)
            });
            if index < spec.n_layers {
                sweep.run_layer(&Layer::load(source, index, device)?, index, None)?;
                watch(Stage::Layers, index + 1, spec.n_layers)?;
            }
        }
        let norm = OutputNorm::load(source, device)?;
        let states = States::of_normed(&sweep.finish(&norm, None)?, &eval, Head::load(source, device)?)?;
        let work = sweep.n_tokens() as u64 * spec.n_layers as u64;
        Ok(Perturber { source, eval, sweep, before, states, norm, device: device.clone(), work })
    }

    /// The windows.
    pub fn eval(&self) -> &EvalWindows {
        &self.eval
    }

    /// Tokens that have gone through a decoder layer so far.
    pub fn work(&self) -> u64 {
        self.work
    }

    /// How many changes are best measured at once.
    pub fn together(&self) -> usize {
        let each = 4 * (self.sweep.n_tokens() * self.source.spec().hidden_size) as u64;
        (TOGETHER / each.max(1)).max(1) as usize
    }

    /// The unchanged model, by domain.
    pub fn baseline(&self) -> Result<BTreeMap<String, Baseline>> {
        let mut by_domain: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        for (window, domain) in self.eval.set.domain_of.iter().enumerate() {
            let nlls = by_domain.entry(self.eval.set.domains[*domain].clone()).or_default();
            self.states.for_each_chunk(window, |first, logits| {
                let rows = logits.par_chunks_exact(self.states.vocab_size()).zip(&self.targets(window)[first..]);
                let chunk: Vec<f64> = rows.map(|(row, target)| metrics::nll(row, *target)).collect();
                nlls.extend(chunk);
                Ok(())
            })?;
        }
        let of = |nlls: Vec<f64>| {
            let (nll, stderr) = mean_and_stderr(&nlls);
            Baseline { tokens: nlls.len(), nll, ppl: nll.exp(), stderr: nll.exp() * stderr }
        };
        Ok(by_domain.into_iter().map(|(domain, nlls)| (domain, of(nlls))).collect())
    }

    /// Measures each change by itself. Results do not depend on what is measured together.
    pub fn measure(&mut self, changes: &[Change<'_>]) -> Result<Vec<Effect>> {
        let mut effects = Vec::new();
        for together in changes.chunks(self.together()) {
            effects.extend(self.measure_together(together, false)?);
        }
        Ok(effects)
    }

    /// Measures one change, and how its error grows with depth.
    pub fn measure_depth(&mut self, change: Change<'_>) -> Result<Effect> {
        let mut effects = self.measure_together(&[change], true)?;
        Ok(effects.remove(0))
    }

    /// The divergence of each domain.
    pub fn by_domain(&self, effect: &Effect) -> Vec<Measured> {
        Measured::by_domain(&self.eval, &effect.windows)
    }

    fn measure_together(&mut self, changes: &[Change<'_>], with_depth: bool) -> Result<Vec<Effect>> {
        let n_layers = self.source.spec().n_layers;
        let embedding = Role::global(Part::TokenEmbd);
        let mut hidden: Vec<Option<Hidden>> = Vec::new();
        for change in changes {
            hidden.push(match change.has(embedding) {
                true => {
                    let table = self.tensor(change, embedding)?;
                    let embedding = Embedding::with_table(self.source, table.into(), &self.device)?;
                    Some(self.sweep.embedded(&embedding)?)
                }
                false => None,
            });
        }
        let first =
            |c: &Change| if c.has(embedding) { 0 } else { c.roles.iter().filter_map(|r| r.layer).min().unwrap_or(n_layers) };
        let first = changes.iter().map(first).min().unwrap_or(n_layers);
        let mut depth = vec![vec![0.0; if with_depth { first } else { 0 }]; changes.len()];
        for index in first..n_layers {
            let dense = self.before(index)?;
            let layer = Layer::load(self.source, index, &self.device)?;
            for (change, (hidden, depth)) in changes.iter().zip(hidden.iter_mut().zip(&mut depth)) {
                let own: Vec<Role> = change.roles.iter().copied().filter(|r| r.layer == Some(index)).collect();
                if hidden.is_none() && own.is_empty() {
                    continue;
                }
                let mut layer = Cow::Borrowed(&layer);
                for role in own {
                    layer.to_mut().replace_host(role.part, (change.values)(role)?)?;
                }
                if with_depth {
                    depth.push(hidden.as_ref().map_or(Ok(0.0), |h| h.relative_error(&dense))?);
                }
                *hidden = Some(self.sweep.apply_layer(hidden.as_ref().unwrap_or(&dense), &layer, index, None)?);
                self.work += self.sweep.n_tokens() as u64;
            }
        }
        let last = self.before(n_layers)?;
        let mut states = Vec::new();
        for (change, (hidden, depth)) in changes.iter().zip(hidden.iter().zip(&mut depth)) {
            let hidden = hidden.as_ref().unwrap_or(&last);
            if with_depth {
                depth.push(hidden.relative_error(&last)?);
            }
            let head = Role::global(self.source.spec().head_part());
            let head = match change.has(head) {
                true => Head::with_matrix(self.source, self.tensor(change, head)?.into(), &self.device)?,
                false => self.states.head().clone(),
            };
            states.push(States::of_normed(&self.sweep.normed(hidden, &self.norm, None)?, &self.eval, head)?);
        }
        let windows = self.positions(&states)?;
        Ok(windows.into_iter().zip(depth).map(|(windows, depth)| Effect { windows, depth }).collect())
    }

    fn before(&self, layer: usize) -> Result<Hidden> {
        match &self.before[layer] {
            Kept::Memory(hidden) => Ok(hidden.clone()),
            Kept::File(path) => self.sweep.load_hidden(path),
        }
    }

    fn tensor(&self, change: &Change<'_>, role: Role) -> Result<candle_core::Tensor> {
        ops::from_host((change.values)(role)?, &self.source.spec().shape(role.part), &self.device)
    }

    fn targets(&self, window: usize) -> &[u32] {
        &self.eval.set.windows[window][self.eval.scored()]
    }

    /// By model and window.
    fn positions(&self, states: &[States]) -> Result<Vec<Vec<Vec<Position>>>> {
        let n_windows = self.states.n_windows();
        let vocab = self.states.vocab_size();
        let others: Vec<&States> = states.iter().collect();
        let mut out = vec![Vec::with_capacity(n_windows); states.len()];
        for window in 0..n_windows {
            let targets = self.targets(window);
            let mut positions: Vec<Vec<Position>> = vec![Vec::new(); states.len()];
            self.states.for_each_of(&others, window, window, |model, first, reference, candidate| {
                let rows = reference.par_chunks_exact(vocab).zip(candidate.par_chunks_exact(vocab)).zip(&targets[first..]);
                let chunk: Vec<Position> = rows.map(|((r, c), target)| metrics::compare(r, c, *target)).collect();
                match chunk.iter().all(|p| p.kld.is_finite() && p.nll.is_finite()) {
                    true => positions[model].extend(chunk),
                    false => return Err(not_finite(window)),
                }
                Ok(())
            })?;
            out.iter_mut().zip(positions).for_each(|(model, positions)| model.push(positions));
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Reference, ignore_progress};
    use bitsmith_datasets::{Style, WindowSet};
    use bitsmith_runtime::{MemoryWeights, ModelSpec};

    const VOCAB: u32 = 96;

    fn model() -> MemoryWeights {
        let config = serde_json::json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "intermediate_size": 64,
            "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": VOCAB,
            "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "tie_word_embeddings": false
        });
        MemoryWeights::random(ModelSpec::from_config(&config).unwrap(), 1)
    }

    /// Two domains. Tokens of the upper half are in the second alone, and rare there.
    fn windows() -> EvalWindows {
        let token = |domain: u32, w: u32, i: u32| match (domain, i % 8) {
            (1, 3) => VOCAB / 2 + (w * 5 + i) % (VOCAB / 2),
            _ => (w * 31 + i * 17 + domain * 7) % (VOCAB / 2),
        };
        let window = |w: u32| (0..24).map(|i| token(w % 2, w, i)).collect::<Vec<u32>>();
        let set = WindowSet {
            data: "x".into(),
            sha256: "s".into(),
            ctx: 24,
            domains: vec!["plain".into(), "rare".into()],
            windows: (0..6).map(window).collect(),
            domain_of: (0..6).map(|w| w % 2).collect(),
            notes: Vec::new(),
        };
        EvalWindows { set, style: Style::Paper }
    }

    /// A tensor with noise of this fraction of its root mean square, on the rows that `on` names.
    fn noisy(m: &MemoryWeights, role: Role, size: f32, on: impl Fn(usize) -> bool) -> Vec<f32> {
        let host = m.read(role).unwrap();
        let row = *host.shape.last().unwrap();
        let rms = (host.data.iter().map(|v| v * v).sum::<f32>() / host.data.len() as f32).sqrt();
        let mut state = role.layer.map_or(7, |l| 100 + l as u64) * 1000 + role.part as u64;
        let mut out = host.data;
        for (i, v) in out.iter_mut().enumerate() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let uniform = (state >> 40) as f32 / (1u32 << 24) as f32 - 0.5;
            *v += if on(i / row) { size * rms * 3.46 * uniform } else { 0.0 };
        }
        out
    }

    fn matrices(m: &MemoryWeights) -> Vec<Role> {
        m.spec().roles().into_iter().filter(|r| r.part.is_matrix()).collect()
    }

    fn perturber(m: &MemoryWeights) -> Perturber<'_> {
        Perturber::new(m, windows(), Path::new("unused"), &Device::Cpu, &ignore_progress).unwrap()
    }

    fn mean_kld(effect: &Effect) -> f64 {
        let all: Vec<f64> = effect.windows.iter().flatten().map(|p| p.kld).collect();
        crate::stats::mean(&all)
    }

    #[test]
    fn a_change_does_what_the_changed_model_does() {
        let m = model();
        let reference = Reference::new("ref", &m, windows(), &Device::Cpu, &ignore_progress).unwrap();
        let roles = matrices(&m);
        let changes: Vec<Change> = roles
            .iter()
            .map(|r| Change { roles: vec![*r], values: Box::new(|r| Ok(noisy(&m, r, 0.1, |_| true))) })
            .chain([Change { roles: roles.clone(), values: Box::new(|r| Ok(noisy(&m, r, 0.1, |_| true))) }])
            .collect();
        let folder = tempfile::tempdir().unwrap();
        let mut on_disk = Perturber::with_memory(&m, windows(), folder.path(), &Device::Cpu, &ignore_progress, 0).unwrap();
        let together = perturber(&m).measure(&changes).unwrap();
        assert_eq!(on_disk.measure(&changes).unwrap(), together);
        for (change, effect) in changes.iter().zip(&together) {
            let mut changed = m.clone();
            change.roles.iter().for_each(|r| changed.set(*r, noisy(&m, *r, 0.1, |_| true)).unwrap());
            let kld = reference.compare(&changed, &ignore_progress).unwrap().kld;
            assert_eq!(mean_kld(effect), kld.summary.mean, "{:?}", change.roles);
            let by_domain = on_disk.by_domain(effect);
            assert_eq!(
                by_domain.iter().map(|d| d.kld).collect::<Vec<_>>(),
                kld.domains.iter().map(|d| d.summary.mean).collect::<Vec<_>>()
            );
        }
        let baseline = on_disk.baseline().unwrap();
        let own = reference.perplexity(&ignore_progress).unwrap();
        for d in &own.domains {
            assert!((baseline[&d.domain].nll - d.nll).abs() < 1e-12 && baseline[&d.domain].tokens == d.tokens);
        }
        // From the embedding on, errors are there; after the layers that have none of their own they do not vanish.
        let depth =
            on_disk.measure_depth(Change { roles: vec![roles[0]], values: Box::new(|r| Ok(noisy(&m, r, 0.1, |_| true))) });
        let depth = depth.unwrap().depth;
        assert!(depth.len() == 4 && (depth[0] - 0.1).abs() < 0.01 && depth.iter().all(|d| *d > 0.01), "{depth:?}");
        let late = Change { roles: vec![Role::layer(2, Part::FfnDown)], values: Box::new(|r| Ok(noisy(&m, r, 0.1, |_| true))) };
        let depth = on_disk.measure_depth(late).unwrap().depth;
        assert!(depth[..2].iter().all(|d| *d == 0.0) && depth.last().is_some_and(|d| *d > 0.0), "{depth:?}");
    }

    #[test]
    fn noise_is_found_in_the_tensor_that_has_it() {
        let m = model();
        let mut perturber = perturber(&m);
        let roles = matrices(&m);
        for &culprit in &roles {
            let values = |r: Role| Ok(noisy(&m, r, if r == culprit { 0.6 } else { 0.01 }, |_| true));
            let changes: Vec<Change> = roles.iter().map(|r| Change { roles: vec![*r], values: Box::new(values) }).collect();
            let klds: Vec<f64> = perturber.measure(&changes).unwrap().iter().map(mean_kld).collect();
            let first = (0..roles.len()).max_by(|a, b| klds[*a].total_cmp(&klds[*b])).unwrap();
            assert_eq!(roles[first], culprit);
        }
    }

    #[test]
    fn noise_is_found_in_the_layer_that_has_it() {
        let m = model();
        let mut perturber = perturber(&m);
        let of = |layer: usize| matrices(&m).into_iter().filter(|r| r.layer == Some(layer)).collect::<Vec<_>>();
        for culprit in 0..3 {
            let values = |r: Role| Ok(noisy(&m, r, if r.layer == Some(culprit) { 0.2 } else { 0.02 }, |_| true));
            let changes: Vec<Change> = (0..3).map(|l| Change { roles: of(l), values: Box::new(values) }).collect();
            let klds: Vec<f64> = perturber.measure(&changes).unwrap().iter().map(mean_kld).collect();
            assert!((0..3).all(|l| l == culprit || klds[l] < klds[culprit]), "{culprit} {klds:?}");
            // And where everything is changed at once, the error jumps there.
            let everything =
                Change { roles: matrices(&m).into_iter().filter(|r| r.layer.is_some()).collect(), values: Box::new(values) };
            let depth = perturber.measure_depth(everything).unwrap().depth;
            let jumps: Vec<f64> = depth.windows(2).map(|w| w[1] - w[0]).collect();
            assert!((0..3).all(|l| l == culprit || jumps[l] < jumps[culprit]), "{culprit} {depth:?}");
        }
    }

    #[test]
    fn noise_on_rare_tokens_is_found_in_the_domain_that_has_them() {
        let m = model();
        let mut perturber = perturber(&m);
        let rare = Change {
            roles: vec![Role::global(Part::TokenEmbd)],
            values: Box::new(|r| Ok(noisy(&m, r, 0.5, |row| row >= (VOCAB / 2) as usize))),
        };
        let effect = perturber.measure(&[rare]).unwrap().remove(0);
        let domains = perturber.by_domain(&effect);
        assert_eq!(domains[0].kld, 0.0);
        assert!(domains[1].kld > 1e-4 && domains[1].stderr > 0.0, "{domains:?}");
    }
}

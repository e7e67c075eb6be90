//! Allocation: which format each tensor of an `auto` target gets.
//!
//! Every matrix is encoded in every candidate format by the method's solver; probes tell how much the model's predictions suffer from an
//! error in each ([`crate::sensitivity`]); the knapsack is solved exactly. What a whole plan loses is not quite the sum of its tensors'
//! parts: errors do not add up to the last bit, and whole plans are made with the method's transforms on the inputs that quantized layers
//! give. So the plan that was chosen is made and measured on text that is held out; a budget of divergence takes a few such rounds.

use crate::budget::{Auto, Budget, SpeedClass};
use crate::candidates::{Candidates, Column, Kept};
use crate::context::Context;
use crate::encode::{Encoder, Evidence};
use crate::evaluate::watch;
use crate::held_out::{self, Texts};
use crate::manifest::hash_inputs;
use crate::map::middle;
use crate::opened::Opened;
use crate::quantize::QuantizeOptions;
use crate::sealed;
use crate::sensitivity::probe;
use crate::share::Share;
use crate::spool::Spool;
use crate::target::Target;
use bitsmith_datasets::{DataSpec, EvalWindows};
use bitsmith_eval::{Perturber, Reference};
use bitsmith_formats::atomic::write_file;
use bitsmith_formats::hash::sha256_bytes;
use bitsmith_formats::{CodecId, Encoding, Error, Float, Result};
use bitsmith_quantize::allocate::{Choice, allocate};
use bitsmith_quantize::plan::{Plan, PlanEntry, PlanOptions};
use bitsmith_runtime::{HostTensor, ModelSpec, Role, WeightSource};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Plans that are made and measured for a budget of divergence.
const ROUNDS: usize = 4;
/// A plan that is predicted to lose this much of what it may is close enough.
const CLOSE: f64 = 0.95;

/// What there is to choose from for every group of tensors, and the groups.
type Items = (Vec<Vec<Choice>>, Vec<Vec<Role>>);

/// How `auto` targets choose.
#[derive(Debug, Clone, Default)]
pub struct AutoOptions {
    /// Which formats may be chosen.
    pub speed: SpeedClass,
    /// Text for probes and predictions; calibration text that is held out if `None`.
    pub data: Option<DataSpec>,
    /// Where the plan is written too.
    pub plan_out: Option<PathBuf>,
    /// Whether the formats come from a plan that was given, as overrides.
    pub planned: bool,
}

/// A finished allocation.
#[derive(Debug, Clone)]
pub struct Allocated {
    /// Formats by tensor.
    pub overrides: Vec<(String, CodecId)>,
    /// The mean divergence that the plan is expected to have, nats per token.
    pub predicted: f64,
    /// Its standard error, windows taken as independent; `None` for a single window.
    pub stderr: Option<f64>,
    /// The text that it was found on.
    pub data: String,
    /// Each tensor's part of it.
    pub parts: BTreeMap<Role, f64>,
}

/// What is known of the model: independent of any budget, and kept.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Known {
    /// By tensor, the divergence that each candidate adds.
    losses: Vec<(Role, Vec<f64>)>,
    /// Plans that were made.
    measured: Vec<Made>,
}

/// A plan that was made and measured.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Made {
    /// The candidate of each group of tensors.
    chosen: Vec<usize>,
    kld: f64,
    stderr: Option<f64>,
}

/// The model that formats are chosen for.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    /// As it was opened.
    pub model: &'a Opened,
    /// Its weights, rewritten if the method does so.
    pub source: &'a dyn WeightSource,
}

struct Allocation<'a> {
    source: &'a dyn WeightSource,
    auto: Auto,
    options: &'a QuantizeOptions,
    context: &'a Context,
    columns: Vec<Column>,
    /// The plan that what is chosen changes.
    typical: Plan,
    vector_type: Float,
    /// Where [`Known`] is kept.
    store: PathBuf,
    /// Where work goes on.
    work: PathBuf,
    key: String,
    calibration: Vec<Vec<u32>>,
    held_out: EvalWindows,
}

/// Chooses the formats. `spec` has the tensors of the artifact, `overhead` is what its files have besides tensors, in bytes.
pub fn plan_for(
    subject: Subject<'_>,
    auto: Auto,
    spec: &ModelSpec,
    dense: Float,
    overhead: u64,
    options: &QuantizeOptions,
    context: &Context,
) -> Result<Allocated> {
    let budget = auto.required_budget()?;
    let allocation = Allocation::new(subject, auto, spec, dense, options, context)?;
    let mut known = allocation.known()?;
    let (items, groups) = allocation.items(&known, spec)?;
    let fixed = allocation.fixed_bytes(&known, spec);
    let besides = if matches!(budget, Budget::Bytes(_)) { overhead } else { 0 };
    let chosen = match (budget, budget.bytes(spec.n_weights())) {
        (_, Some(most)) => most
            .checked_sub(fixed + besides)
            .and_then(|room| allocate(&items, room as f64))
            .ok_or_else(|| too_little(budget, &items, fixed + besides, spec))?,
        (Budget::MaxKld(kld), _) => allocation.within(kld.get(), &items, &groups, &mut known)?,
        (..) => unreachable!("other budgets are in bytes"),
    };
    let Made { kld: predicted, stderr, .. } = allocation.measure(&chosen, &groups, &mut known)?;
    let correction = predicted / cost(&items, &chosen);
    let data = options.auto.data.as_ref().map_or("calibration text that was held out".into(), |data| data.to_string());
    let mut allocated = Allocated { overrides: Vec::new(), predicted, stderr, data, parts: BTreeMap::new() };
    let losses: BTreeMap<Role, &Vec<f64>> = known.losses.iter().map(|(role, losses)| (*role, losses)).collect();
    for (roles, &column) in groups.iter().zip(&chosen) {
        for &role in roles {
            let codec = allocation.columns[column].plan.codec(role).expect("plans have every tensor");
            allocated.overrides.push((role.to_string(), codec));
            // Where no tensor's error shows, there is nothing to share out.
            let part = if correction.is_finite() { correction * losses[&role][column] } else { 0.0 };
            allocated.parts.insert(role, part);
        }
    }
    Ok(allocated)
}

/// The sum over all groups of tensors of what is chosen.
fn cost(items: &[Vec<Choice>], chosen: &[usize]) -> f64 {
    items.iter().zip(chosen).map(|(choices, at)| choices[*at].cost).sum()
}

fn too_little(budget: Budget, items: &[Vec<Choice>], besides: u64, spec: &ModelSpec) -> Error {
    let least: f64 = items.iter().map(|i| i.iter().map(|c| c.weight).fold(f64::INFINITY, f64::min)).sum();
    let least = besides + least as u64;
    let bpw = least as f64 * 8.0 / spec.n_weights() as f64;
    Error::usage(format!("{budget} is too little: the smallest plan takes {least} bytes, {bpw:.3} bits per weight"))
        .hint("allow more, or narrower formats with --speed-class all")
}

impl<'a> Allocation<'a> {
    fn new(
        Subject { model, source }: Subject<'a>,
        auto: Auto,
        spec: &ModelSpec,
        dense: Float,
        options: &'a QuantizeOptions,
        context: &'a Context,
    ) -> Result<Self> {
        let weighted = options.method.solver.name() != "rtn";
        let mut columns = Vec::new();
        for target in auto.home.candidates(options.auto.speed) {
            let plan = target.plan(spec, dense, &PlanOptions { pure: true, importance: weighted, ..options.plan.clone() })?;
            // Formats that need importance are no candidates for a method without.
            if plan.check_importance(|_| weighted).is_ok() {
                columns.push(Column { codec: target.base(dense, spec.hidden_size), plan });
            }
        }
        let importance = PlanOptions { importance: weighted, ..options.plan.clone() };
        let typical = Target::Auto(auto).plan(spec, dense, &importance)?;
        let Texts { calibration, held_out } = Texts::of(&options.calibration, options.auto.data.as_ref(), model)?;
        let key = json!({
            "tool": concat!("bitsmith ", env!("CARGO_PKG_VERSION")), "inputs": hash_inputs(model.checkpoint.path())?,
            "plans": columns.iter().map(|c| &c.plan).collect::<Vec<_>>(), "method": options.method.to_string(),
            "calibration": &calibration, "held_out": &held_out.set.windows, "style": held_out.style, "sequential": options.calibration.sequential(&options.method),
            "seed": options.method.rewrites().then_some(context.seed),
            "device": bitsmith_runtime::device::kind(&context.device),
        });
        let key = sha256_bytes(key.to_string().as_bytes());
        let folder = context.cache_dir.join("sensitivity");
        std::fs::create_dir_all(&folder).map_err(|e| Error::write(&folder, e))?;
        let (store, work) = (folder.join(format!("{key}.json")), folder.join(format!("{key}.work")));
        let vector_type = Target::Auto(auto).vector_type(dense);
        Ok(Allocation { source, auto, options, context, columns, typical, vector_type, store, work, key, calibration, held_out })
    }

    /// What is known of the model, from an earlier run or found now.
    fn known(&self) -> Result<Known> {
        let kept = std::fs::read(&self.store).ok().and_then(|json| sealed::open::<Known>(&json));
        if let Some(known) = kept.filter(|known| known.losses.iter().all(|(_, l)| l.len() == self.columns.len())) {
            return Ok(known);
        }
        let (source, context) = (self.source, self.context);
        let candidates = Candidates::encode(
            source,
            &self.columns,
            &self.options.method,
            self.vector_type,
            &self.calibration,
            Kept { folder: &self.work.join("candidates"), key: &self.key },
            context,
        )?;
        let watch = watch(context, "held-out text");
        let mut perturber =
            Perturber::new(source, held_out::few(&self.held_out, held_out::PROBED), &self.work, &context.device, &watch)?;
        let factors = probe(&mut perturber, &candidates, middle(&self.columns), context)?;
        let losses =
            |role: Role| (role, candidates.errors(role).iter().map(|e| e * factors.get(&role).unwrap_or(&0.0)).collect());
        let known = Known { losses: candidates.roles().into_iter().map(losses).collect(), measured: Vec::new() };
        self.keep(&known)?;
        std::fs::remove_dir_all(&self.work).map_err(|e| Error::write(&self.work, e))?;
        Ok(known)
    }

    fn keep(&self, known: &Known) -> Result<()> {
        write_file(&self.store, sealed::seal(known)?.as_bytes())
    }

    /// Bytes of a tensor in a column, as the container stores it.
    fn bytes(&self, role: Role, column: usize, spec: &ModelSpec) -> Result<u64> {
        let codec = self.columns[column].plan.codec(role).expect("plans have every tensor");
        let row = spec.shape(role.part).last().copied().unwrap_or(1);
        Ok((codec.row_bytes(row)? * (spec.numel(role.part) / row.max(1))) as u64)
    }

    /// Bytes of the tensors that have no choice.
    fn fixed_bytes(&self, known: &Known, spec: &ModelSpec) -> u64 {
        let chosen = |e: &PlanEntry| known.losses.iter().any(|(role, _)| *role == e.role);
        let entries = self.typical.entries.iter().filter(|e| !chosen(e)).cloned().collect();
        Plan { entries, ..self.typical }.bytes(spec)
    }

    /// What there is to choose, and for which tensors: one alone, or all that servers fuse.
    fn items(&self, known: &Known, spec: &ModelSpec) -> Result<Items> {
        let mut groups: Vec<Vec<Role>> = Vec::new();
        for (role, _) in &known.losses {
            let fused = |g: &&mut Vec<Role>| self.auto.home.fuses() && role.site().is_some() && g[0].site() == role.site();
            match groups.iter_mut().find(fused) {
                Some(group) => group.push(*role),
                None => groups.push(vec![*role]),
            }
        }
        let losses: BTreeMap<Role, &Vec<f64>> = known.losses.iter().map(|(role, losses)| (*role, losses)).collect();
        let choice = |roles: &[Role], column: usize| -> Result<Choice> {
            let bytes = roles.iter().map(|r| self.bytes(*r, column, spec)).sum::<Result<u64>>()?;
            Ok(Choice { weight: bytes as f64, cost: roles.iter().map(|r| losses[r][column]).sum() })
        };
        let item = |roles: &Vec<Role>| (0..self.columns.len()).map(|c| choice(roles, c)).collect::<Result<Vec<_>>>();
        Ok((groups.iter().map(item).collect::<Result<_>>()?, groups))
    }

    /// The smallest plan whose predicted divergence is at most `kld`.
    fn within(&self, kld: f64, items: &[Vec<Choice>], groups: &[Vec<Role>], known: &mut Known) -> Result<Vec<usize>> {
        let turned: Vec<Vec<Choice>> =
            items.iter().map(|i| i.iter().map(|c| Choice { weight: c.cost, cost: c.weight }).collect()).collect();
        let bytes = |chosen: &[usize]| cost(&turned, chosen);
        let mut best: Option<Vec<usize>> = None;
        // Less than this no plan loses by the sum of its parts; what the one that loses least does lose is still to be seen.
        let least: f64 = items.iter().map(|i| i.iter().map(|c| c.cost).fold(f64::INFINITY, f64::min)).sum();
        let mut sum = kld;
        for _ in 0..ROUNDS {
            let Some(chosen) = allocate(&turned, sum.max(least * (1.0 + 1e-9))) else { break };
            let measured = self.measure(&chosen, groups, known)?.kld;
            if measured <= kld && best.as_ref().is_none_or(|best| bytes(&chosen) < bytes(best)) {
                best = Some(chosen.clone());
            }
            if measured <= kld && measured >= CLOSE * kld || measured > kld && sum <= least {
                break;
            }
            // A plan that loses too much, or one that takes too much: the next aims at the middle of what is close enough.
            sum = cost(items, &chosen) * kld * (1.0 + CLOSE) / 2.0 / measured.max(1e-12);
        }
        best.ok_or_else(|| {
            let least = known.measured.iter().map(|made| made.kld).fold(f64::INFINITY, f64::min);
            Error::usage(format!("no plan was found that loses at most {kld:.2e} nats per token: the best loses {least:.2e}"))
                .hint("allow more divergence, or choose a container with wider formats")
        })
    }

    /// The divergence of a plan on the text that is held out, made by the whole method. The plan is the typical one but for what is
    /// chosen, a column for each group of tensors.
    fn measure(&self, chosen: &[usize], groups: &[Vec<Role>], known: &mut Known) -> Result<Made> {
        if let Some(made) = known.measured.iter().find(|made| made.chosen == chosen) {
            return Ok(made.clone());
        }
        let mut plan = self.typical.clone();
        for (roles, &column) in groups.iter().zip(chosen) {
            for entry in plan.entries.iter_mut().filter(|e| roles.contains(&e.role)) {
                entry.codec = self.columns[column].plan.codec(entry.role).expect("plans have every tensor");
            }
        }
        let spool = Spool::open(&self.work.join("plan"), &format!("{} {chosen:?}", self.key))?;
        let encoder = Encoder {
            source: self.source,
            plan: &plan,
            method: &self.options.method,
            vector_type: self.vector_type,
            evidence: Evidence::Windows {
                windows: &self.calibration,
                sequential: self.options.calibration.sequential(&self.options.method),
            },
            spool: &spool,
            share: Share::WHOLE,
            context: self.context,
        };
        encoder.run()?;
        let watch = watch(self.context, "held-out text");
        let reference = Reference::new("", self.source, self.held_out.clone(), &self.context.device, &watch)?;
        let kld = reference.compare(&Encoded(&encoder), &watch)?.kld;
        let made = Made { chosen: chosen.to_vec(), kld: kld.summary.mean, stderr: kld.mean_stderr_windows };
        known.measured.push(made.clone());
        self.keep(known)?;
        std::fs::remove_dir_all(&self.work).map_err(|e| Error::write(&self.work, e))?;
        Ok(made)
    }
}

/// A model whose tensors lie in an encoder's spool.
struct Encoded<'a>(&'a Encoder<'a>);

impl WeightSource for Encoded<'_> {
    fn spec(&self) -> &ModelSpec {
        self.0.source.spec()
    }
    fn codec(&self, role: Role) -> Result<Encoding> {
        Ok(Encoding::Codec(self.0.encoded(role)?.codec))
    }
    fn read(&self, role: Role) -> Result<HostTensor> {
        Ok(HostTensor { shape: self.spec().shape(role.part), data: self.0.encoded(role)?.decode() })
    }
}

/// An error if a matrix has no format of its own in a plan that was given.
pub fn check_named(plan: &Plan, options: &PlanOptions) -> Result<()> {
    let matrix = |e: &&PlanEntry| e.role.part.is_matrix() && e.codec.float().is_none();
    match plan.entries.iter().filter(matrix).find(|e| !options.names(e.role)) {
        Some(e) => Err(Error::usage("the plan names no format for this tensor").tensor(e.role.to_string())),
        None => Ok(()),
    }
}

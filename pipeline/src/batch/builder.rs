//! A plan as it grows: which nodes a recipe's models and targets need.

use super::cost::{self, NodeCost, Texts};
use super::inputs::{Named, Origin, Planned};
use super::plan::{Model, Node, Op, Plan, SCHEMA, TOOL, Variant, hash};
use super::recipe::{JobRecipe, Measure, Recipe};
use crate::artifact::Output;
use crate::carry;
use crate::context::Context;
use crate::rewrite::rewritten;
use crate::share::Share;
use crate::target::Target;
use bitsmith_formats::{Error, Result};
use bitsmith_runtime::{WeightSource, device};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Plans a recipe.
pub fn plan(recipe: &Recipe, context: &Context) -> Result<Plan> {
    let dir = std::env::current_dir().map_err(|e| Error::failed(format!("the current folder is gone: {e}")))?;
    let variants = recipe.jobs.iter().map(variant).collect::<Result<Vec<_>>>()?;
    let mut plan = Plan {
        schema: SCHEMA,
        tool: TOOL.into(),
        key: String::new(),
        out: dir.join(&recipe.out),
        dir,
        seed: context.seed,
        models: Vec::new(),
        variants,
        nodes: Vec::new(),
    };
    let texts = recipe.jobs.iter().map(Texts::of).collect::<Result<Vec<_>>>()?;
    let mut arguments: Vec<&str> = Vec::new();
    for argument in recipe.jobs.iter().flat_map(|j| &j.models).map(String::as_str) {
        if !arguments.contains(&argument) {
            arguments.push(argument);
        }
    }
    let mut builder = Builder { plan: &mut plan, by_key: HashMap::new(), recipe, texts: &texts, context };
    for argument in arguments {
        builder.model(argument)?;
    }
    let keys: Vec<&str> = plan.nodes.iter().map(|n| n.key.as_str()).collect();
    plan.key = hash(&json!([keys, plan.out, plan.variants.iter().map(|v| &v.name).collect::<Vec<_>>()]));
    Ok(plan)
}

fn variant(job: &JobRecipe) -> Result<Variant> {
    let calibration = &job.options.calibration;
    let mut files: Vec<PathBuf> = calibration.imatrix.iter().chain(&calibration.stats).cloned().collect();
    files.extend(calibration.data.iter().flat_map(|d| d.files()).map(Path::to_path_buf));
    files.extend(job.options.auto.data.iter().flat_map(|d| d.files()).map(Path::to_path_buf));
    files.extend(job.settings["plan"].as_str().map(PathBuf::from));
    let mut texts: Vec<PathBuf> = Vec::new();
    for data in job.measure.iter().map(Measure::data).collect::<Result<Vec<_>>>()?.iter().flatten() {
        texts.extend(data.files().map(Path::to_path_buf));
    }
    let questions = job.measure.iter().flat_map(|m| &m.questions).map(|q| q.files()).collect::<Result<Vec<_>>>()?.concat();
    let named = |list: Vec<PathBuf>| list.iter().map(|p| Named::of(p)).collect::<Result<Vec<_>>>();
    Ok(Variant {
        name: job.name.clone(),
        settings: job.settings.clone(),
        measure: job.measure.clone(),
        gates: job.gates.iter().map(|g| g.to_string()).collect(),
        release: job.release,
        publish: job.publish.clone(),
        files: named(files)?,
        texts: named(texts)?,
        questions: named(questions)?,
    })
}

/// A plan that grows, model by model.
struct Builder<'a> {
    plan: &'a mut Plan,
    by_key: HashMap<String, usize>,
    recipe: &'a Recipe,
    texts: &'a [Texts],
    context: &'a Context,
}

/// A node to be.
struct New<'a> {
    op: Op,
    deps: Vec<usize>,
    pass: Option<usize>,
    cost: NodeCost,
    /// What decides its result, besides what its needs give.
    by: Value,
    of: (usize, usize, &'a str),
}

impl Builder<'_> {
    fn model(&mut self, argument: &str) -> Result<()> {
        let planned = Planned::find(argument, self.context)?;
        if self.plan.models.iter().any(|m| m.origin == planned.origin) {
            return Err(Error::usage(format!("{argument} is named twice, in different words")));
        }
        let index = self.plan.models.len();
        let taken = |name: &str| self.plan.models.iter().any(|m| m.folder == name);
        let mut folder = planned.name.clone();
        if taken(&folder) {
            let free = (2..).map(|n| format!("{}-{n}", planned.name)).find(|n| !taken(n));
            folder = free.expect("there is always another number");
        }
        self.plan.models.push(Model {
            argument: planned.argument.clone(),
            name: planned.name.clone(),
            folder,
            origin: planned.origin.clone(),
        });
        let stored: u64 = planned.model.checkpoint.store().tensors().iter().map(|t| t.n_bytes as u64).sum();
        let bytes = planned.origin.bytes().unwrap_or(stored);
        let fetched = matches!(planned.origin, Origin::Hub { .. });
        let source = self.add(New {
            op: Op::Source,
            deps: Vec::new(),
            pass: None,
            cost: cost::source(bytes, fetched),
            by: json!([planned.origin, planned.name]),
            of: (index, 0, &planned.name),
        });
        let jobs = self.recipe.jobs.iter().enumerate().filter(|(_, j)| j.models.iter().any(|m| m == argument));
        for (number, job) in jobs {
            let more = |e: Error| match e.file {
                None => e.file(&planned.argument),
                Some(_) => e,
            };
            self.job(&planned, (index, number), source, job).map_err(more)?;
        }
        Ok(())
    }

    fn job(&mut self, planned: &Planned, (model, variant): (usize, usize), source: usize, job: &JobRecipe) -> Result<()> {
        let (checkpoint, options, texts) = (&planned.model.checkpoint, &job.options, &self.texts[variant]);
        let rewritten = rewritten(&planned.model, options, self.context)?;
        let dense: &dyn WeightSource = rewritten.as_deref().unwrap_or(checkpoint);
        let spec = checkpoint.spec();
        let of = (model, variant, planned.name.as_str());
        let device = device::kind(&self.context.device);
        let (files, measured) = (self.plan.variants[variant].files.clone(), self.plan.variants[variant].texts.clone());
        let calibration = &options.calibration;
        let method = &options.method;
        let given = calibration.stats.is_some() || !calibration.imatrix.is_empty();
        let calibrates = !given && (calibration.data.is_some() || method.needs_calibration());
        let windows = calibration.sequential(method) || method.rewrites();
        let gguf = options.targets.iter().any(|t| t.container() == "gguf" && t.is_quantized());
        // Statistics of the dense model serve every target at once; also a release's importance matrix.
        let shared = calibrates && (!windows && options.targets.iter().any(|t| takes_statistics(*t)) || job.release && gguf);
        let statistics = shared.then(|| {
            let gram = !windows && method.needs_hessian();
            let data = calibration.data.as_ref().map_or_else(|| "builtin".into(), |d| d.to_string());
            let by = json!([data, files, calibration.samples, calibration.ctx, gram, device]);
            let cost = cost::calibrate(spec, texts.calibration, calibration.ctx, gram);
            let all = New { op: Op::Calibrate { gram }, deps: vec![source], pass: None, cost, by, of };
            self.add_in_parts(job.parts, |share| Op::Observe { gram, share }, all)
        });
        let reference = match &job.measure {
            Some(measure) => {
                spec.require_head().map_err(|e| e.hint("`evaluate = false` in the recipe leaves artifacts unmeasured"))?;
                Some(self.add(New {
                    op: Op::Reference,
                    deps: vec![source],
                    pass: None,
                    cost: cost::reference(spec, texts.evaluation, texts.window(spec.context_length)),
                    by: json!([measure.of_texts(), measured, device]),
                    of,
                }))
            }
            None => None,
        };
        let mut asked = Vec::new();
        self.ask(&mut asked, job, None, source, cost::ask(spec, texts.questions), of);
        let (mut made, mut needs, mut passes) = (Vec::new(), Vec::new(), HashMap::new());
        for &target in &options.targets {
            let quantizes = target.is_quantized() || options.plan.names_quantized() || !method.transforms.is_empty();
            let from_statistics = calibrates && !windows && quantizes && takes_statistics(target);
            let deps: Vec<usize> = [Some(source), statistics.filter(|_| from_statistics)].into_iter().flatten().collect();
            let tokens = if calibrates && quantizes && !from_statistics { texts.calibration } else { 0 };
            let cost = cost::quantize(&planned.model, dense, target, options, tokens)?;
            // As the job itself decides, once it has its evidence.
            let one_pass = method.transforms.is_empty()
                && !method.solver.needs_hessian()
                && !matches!(target, Target::Auto(_))
                && (from_statistics || !calibrates || !quantizes);
            let name = target.to_string();
            let seed = (method.rewrites() || matches!(target, Target::Auto(_))).then_some(self.context.seed);
            let by = json!([name, job.settings, files, seed, device]);
            let apart = job.parts > 1
                && takes_statistics(target)
                && method.transforms.is_empty()
                && !method.rewrites()
                && (from_statistics || !calibrates)
                && !carry::any_quantized(checkpoint)?;
            let next = self.plan.nodes.len();
            let pass = (one_pass && !apart).then(|| *passes.entry(from_statistics).or_insert(next));
            let all = New { op: Op::Quantize { target: name.clone() }, deps, pass, cost, by, of };
            let part = |share| Op::Encode { target: name.clone(), share };
            let quantized = self.add_in_parts(if apart { job.parts } else { 1 }, part, all);
            made.push((target, quantized));
            needs.push(quantized);
            self.ask(&mut asked, job, Some(&name), quantized, cost::ask(spec, texts.questions), of);
            if let (Some(reference), Some(measure)) = (reference, &job.measure) {
                let by = json!([name, measure.of_texts(), measured, device]);
                let cost = cost::evaluate(spec, texts.evaluation, texts.window(spec.context_length));
                let (op, deps) = (Op::Evaluate { target: name.clone() }, vec![quantized, reference]);
                let part = |share| Op::Measure { target: name.clone(), share };
                needs.push(self.add_in_parts(job.parts, part, New { op, deps, pass: None, cost, by, of }));
            }
        }
        needs.extend(statistics.filter(|_| job.release && gguf));
        needs.extend(reference);
        needs.extend(asked);
        let bytes: u64 = made.iter().map(|(_, n)| self.plan.nodes[*n].cost.disk_bytes / 2).sum();
        let release = self.add(New {
            op: Op::Release,
            deps: needs,
            pass: None,
            cost: cost::release(),
            by: json!([job.release, job.settings, self.plan.variants[variant].gates, job.name, about(&planned.origin)?]),
            of,
        });
        if let Some(publish) = job.publish.clone().filter(|_| job.release) {
            for folder in folders(planned, job, &made)? {
                let name = if folder.is_empty() { format!("{}-GGUF", planned.name) } else { last(&folder) };
                let repo = format!("{}/{name}", publish.owner);
                let deps = vec![release];
                let by = json!([folder, repo, publish.private]);
                self.add(New { op: Op::Publish { folder, repo }, deps, pass: None, cost: cost::publish(bytes), by, of });
            }
        }
        Ok(())
    }

    /// Adds to `asked` the nodes that score a model on the job's tasks, if it has any.
    fn ask(
        &mut self,
        asked: &mut Vec<usize>,
        job: &JobRecipe,
        target: Option<&str>,
        model: usize,
        cost: NodeCost,
        of: (usize, usize, &str),
    ) {
        let Some(questions) = job.measure.as_ref().and_then(|m| m.questions.as_ref()) else { return };
        let (files, limit) = (self.plan.variants[of.1].questions.clone(), job.measure.as_ref().and_then(|m| m.limit));
        let device = device::kind(&self.context.device);
        for share in Share::all(job.parts) {
            let op = Op::Ask { target: target.map(String::from), share };
            let by = json!([target, questions, limit, files, share, device]);
            asked.push(self.add(New { op, deps: vec![model], pass: None, cost: cost::part(&cost, job.parts), by, of }));
        }
    }

    /// Adds a node, and before it the nodes of its parts, if there are to be several.
    fn add_in_parts(&mut self, parts: usize, part: impl Fn(Share) -> Op, mut whole: New<'_>) -> usize {
        if parts > 1 {
            let (needs, cost) = (whole.deps.clone(), cost::part(&whole.cost, parts));
            for share in Share::all(parts) {
                let (op, by) = (part(share), json!([whole.by, share]));
                let added = self.add(New { op, deps: needs.clone(), pass: None, cost, by, of: whole.of });
                whole.deps.push(added);
            }
            whole.cost = cost::gather(&whole.cost);
        }
        self.add(whole)
    }

    /// Adds a node, unless there is the same one already.
    fn add(&mut self, new: New<'_>) -> usize {
        let deps: Vec<&str> = new.deps.iter().map(|d| self.plan.nodes[*d].key.as_str()).collect();
        let by = hash(&new.by);
        let key = hash(&json!([SCHEMA, TOOL, new.op.name(), by, deps]));
        if let Some(&same) = self.by_key.get(&key) {
            return same;
        }
        let (model, variant, name) = new.of;
        let what = match &new.op {
            Op::Quantize { target } | Op::Evaluate { target } => format!("{} {target}", new.op.name()),
            Op::Encode { target, share } | Op::Measure { target, share } => {
                format!("{} {target}, part {share}", new.op.name())
            }
            Op::Observe { share, .. } => format!("observe, part {share}"),
            Op::Ask { target, share } => {
                let part = if share.parts > 1 { format!(", part {share}") } else { String::new() };
                format!("ask {}{part}", target.as_deref().unwrap_or("the source"))
            }
            Op::Publish { repo, .. } => format!("publish {repo}"),
            op => op.name().to_string(),
        };
        let of = self.plan.variants[variant].name.as_ref().filter(|_| !matches!(new.op, Op::Source));
        let label = of.map_or(format!("{name}: {what}"), |v| format!("{name} ({v}): {what}"));
        let New { op, deps, pass, cost, .. } = new;
        let node = Node { key: key.clone(), op, by, model, variant, deps, pass, cost, label };
        self.plan.nodes.push(node);
        self.by_key.insert(key, self.plan.nodes.len() - 1);
        self.plan.nodes.len() - 1
    }
}

/// Budgets are found on the text itself.
fn takes_statistics(target: Target) -> bool {
    !matches!(target, Target::Auto(_)) && target.is_quantized()
}

/// Folders that are repositories of their own: of GGUF files the one that they lie in, named by nothing, and every other artifact.
fn folders(planned: &Planned, job: &JobRecipe, made: &[(Target, usize)]) -> Result<Vec<String>> {
    let mut folders = Vec::new();
    let Output::Folder(place) = &job.options.out else { return Ok(folders) };
    for (target, _) in made {
        let folder = match target.container() {
            "gguf" => place.gguf_dir(&planned.name),
            _ => place.path(&planned.name, planned.model.checkpoint.spec().n_weights(), *target),
        };
        let folder = folder.strip_prefix(&place.dir).unwrap_or(&folder).display().to_string();
        if !folders.contains(&folder) {
            folders.push(folder);
        }
    }
    Ok(folders)
}

fn last(folder: &str) -> String {
    folder.rsplit('/').next().unwrap_or(folder).to_string()
}

/// What cards are written from, besides what decides artifacts: the source's own card and licences.
fn about(origin: &Origin) -> Result<Vec<Named>> {
    let Origin::Local { path, .. } = origin else { return Ok(Vec::new()) };
    if !path.is_dir() {
        return Ok(Vec::new());
    }
    let mut names = bitsmith_convert::licenses(path);
    names.push("README.md".into());
    names.iter().map(|n| path.join(n)).filter(|p| p.is_file()).map(|p| Named::of(&p)).collect()
}

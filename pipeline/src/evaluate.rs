//! Evaluation of one model, alone or against a reference.

use crate::context::Context;
use crate::estimate::Cost;
use crate::opened::Opened;
use crate::remember::{Memory, Scores};
use crate::share::Share;
use bitsmith_datasets::{DataSpec, Encoder, EvalWindows, Purpose, Style, evaluation_windows};
use bitsmith_eval::metrics::Position;
use bitsmith_eval::store::{Store, is_store};
use bitsmith_eval::{Comparison, EvalResult, Reference, Stage, perplexity, positions};
use bitsmith_formats::{Error, Result};
use bitsmith_runtime::{Tokenizer, WeightSource};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// How text is evaluated.
#[derive(Debug, Clone, Default)]
pub struct EvalOptions {
    /// Windows and scored positions.
    pub style: Style,
    /// Tokens per window; the style's own if `None`, or the model's context if that is shorter.
    pub ctx: Option<usize>,
    /// The first so many windows only.
    pub limit: Option<usize>,
}

impl EvalOptions {
    /// Cuts `data` into windows for `model`.
    pub fn windows(&self, data: &DataSpec, model: &Opened, tokenizer: &Tokenizer) -> Result<EvalWindows> {
        let longest = model.checkpoint.spec().context_length;
        let ctx = self.ctx.unwrap_or(self.style.default_ctx().min(longest));
        if ctx > longest {
            return Err(
                Error::usage(format!("windows of {ctx} tokens exceed the model's context of {longest}")).hint("lower --ctx")
            );
        }
        let corpus = data.load(Purpose::Evaluation)?;
        let encode = |text: &str| tokenizer.encode(text, false);
        let encoder = Encoder { encode: &encode, bos: tokenizer.bos().filter(|_| tokenizer.adds_bos()) };
        evaluation_windows(&corpus, &encoder, self.style, Some(ctx), self.limit)
    }
}

/// Tells the context's progress about an evaluation.
pub(crate) fn watch<'a>(context: &'a Context, what: &'a str) -> impl Fn(Stage, usize, usize) -> Result<()> + 'a {
    let last = AtomicUsize::new(0);
    move |stage, done, total| {
        let name = match stage {
            Stage::Layers => "run",
            Stage::Windows => "score",
        };
        if done == 0 {
            last.store(0, Ordering::Relaxed);
            context.progress.start(&format!("{name} {what}"), total as u64);
            return Ok(());
        }
        let before = last.swap(done, Ordering::Relaxed);
        context.progress.advance(done.saturating_sub(before) as u64);
        if done == total {
            context.progress.finish();
        }
        Ok(())
    }
}

/// What [`evaluate`] will cost.
pub fn cost(model: &Opened, data: &[&DataSpec], models: usize, options: &EvalOptions, context: &Context) -> Result<Cost> {
    let tokenizer = model.text_tokenizer()?;
    let windows = data.iter().map(|d| options.windows(d, model, &tokenizer)).collect::<Result<Vec<_>>>()?;
    Ok(Cost::of_evaluation(model.checkpoint.spec(), &windows, models, context.threads))
}

/// What a model is compared with.
pub enum Against {
    /// A model, which is run.
    Model(Box<Opened>),
    /// What a file keeps of a model's predictions.
    Stored(PathBuf),
}

impl Against {
    /// A file of stored predictions if it is one, else a model, which is downloaded if need be.
    pub fn find(text: &str, context: &Context) -> Result<Against> {
        match is_store(Path::new(text)) {
            true => Ok(Against::Stored(text.into())),
            false => Ok(Against::Model(Box::new(Opened::find(text, context)?))),
        }
    }

    /// Models that have to be run for it.
    pub fn models(&self) -> usize {
        usize::from(matches!(self, Against::Model(_)))
    }

    /// Checks that it cuts `data` into these windows, as the compared model does.
    fn check(&self, data: &DataSpec, windows: &EvalWindows, model: &Opened, options: &EvalOptions) -> Result<()> {
        let Against::Model(theirs) = self else { return Ok(()) };
        let own = options.windows(data, theirs, &theirs.text_tokenizer()?)?;
        match own.set.windows == windows.set.windows {
            true => Ok(()),
            false => {
                Err(Error::failed(format!("the two models tokenize {data} differently, so their predictions cannot be compared"))
                    .file(model.checkpoint.path()))
            }
        }
    }

    /// What it predicts in these windows.
    fn reference(&self, windows: EvalWindows, tokenizer: &Tokenizer, context: &Context) -> Result<Reference> {
        let reference = match self {
            Against::Stored(path) => Reference::stored(Store::open(path)?, windows, &context.device)?,
            Against::Model(m) => Reference::new(&m.name, &m.checkpoint, windows, &context.device, &watch(context, &m.name))?,
        };
        Ok(reference.with_tokenizer(tokenizer.clone()))
    }
}

/// What a model predicts in a share of a text's windows, beside stored predictions.
pub fn measure(
    model: &Opened,
    data: &DataSpec,
    stored: &Path,
    share: Share,
    options: &EvalOptions,
    context: &Context,
) -> Result<Vec<Vec<Position>>> {
    model.checkpoint.spec().require_head()?;
    let windows = options.windows(data, model, &model.text_tokenizer()?)?;
    let range = share.of(windows.set.windows.len());
    let part = windows.part(range.clone());
    Cost::of_evaluation(model.checkpoint.spec(), &[part], 1, context.threads).check_ram("the evaluation", context.max_ram)?;
    let reference = Reference::stored(Store::open(stored)?, windows, &context.device)?;
    reference.measure(&model.checkpoint, range, &watch(context, &model.name))
}

/// The result of measuring all shares of a text, whose positions are given in the text's order.
pub fn judge(
    model: &Opened,
    data: &DataSpec,
    stored: &Path,
    parts: &[PathBuf],
    options: &EvalOptions,
    context: &Context,
) -> Result<Comparison> {
    let tokenizer = model.text_tokenizer()?;
    let windows = options.windows(data, model, &tokenizer)?;
    let scored = windows.scored().len();
    let found = parts.iter().map(|path| positions::read(path, scored)).collect::<Result<Vec<_>>>()?.concat();
    Reference::stored(Store::open(stored)?, windows, &context.device)?.with_tokenizer(tokenizer).judge(&found)
}

/// Perplexity on each of `ppl`, and divergence from `against` on each of `kld`; what `memory` has is not computed again. The reference's
/// predictions are kept in the file `save`.
#[expect(clippy::too_many_arguments, reason = "what to measure, and what is there to measure it with")]
pub fn evaluate(
    model: &Opened,
    ppl: &[DataSpec],
    kld: &[DataSpec],
    against: Option<&Against>,
    save: Option<&Path>,
    options: &EvalOptions,
    memory: &Memory,
    context: &Context,
) -> Result<EvalResult> {
    model.checkpoint.spec().require_head()?;
    let device = &context.device;
    let tokenizer = model.text_tokenizer()?;
    let (bytes, bpw) = model.size();
    let mut result = EvalResult {
        model: model.name.clone(),
        bytes: Some(bytes),
        bpw: Some(bpw),
        kv: model.checkpoint.cache(),
        ..EvalResult::default()
    };
    let data: Vec<&DataSpec> = ppl.iter().chain(kld).collect();
    let models = 1 + against.map_or(0, Against::models);
    cost(model, &data, models, options, context)?.check_ram("the evaluation", context.max_ram)?;
    if against.is_none() && !kld.is_empty() {
        return Err(Error::usage("--kld needs a reference").hint("name it with --against MODEL"));
    }
    if save.is_some() && kld.len() != 1 {
        return Err(Error::usage("a stored reference is of one text").hint("give --kld once"));
    }
    for (data, against) in kld.iter().zip(std::iter::repeat(against).flatten()) {
        let windows = options.windows(data, model, &tokenizer)?;
        against.check(data, &windows, model, options)?;
        let compare = || {
            let reference = against.reference(windows.clone(), &tokenizer, context)?;
            if let Some(path) = save {
                store(&reference, path, context)?;
            }
            let comparison = reference.compare(&model.checkpoint, &watch(context, &model.name))?;
            Ok(Scores { perplexity: comparison.perplexity, kld: Some(comparison.kld) })
        };
        let scores = match (against, save) {
            (Against::Model(theirs), None) => memory.scores(model, Some(theirs), &windows, context, compare)?,
            _ => compare()?,
        };
        result.kld.extend(scores.kld);
        // It came with the comparison.
        result.perplexity.push(scores.perplexity);
    }
    for data in ppl.iter().filter(|p| !kld.iter().any(|k| k.to_string() == p.to_string())) {
        let windows = options.windows(data, model, &tokenizer)?;
        let compute = || {
            let perplexity = perplexity(&model.checkpoint, &windows, device, &watch(context, &model.name))?;
            Ok(Scores { perplexity, kld: None })
        };
        result.perplexity.push(memory.scores(model, None, &windows, context, compute)?.perplexity);
    }
    Ok(result)
}

/// Stores a reference and says how small it is.
fn store(reference: &Reference, path: &Path, context: &Context) -> Result<()> {
    let bytes = reference.save(path, &watch(context, "the reference"))?;
    let logits = 2 * reference.vocab_size() as u64 * reference.eval().n_scored() as u64;
    let times = logits as f64 / bytes as f64;
    context.progress.note(&format!("{}: {bytes} bytes, {times:.0} times less than 16-bit logits", path.display()));
    Ok(())
}

//! Evaluation of one model, alone or against a reference.

use crate::context::Context;
use crate::estimate::Cost;
use crate::opened::Opened;
use bitsmith_datasets::{DataSpec, Encoder, EvalWindows, Purpose, Style, evaluation_windows};
use bitsmith_eval::{EvalResult, Reference, Stage, perplexity};
use bitsmith_formats::{Error, Result};
use bitsmith_runtime::{Tokenizer, WeightSource};
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

/// Perplexity on each of `ppl`, and divergence from `against` on each of `kld`.
pub fn evaluate(
    model: &Opened,
    ppl: &[DataSpec],
    kld: &[DataSpec],
    against: Option<&Opened>,
    options: &EvalOptions,
    context: &Context,
) -> Result<EvalResult> {
    model.checkpoint.spec().require_head()?;
    let device = &context.device;
    let tokenizer = model.text_tokenizer()?;
    let mut result = EvalResult { model: model.name.clone(), kv: model.checkpoint.cache(), ..EvalResult::default() };
    let data: Vec<&DataSpec> = ppl.iter().chain(kld).collect();
    cost(model, &data, 1 + usize::from(against.is_some()), options, context)?.check_ram("the evaluation", context.max_ram)?;
    let against = match (against, kld) {
        (_, []) => None,
        (Some(against), _) => Some(against),
        (None, _) => return Err(Error::usage("--kld needs a reference model").hint("name it with --against MODEL")),
    };
    for data in kld {
        let reference_model = against.expect("checked above");
        // The reference's own tokenizer cuts the text: the model must agree with it token for token to be comparable.
        let windows = options.windows(data, reference_model, &reference_model.text_tokenizer()?)?;
        let own = options.windows(data, model, &tokenizer)?;
        if own.set.windows != windows.set.windows {
            return Err(Error::failed(format!(
                "the two models tokenize {data} differently, so their predictions cannot be compared"
            ))
            .file(model.checkpoint.path()));
        }
        let reference = Reference::new(
            &reference_model.name,
            &reference_model.checkpoint,
            windows,
            device,
            &watch(context, &reference_model.name),
        )?;
        let comparison = reference.compare(&model.checkpoint, &watch(context, &model.name))?;
        result.kld.push(comparison.kld);
        // It came with the comparison.
        result.perplexity.push(comparison.perplexity);
    }
    for data in ppl.iter().filter(|p| !kld.iter().any(|k| k.to_string() == p.to_string())) {
        let windows = options.windows(data, model, &tokenizer)?;
        result.perplexity.push(perplexity(&model.checkpoint, &windows, device, &watch(context, &model.name))?);
    }
    Ok(result)
}

//! Comparison of models with a reference that is run once.

use crate::landing::Landing;
use crate::metrics::{self, Position};
use crate::perplexity::{not_finite, of_states};
use crate::results::{Kld, Perplexity};
use crate::states::{Stage, States, Watch};
use crate::store::{Header, Sparse, Store, Writer};
use bitsmith_datasets::EvalWindows;
use bitsmith_formats::{Error, Result};
use bitsmith_runtime::{Tokenizer, WeightSource};
use candle_core::Device;
use rayon::prelude::*;
use std::ops::Range;
use std::path::Path;

/// What a reference model says about a set of windows: its hidden states and output matrix, of which its logits are made anew, chunk by
/// chunk, for each comparison; or what a file keeps of its predictions.
#[derive(Debug)]
pub struct Reference {
    name: String,
    eval: EvalWindows,
    kept: Kept,
    device: Device,
    tokenizer: Option<Tokenizer>,
}

#[derive(Debug)]
enum Kept {
    States(States),
    Stored(Store),
}

/// A model's results from one pass against a reference.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// The model's own perplexity.
    pub perplexity: Perplexity,
    /// Its divergence from the reference.
    pub kld: Kld,
}

impl Reference {
    /// Runs the reference model over the windows. `name` is what results call it.
    pub fn new(
        name: impl Into<String>,
        source: &dyn WeightSource,
        eval: EvalWindows,
        device: &Device,
        watch: Watch<'_>,
    ) -> Result<Self> {
        let kept = Kept::States(States::run(source, &eval, device, watch)?);
        Ok(Reference { name: name.into(), eval, kept, device: device.clone(), tokenizer: None })
    }

    /// A reference whose predictions were stored. Its windows must begin with those of `eval`.
    pub fn stored(store: Store, eval: EvalWindows, device: &Device) -> Result<Self> {
        store.check(&eval)?;
        let name = store.header().model.clone();
        Ok(Reference { name, eval, kept: Kept::Stored(store), device: device.clone(), tokenizer: None })
    }

    /// Makes comparisons tell where in the text the divergence lies, which needs the tokenizer that made the windows.
    pub fn with_tokenizer(self, tokenizer: Tokenizer) -> Self {
        Reference { tokenizer: Some(tokenizer), ..self }
    }

    /// What results call the reference.
    pub fn name(&self) -> &str {
        &self.name
    }
    /// The windows.
    pub fn eval(&self) -> &EvalWindows {
        &self.eval
    }
    /// Bytes of main memory held: `4 · hidden_size` per scored token, and the output matrix; next to nothing of a stored one.
    pub fn bytes(&self) -> u64 {
        match &self.kept {
            Kept::States(states) => states.bytes(),
            Kept::Stored(_) => 0,
        }
    }
    /// Size of the vocabulary.
    pub fn vocab_size(&self) -> usize {
        match &self.kept {
            Kept::States(states) => states.vocab_size(),
            Kept::Stored(store) => store.header().vocab_size,
        }
    }

    /// The reference's own perplexity.
    pub fn perplexity(&self, watch: Watch<'_>) -> Result<Perplexity> {
        match &self.kept {
            Kept::States(states) => of_states(states, &self.eval, watch),
            Kept::Stored(store) => {
                let nlls = |w| Ok(store.window(w)?.iter().map(Sparse::nll).collect());
                let by_window = (0..self.eval.set.windows.len()).map(nlls).collect::<Result<Vec<Vec<f64>>>>()?;
                Ok(Perplexity::from_nlls(&self.eval, &by_window))
            }
        }
    }

    /// Keeps the predictions in a file, which [`Reference::stored`] takes; returns its size. A stored reference is not stored again.
    pub fn save(&self, path: &Path, watch: Watch<'_>) -> Result<u64> {
        let Kept::States(states) = &self.kept else {
            return Err(Error::usage("the reference comes from a file already").file(path));
        };
        let set = &self.eval.set;
        let header = Header {
            model: self.name.clone(),
            data: set.data.clone(),
            sha256: set.sha256.clone(),
            ctx: set.ctx,
            style: self.eval.style,
            vocab_size: states.vocab_size(),
            windows: set.windows.len(),
        };
        let mut writer = Writer::create(path, &header)?;
        for (w, tokens) in set.windows.iter().enumerate() {
            watch(Stage::Windows, w, set.windows.len())?;
            let targets = &tokens[self.eval.scored()];
            let mut sparse: Vec<Sparse> = Vec::with_capacity(targets.len());
            states.for_each_chunk(w, |first, logits| {
                let rows = logits.par_chunks_exact(header.vocab_size).zip(&targets[first..]);
                sparse.extend(rows.map(|(row, target)| Sparse::of(row, *target)).collect::<Vec<_>>());
                Ok(())
            })?;
            if !sparse.iter().all(|s| s.nll().is_finite()) {
                return Err(not_finite(w));
            }
            writer.push(tokens, &sparse)?;
        }
        watch(Stage::Windows, set.windows.len(), set.windows.len())?;
        writer.finish()
    }

    /// Runs another model over the same windows and compares the distributions at every scored position.
    pub fn compare(&self, candidate: &dyn WeightSource, watch: Watch<'_>) -> Result<Comparison> {
        let by_window = self.measure(candidate, 0..self.eval.set.windows.len(), watch)?;
        self.judge(&by_window)
    }

    /// Runs another model over some of the windows; what is found at every scored position of each.
    pub fn measure(&self, candidate: &dyn WeightSource, windows: Range<usize>, watch: Watch<'_>) -> Result<Vec<Vec<Position>>> {
        let (ours, theirs) = (self.vocab_size(), candidate.spec().vocab_size);
        if ours != theirs {
            return Err(Error::usage(format!("the model has {theirs} tokens in its vocabulary, `{}` has {ours}", self.name))
                .hint("a model can only be compared with one that has the same tokenizer"));
        }
        if windows.is_empty() {
            return Ok(Vec::new());
        }
        let states = States::run(candidate, &self.eval.part(windows.clone()), &self.device, watch)?;
        let total = states.n_windows();
        let mut by_window = Vec::with_capacity(total);
        for (w, window) in windows.enumerate() {
            watch(Stage::Windows, w, total)?;
            by_window.push(self.positions(&states, w, window)?);
        }
        watch(Stage::Windows, total, total)?;
        Ok(by_window)
    }

    /// What was found in all windows, in their order, as a result.
    pub fn judge(&self, by_window: &[Vec<Position>]) -> Result<Comparison> {
        if by_window.len() != self.eval.set.windows.len() {
            return Err(Error::failed(format!("{} of {} windows were measured", by_window.len(), self.eval.set.windows.len())));
        }
        let nlls: Vec<Vec<f64>> = by_window.iter().map(|w| w.iter().map(|p| p.nll).collect()).collect();
        let mut kld = Kld::from_positions(&self.eval, &self.name, by_window);
        kld.landing = self.tokenizer.as_ref().map(|t| Landing::of(&self.eval, by_window, t));
        Ok(Comparison { perplexity: Perplexity::from_nlls(&self.eval, &nlls), kld })
    }

    /// What is found in window `at` of the candidate's states, which is `window` of the text's.
    fn positions(&self, candidate: &States, at: usize, window: usize) -> Result<Vec<Position>> {
        let vocab = candidate.vocab_size();
        let targets = &self.eval.set.windows[window][self.eval.scored()];
        let mut positions = Vec::with_capacity(targets.len());
        match &self.kept {
            Kept::States(states) => states.for_each_pair(candidate, window, at, |first, reference, candidate| {
                let rows = reference.par_chunks_exact(vocab).zip(candidate.par_chunks_exact(vocab)).zip(&targets[first..]);
                positions.extend(rows.map(|((r, c), target)| metrics::compare(r, c, *target)).collect::<Vec<_>>());
                Ok(())
            })?,
            Kept::Stored(store) => {
                let stored = store.window(window)?;
                candidate.for_each_chunk(at, |first, candidate| {
                    let rows = stored[first..].par_iter().zip(candidate.par_chunks_exact(vocab)).zip(&targets[first..]);
                    positions.extend(rows.map(|((r, c), target)| r.compare(c, *target)).collect::<Vec<_>>());
                    Ok(())
                })?;
            }
        }
        match positions.iter().all(|p| p.kld.is_finite() && p.nll.is_finite() && p.nll_against.is_finite()) {
            true => Ok(positions),
            false => Err(not_finite(window)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ignore_progress, perplexity};
    use bitsmith_datasets::{Corpus, Domain, Encoder, Style, evaluation_windows};
    use bitsmith_runtime::{Head, MemoryWeights, ModelSpec, Part, Role, sweep};
    use std::cell::Cell;

    fn model(vocab: usize, seed: u64) -> MemoryWeights {
        let config = serde_json::json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "intermediate_size": 64,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": vocab,
            "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "tie_word_embeddings": false
        });
        MemoryWeights::random(ModelSpec::from_config(&config).unwrap(), seed)
    }

    fn windows(style: Style) -> EvalWindows {
        let domain = |name: &str, step: usize| Domain {
            name: name.into(),
            weight: None,
            text: (0..200).map(|i| char::from((i * step % 90 + 32) as u8)).collect(),
            documents: 1,
            sha256: String::new(),
        };
        let corpus = Corpus { data: "x".into(), domains: vec![domain("a", 7), domain("b", 11)], sha256: "s".into() };
        let encode = |t: &str| Ok(t.bytes().map(|b| u32::from(b - 32)).collect());
        evaluation_windows(&corpus, &Encoder { encode: &encode, bos: Some(95) }, style, Some(24), None).unwrap()
    }

    /// Weights with every tensor of one part scaled.
    fn changed(base: &MemoryWeights, part: Part, by: f32) -> MemoryWeights {
        let mut out = base.clone();
        for role in base.spec().roles().into_iter().filter(|r| r.part == part) {
            let mut data = base.read(role).unwrap().data;
            data.iter_mut().step_by(3).for_each(|v| *v *= by);
            out.set(role, data).unwrap();
        }
        out
    }

    #[test]
    fn a_model_does_not_diverge_from_itself() {
        let m = model(97, 1);
        for style in [Style::LlamaCpp, Style::Paper] {
            let eval = windows(style);
            let reference = Reference::new("ref", &m, eval.clone(), &Device::Cpu, &ignore_progress).unwrap();
            let same = reference.compare(&m, &ignore_progress).unwrap();
            assert_eq!(same.kld.summary.max, 0.0);
            assert_eq!(same.kld.summary.same_top_p, 1.0);
            assert_eq!(same.kld.summary.ppl_ratio, 1.0);
            assert_eq!(same.kld.summary.tokens, eval.n_scored());
            assert_eq!(same.kld.domains.len(), 2);
            let own = reference.perplexity(&ignore_progress).unwrap();
            assert!((own.ppl - same.perplexity.ppl).abs() < 1e-9 * own.ppl);
            assert_eq!(own, perplexity(&m, &eval, &Device::Cpu, &ignore_progress).unwrap());
            assert_eq!(reference.bytes(), 4 * 32 * (eval.n_scored() + 97) as u64);
        }
    }

    #[test]
    fn agrees_with_logits_computed_whole() {
        let (m, c) = (model(97, 1), changed(&model(97, 1), Part::FfnDown, 1.05));
        let eval = windows(Style::LlamaCpp);
        let got = Reference::new("ref", &m, eval.clone(), &Device::Cpu, &ignore_progress).unwrap();
        let got = got.compare(&c, &ignore_progress).unwrap();
        let logits = |m: &MemoryWeights| {
            let normed = sweep::run(m, &eval.set.windows, &Device::Cpu, None).unwrap();
            let head = Head::load(m, &Device::Cpu).unwrap();
            (0..normed.n_windows()).map(|w| normed.logits(&head, w).unwrap()).collect::<Vec<_>>()
        };
        let (lm, lc) = (logits(&m), logits(&c));
        let (mut kld, mut nll, mut n) = (0.0, 0.0, 0.0);
        for (w, window) in eval.set.windows.iter().enumerate() {
            for t in 13..24 {
                let row = |l: &[Vec<f32>]| {
                    let row = &l[w][(t - 1) * 97..t * 97];
                    let z = row.iter().map(|v| f64::from(*v).exp()).sum::<f64>().ln();
                    row.iter().map(|v| f64::from(*v) - z).collect::<Vec<f64>>()
                };
                let (p, q) = (row(&lm), row(&lc));
                kld += p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
                nll -= q[window[t] as usize];
                n += 1.0;
            }
        }
        let s = &got.kld.summary;
        assert_eq!(s.tokens as f64, n);
        assert!(s.mean > 1e-6 && (s.mean - kld / n).abs() < 1e-4 * s.mean, "{} {}", s.mean, kld / n);
        assert!((got.perplexity.nll - nll / n).abs() < 1e-5);
        assert!((s.ppl_ratio - s.ppl / s.ppl_against).abs() < 1e-9);
    }

    #[test]
    fn a_stored_reference_says_nearly_the_same() {
        let (m, c) = (model(97, 1), changed(&model(97, 1), Part::FfnDown, 1.05));
        let eval = windows(Style::LlamaCpp);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ref.bsref");
        let reference = Reference::new("ref", &m, eval.clone(), &Device::Cpu, &ignore_progress).unwrap();
        reference.save(&path, &ignore_progress).unwrap();
        // Fewer windows than were stored will do.
        let mut fewer = eval.clone();
        fewer.set.windows.truncate(5);
        fewer.set.domain_of.truncate(5);
        for eval in [eval, fewer] {
            let exact = Reference::new("ref", &m, eval.clone(), &Device::Cpu, &ignore_progress).unwrap();
            let stored = Reference::stored(Store::open(&path).unwrap(), eval, &Device::Cpu).unwrap();
            let (want, got) = (exact.compare(&c, &ignore_progress).unwrap(), stored.compare(&c, &ignore_progress).unwrap());
            assert_eq!(want.perplexity, got.perplexity);
            assert!((got.kld.summary.ppl_ratio - want.kld.summary.ppl_ratio).abs() < 1e-5);
            // With 97 tokens one is stored of each prediction, and one as a sample of the tail.
            let ratio = got.kld.summary.mean / want.kld.summary.mean;
            assert!((0.5..1.5).contains(&ratio), "{ratio}");
            let ppl = stored.perplexity(&ignore_progress).unwrap().ppl;
            assert!((ppl / exact.perplexity(&ignore_progress).unwrap().ppl - 1.0).abs() < 1e-6);
            assert_eq!(got.kld.against, "ref");
        }
    }

    #[test]
    fn same_numbers_for_any_thread_count() {
        let (m, c) = (model(97, 1), changed(&model(97, 1), Part::AttnV, 1.1));
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let r = Reference::new("ref", &m, windows(Style::Paper), &Device::Cpu, &ignore_progress).unwrap();
                r.compare(&c, &ignore_progress).unwrap()
            })
        };
        assert_eq!(run(1), run(3));
    }

    #[test]
    fn an_even_head_gives_the_vocabulary_size() {
        let mut m = model(97, 1);
        m.set(Role::global(Part::Output), vec![0.0; 97 * 32]).unwrap();
        let p = perplexity(&m, &windows(Style::Paper), &Device::Cpu, &ignore_progress).unwrap();
        assert!((p.ppl - 97.0).abs() < 1e-9 && p.stderr < 1e-9);
    }

    #[test]
    fn refusals() {
        let eval = windows(Style::Paper);
        let m = model(97, 1);
        let reference = Reference::new("ref", &m, eval.clone(), &Device::Cpu, &ignore_progress).unwrap();
        let e = reference.compare(&model(98, 1), &ignore_progress).unwrap_err();
        assert!(e.message.contains("98 tokens"));
        let mut bad = m.clone();
        bad.set(Role::global(Part::Output), vec![f32::NAN; 97 * 32]).unwrap();
        assert!(reference.compare(&bad, &ignore_progress).unwrap_err().message.contains("not finite"));
        let calls = Cell::new(0);
        let stop = |_, _, _| {
            calls.set(calls.get() + 1);
            if calls.get() == 3 { Err(Error::failed("stop")) } else { Ok(()) }
        };
        assert_eq!(reference.compare(&m, &stop).unwrap_err().message, "stop");
    }
}

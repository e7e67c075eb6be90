//! Comparison of models with a reference that is run once.

use crate::metrics::{self, Position};
use crate::perplexity::{not_finite, of_states};
use crate::results::{Kld, Perplexity};
use crate::states::{Stage, States, Watch};
use bitsmith_datasets::EvalWindows;
use bitsmith_formats::{Error, Result};
use bitsmith_runtime::WeightSource;
use candle_core::Device;
use rayon::prelude::*;

/// A reference model's hidden states on a set of windows, and its output matrix. Takes [`Reference::bytes`] of memory; the
/// reference's logits are made anew, chunk by chunk, for each comparison.
#[derive(Debug)]
pub struct Reference {
    name: String,
    eval: EvalWindows,
    states: States,
    device: Device,
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
        let states = States::run(source, &eval, device, watch)?;
        Ok(Reference { name: name.into(), eval, states, device: device.clone() })
    }

    /// What results call the reference.
    pub fn name(&self) -> &str {
        &self.name
    }
    /// The windows.
    pub fn eval(&self) -> &EvalWindows {
        &self.eval
    }
    /// Bytes of main memory held: `4 · hidden_size` per scored token, and the output matrix.
    pub fn bytes(&self) -> u64 {
        self.states.bytes()
    }

    /// The reference's own perplexity.
    pub fn perplexity(&self, watch: Watch<'_>) -> Result<Perplexity> {
        of_states(&self.states, &self.eval, watch)
    }

    /// Runs another model over the same windows and compares the distributions at every scored position.
    pub fn compare(&self, candidate: &dyn WeightSource, watch: Watch<'_>) -> Result<Comparison> {
        let (ours, theirs) = (self.states.vocab_size(), candidate.spec().vocab_size);
        if ours != theirs {
            return Err(Error::usage(format!("the model has {theirs} tokens in its vocabulary, `{}` has {ours}", self.name))
                .hint("a model can only be compared with one that has the same tokenizer"));
        }
        let states = States::run(candidate, &self.eval, &self.device, watch)?;
        let total = states.n_windows();
        let mut by_window = Vec::with_capacity(total);
        for w in 0..total {
            watch(Stage::Windows, w, total)?;
            by_window.push(self.positions(&states, w)?);
        }
        watch(Stage::Windows, total, total)?;
        let nlls: Vec<Vec<f64>> = by_window.iter().map(|w| w.iter().map(|p| p.nll).collect()).collect();
        Ok(Comparison {
            perplexity: Perplexity::from_nlls(&self.eval, &nlls),
            kld: Kld::from_positions(&self.eval, &self.name, &by_window),
        })
    }

    fn positions(&self, candidate: &States, window: usize) -> Result<Vec<Position>> {
        let vocab = self.states.vocab_size();
        let targets = &self.eval.set.windows[window][self.eval.scored()];
        let mut positions = Vec::with_capacity(targets.len());
        self.states.for_each_pair(candidate, window, |first, reference, candidate| {
            let rows = reference.par_chunks_exact(vocab).zip(candidate.par_chunks_exact(vocab)).zip(&targets[first..]);
            let chunk: Vec<Position> = rows.map(|((r, c), target)| metrics::compare(r, c, *target)).collect();
            positions.extend(chunk);
            Ok(())
        })?;
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

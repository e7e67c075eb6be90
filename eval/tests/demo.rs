//! The built-in demo model on the built-in text.

use bitsmith_datasets::{DataSpec, Encoder, EvalWindows, Purpose, Style, demo, evaluation_windows};
use bitsmith_eval::{Reference, ignore_progress};
use bitsmith_formats::{CodecId, EncodedTensor};
use bitsmith_runtime::{Checkpoint, MemoryWeights, Tokenizer, WeightSource};
use candle_core::Device;
use std::path::Path;

fn windows(folder: &Path, limit: usize) -> EvalWindows {
    let tokenizer = Tokenizer::from_hf_folder(folder).unwrap();
    let encode = |t: &str| tokenizer.encode(t, false);
    let corpus = "builtin".parse::<DataSpec>().unwrap().load(Purpose::Evaluation).unwrap();
    let encoder = Encoder { encode: &encode, bos: tokenizer.bos().filter(|_| tokenizer.adds_bos()) };
    evaluation_windows(&corpus, &encoder, Style::LlamaCpp, None, Some(limit)).unwrap()
}

/// Perplexity of the scored tokens under their own frequencies.
fn unigram_perplexity(eval: &EvalWindows) -> f64 {
    let tokens = || eval.set.windows.iter().flat_map(|w| &w[eval.scored()]);
    let mut counts = std::collections::BTreeMap::new();
    for t in tokens() {
        *counts.entry(t).or_insert(0.0) += 1.0;
    }
    let n = tokens().count() as f64;
    (counts.values().map(|c: &f64| c * (n / c).ln()).sum::<f64>() / n).exp()
}

#[test]
fn four_bits_hurt_the_demo_model_measurably() {
    let root = tempfile::tempdir().unwrap();
    let folder = demo::materialise(root.path().join(demo::NAME)).unwrap();
    let model = Checkpoint::open(&folder).unwrap();
    let eval = windows(&folder, 10);
    assert_eq!(eval.set.windows_per_domain(), [2; 5]);
    let reference = Reference::new(demo::NAME, &model, eval.clone(), &Device::Cpu, &ignore_progress).unwrap();
    let own = reference.perplexity(&ignore_progress).unwrap();
    assert!(own.ppl < 0.3 * unigram_perplexity(&eval), "{} {}", own.ppl, unigram_perplexity(&eval));

    let mut quantized = MemoryWeights::copy(&model).unwrap();
    for role in model.spec().roles().into_iter().filter(|r| r.part.is_linear()) {
        let host = model.read(role).unwrap();
        let encoded = EncodedTensor::encode(CodecId::Q4_0, &host.shape, &host.data, None).unwrap();
        quantized.set(role, encoded.decode()).unwrap();
    }
    let got = reference.compare(&quantized, &ignore_progress).unwrap();
    let s = &got.kld.summary;
    assert!(s.mean > 1e-3 && s.mean > 5.0 * s.mean_stderr, "{s:?}");
    assert!(s.ppl_ratio > 1.0 && s.ppl_ratio < 2.0, "{s:?}");
    assert!(s.same_top_p > 0.5 && s.same_top_p < 1.0, "{s:?}");
    assert!(s.median <= s.p90 && s.p90 <= s.p99 && s.p99 <= s.p999 && s.p999 <= s.max);
    assert_eq!(got.kld.domains.len(), 5);
    assert_eq!(got.kld.windows.len(), 10);
    // The paired error of the ratio is far smaller than the perplexities' own.
    assert!(s.ppl_ratio_stderr < 0.3 * got.perplexity.stderr / got.perplexity.ppl);
}

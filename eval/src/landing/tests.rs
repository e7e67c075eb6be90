use super::*;
use crate::results::tests::eval_windows;
use crate::{Reference, ignore_progress};
use bitsmith_datasets::{Corpus, Domain, Encoder, Style, evaluation_windows};
use bitsmith_runtime::{Device, MemoryWeights, ModelSpec, Part, Role, WeightSource};
use serde_json::json;

/// A tokenizer with one token per printable ASCII character, id by code point.
fn characters() -> Tokenizer {
    let vocab: serde_json::Map<String, serde_json::Value> =
        (0..128u32).map(|c| (char::from_u32(c).unwrap().to_string(), json!(c))).collect();
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null, "pre_tokenizer": null,
        "post_processor": null, "decoder": { "type": "Fuse" },
        "model": { "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
                   "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": [] }
    });
    let bytes = serde_json::to_vec(&file).unwrap();
    Tokenizer::from_hf_files("test", |name| Ok((name == "tokenizer.json").then(|| bytes.clone()))).unwrap()
}

fn windows(domains: &[(&str, String)]) -> EvalWindows {
    let domain = |(name, text): &(&str, String)| Domain {
        name: name.to_string(),
        weight: None,
        text: text.clone(),
        documents: 1,
        sha256: String::new(),
    };
    let corpus = Corpus { data: "x".into(), domains: domains.iter().map(domain).collect(), sha256: "s".into() };
    let tokenizer = characters();
    let encode = |text: &str| tokenizer.encode(text, false);
    evaluation_windows(&corpus, &Encoder { encode: &encode, bos: None }, Style::Paper, Some(32), None).unwrap()
}

fn group<'a>(groups: &'a [Group], name: &str) -> &'a Group {
    groups.iter().find(|g| g.name == name).unwrap_or_else(|| panic!("no {name}"))
}

#[test]
fn sums_by_hand() {
    // One window "ab 12" of which "b 12" is scored.
    let mut eval = eval_windows(&["prose"], &[0]);
    eval.set.ctx = 5;
    eval.set.windows = vec!["ab 12".bytes().map(u32::from).collect()];
    eval.style = Style::Paper;
    let at = |kld, confidence| Position { kld, confidence, nll: 0.5, nll_against: 0.4, same_top: true, ..Position::default() };
    let scores = vec![at(0.1, 0.05), at(0.2, 0.3), at(0.3, 0.3), at(0.4, 1.0)];
    let landing = Landing::of(&eval, &[scores], &characters());
    let digits = group(&landing.classes, "digits");
    assert_eq!((digits.tokens, digits.stderr, digits.same_top_p), (2, 0.0, 1.0));
    assert!((digits.kld - 0.35).abs() < 1e-12 && (digits.share - 0.7).abs() < 1e-12, "{digits:?}");
    assert!((digits.ppl_ratio - 0.1f64.exp()).abs() < 1e-12);
    // Digits were read last before the second digit only; the first came after a space.
    assert!((group(&landing.after, "digits").kld - 0.4).abs() < 1e-12);
    assert!((group(&landing.after, "white space").kld - 0.3).abs() < 1e-12);
    assert_eq!(group(&landing.classes, "rest of a word").tokens, 1);
    let names: Vec<&str> = landing.confidence.iter().map(|g| g.name.as_str()).collect();
    assert_eq!(names, ["0–10 %", "25–50 %", "99–100 %"]);
    assert_eq!(landing.positions.iter().map(|g| g.tokens).sum::<usize>(), 4);
    assert!((landing.positions.iter().map(|g| g.share).sum::<f64>() - 1.0).abs() < 1e-12);
    assert!(landing.domains.is_empty());
    // All scored tokens are one passage, with the one before them.
    let passage = &landing.passages[0];
    assert_eq!((landing.passages.len(), passage.position, passage.kld), (1, 1, 0.25));
    assert_eq!(passage.tokens.iter().map(|t| t.text.as_str()).collect::<String>(), "ab 12");
    assert_eq!(passage.tokens.iter().map(|t| t.kld).collect::<Vec<_>>(), [None, Some(0.1), Some(0.2), Some(0.3), Some(0.4)]);
    let json = serde_json::to_value(&landing).unwrap();
    assert_eq!(serde_json::from_value::<Landing>(json).unwrap(), landing);
}

/// Noise goes into the embedding of one domain's rare characters. That domain, rare tokens and passages of that domain must come
/// first, whatever the seed.
#[test]
fn noise_in_rare_tokens_of_a_domain_is_found_there() {
    let common = |letters: &str, n: usize| letters.chars().cycle().take(n).collect::<String>();
    // One rare letter, different ones, every 17 characters.
    let with_rare = |body: &str, rare: &str| -> String {
        let rare = &mut rare.chars().cycle();
        body.chars().enumerate().map(|(i, c)| if i % 17 == 9 { rare.next().unwrap() } else { c }).collect()
    };
    let prose = with_rare(&common("the sea was calm and ", 320), "bpuv");
    let code = with_rare(&common("for i in range(n): ", 320), "jkqxyz");
    let eval = windows(&[("prose", prose), ("code", code)]);
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 128,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "tie_word_embeddings": false
    });
    for seed in 1..4 {
        let spec = || ModelSpec::from_config(&config).unwrap();
        let reference = Reference::new("ref", &MemoryWeights::random(spec(), seed), eval.clone(), &Device::Cpu, &ignore_progress)
            .unwrap()
            .with_tokenizer(characters());
        let mut noisy = MemoryWeights::random(spec(), seed);
        let embedding = Role::global(Part::TokenEmbd);
        let mut rows = noisy.read(embedding).unwrap().data;
        for (i, v) in rows.iter_mut().enumerate().filter(|(i, _)| b"jkqxyz".contains(&((i / 32) as u8))) {
            *v += if i % 3 == 0 { 0.5 } else { -0.35 };
        }
        noisy.set(embedding, rows).unwrap();
        let landing = reference.compare(&noisy, &ignore_progress).unwrap().kld.landing.unwrap();
        let first = |groups: &[Group]| groups.iter().max_by(|a, b| a.kld.total_cmp(&b.kld)).unwrap().name.clone();
        let worst = landing.domains.iter().max_by(|a, b| a.share.total_cmp(&b.share)).unwrap();
        assert_eq!(worst.domain, "code", "seed {seed}");
        assert_eq!(first(&worst.after), "rare token", "seed {seed}");
        assert!(landing.passages.iter().take(5).all(|p| p.domain == "code"), "seed {seed}");
    }
}

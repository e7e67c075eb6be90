//! How likely a model finds given continuations, layer by layer and with common beginnings computed once.
//!
//! The answers of a question share its text, and questions often share a header of examples. All texts together are a tree of
//! runs of tokens; a layer is loaded once and pushes the whole tree through, run by run, where a run's attention continues the keys
//! and values of the run before it.

mod tree;

use crate::block::{Ropes, Rows, Run};
use crate::cache::{KvHeads, LayerCache};
use crate::checkpoint::WeightSource;
use crate::embedding::{Embedding, OutputNorm, check_tokens};
use crate::generate::Segment;
use crate::head::Head;
use crate::kernels;
use crate::layer::Layer;
use crate::ops::{self, OrFail};
use crate::spec::ModelSpec;
use crate::sweep::BATCH_TOKENS;
use bitsmith_formats::{Error, Result};
use candle_core::{Device, Tensor};
use rayon::prelude::*;
use std::ops::Range;
use tree::Tree;

/// Bytes of keys and values that the runs of a batch may copy, about.
const BATCH_CACHE_BYTES: u64 = 128 << 20;

/// A text of which the end is scored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Continuation {
    /// Token ids of context and continuation.
    pub tokens: Vec<u32>,
    /// Where the continuation begins: at least 1, at most the last token.
    pub from: usize,
}

/// What a model makes of a continuation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Likelihood {
    /// Sum of the tokens' log-probabilities, nats.
    pub log: f64,
    /// Whether each token is the most likely one at its place.
    pub greedy: bool,
}

/// Scores of texts, and what they took.
#[derive(Debug)]
pub struct Scored {
    /// In the order of the texts.
    pub likelihoods: Vec<Likelihood>,
    /// Tokens that were pushed through the model; the texts may have many more.
    pub tokens_run: usize,
}

/// Runs of tokens that go through a layer together.
struct Batch {
    nodes: Range<usize>,
    tokens: usize,
}

/// Scores all texts in one pass over the model's weights. `watch` is told the layers done and their number; an error from it ends the
/// work.
pub fn score(
    source: &dyn WeightSource,
    texts: &[Continuation],
    device: &Device,
    watch: &dyn Fn(usize, usize) -> Result<()>,
) -> Result<Scored> {
    let spec = source.spec();
    spec.require_head()?;
    for (i, text) in texts.iter().enumerate() {
        if text.from == 0 || text.from >= text.tokens.len() {
            return Err(Error::failed(format!("text {i} has no continuation")));
        }
        check_tokens(spec, &text.tokens, || format!(" in text {i}"))?;
    }
    // The last token is only predicted.
    let inputs: Vec<&[u32]> = texts.iter().map(|t| &t.tokens[..t.tokens.len() - 1]).collect();
    let tree = Tree::new(&inputs);
    let batches = batches(&tree, spec);
    let mut hidden = embed(&Embedding::load(source, device)?, &tree, &batches)?;
    let ropes = Ropes::new(spec, inputs.iter().map(|t| t.len()).max().unwrap_or(0));
    watch(0, spec.n_layers)?;
    for index in 0..spec.n_layers {
        let layer = Layer::load(source, index, device)?;
        let run = Run { spec, ropes: &ropes, layer_index: index, observer: None };
        run_layer(&run, &layer, &tree, &batches, &mut hidden)?;
        watch(index + 1, spec.n_layers)?;
    }
    let wanted = Wanted::new(texts, &tree);
    let states = wanted.states(&tree, &batches, &hidden, &OutputNorm::load(source, device)?)?;
    drop(hidden);
    let likelihoods = match states {
        Some(states) => wanted.score(&Head::load(source, device)?, &states, texts.len())?,
        None => Vec::new(),
    };
    Ok(Scored { likelihoods, tokens_run: tree.n_tokens() })
}

fn batches(tree: &Tree, spec: &ModelSpec) -> Vec<Batch> {
    let heads = KvHeads::of(spec);
    let page = (crate::cache::PAGE * heads.n * (heads.k_dim + heads.v_dim) * 4) as u64;
    let most = (BATCH_CACHE_BYTES / page.max(1)).max(1) as usize;
    let mut batches: Vec<Batch> = Vec::new();
    for (i, node) in tree.nodes.iter().enumerate() {
        let n = node.tokens.len();
        match batches.last_mut() {
            Some(b) if b.tokens + n <= BATCH_TOKENS && b.nodes.len() < most => {
                b.nodes.end = i + 1;
                b.tokens += n;
            }
            _ => batches.push(Batch { nodes: i..i + 1, tokens: n }),
        }
    }
    batches
}

fn embed(embedding: &Embedding, tree: &Tree, batches: &[Batch]) -> Result<Vec<Tensor>> {
    let of = |batch: &Batch| {
        let nodes = &tree.nodes[batch.nodes.clone()];
        let tokens: Vec<u32> = nodes.iter().flat_map(|n| n.tokens.iter().copied()).collect();
        let positions: Vec<usize> = nodes.iter().flat_map(|n| n.start..n.start + n.tokens.len()).collect();
        embedding.rows(&tokens, |i| positions[i])
    };
    batches.iter().map(of).collect()
}

/// Pushes all batches through one layer.
fn run_layer(run: &Run<'_>, layer: &Layer, tree: &Tree, batches: &[Batch], hidden: &mut [Tensor]) -> Result<()> {
    let new = || LayerCache::new(layer.cache(), KvHeads::of(run.spec));
    // How many children of each node are still to come, and the keys and values of those that have any.
    let mut children = vec![0usize; tree.nodes.len()];
    tree.nodes.iter().filter_map(|n| n.parent).for_each(|p| children[p] += 1);
    let mut kept: Vec<Option<LayerCache>> = tree.nodes.iter().map(|_| None).collect();
    for (batch, x) in batches.iter().zip(hidden) {
        let first = batch.nodes.start;
        let nodes = &tree.nodes[batch.nodes.clone()];
        let mut caches = Vec::with_capacity(nodes.len());
        for node in nodes {
            caches.push(match node.parent {
                Some(parent) if parent < first => {
                    let held = kept[parent].as_ref().ok_or_else(|| Error::failed("a common beginning was let go too early"))?;
                    held.fork(node.start)?
                }
                _ => new()?,
            });
        }
        let segment = |(node, cache)| {
            let tree::Node { parent, start, tokens }: &tree::Node = node;
            let parent = parent.and_then(|p| p.checked_sub(first));
            Segment { len: tokens.len(), start: *start, parent, cache }
        };
        let mut segments: Vec<_> = nodes.iter().zip(&mut caches).map(segment).collect();
        let rows = Rows { windows: 1, len: batch.tokens, start: 0 };
        *x = run.forward(layer, x, rows, Some(&mut segments))?;
        if !ops::all_finite(x)? {
            return Err(Error::corrupt(format!("hidden states of layer {} are not finite", run.layer_index))
                .tensor(format!("blk.{}", run.layer_index))
                .hint("a weight of this layer or an earlier one is damaged, or the activations overflow"));
        }
        for parent in nodes.iter().filter_map(|n| n.parent) {
            children[parent] -= 1;
            if children[parent] == 0 {
                kept[parent] = None;
            }
        }
        for (i, cache) in batch.nodes.clone().zip(caches) {
            kept[i] = (children[i] > 0).then_some(cache);
        }
    }
    Ok(())
}

/// The places whose predictions are asked for: node and row, with what is predicted.
struct Wanted {
    /// Each place once, in the order of the nodes.
    places: Vec<(usize, usize)>,
    /// Index of the place, text, token: by place.
    targets: Vec<(usize, usize, u32)>,
}

impl Wanted {
    fn new(texts: &[Continuation], tree: &Tree) -> Self {
        let mut all = Vec::new();
        for (i, text) in texts.iter().enumerate() {
            let scored = text.from..text.tokens.len();
            let rows = tree.rows(i, scored.start - 1..scored.end - 1);
            all.extend(scored.rev().zip(rows).map(|(token, place)| (place, i, text.tokens[token])));
        }
        all.sort_unstable();
        let mut places: Vec<(usize, usize)> = all.iter().map(|(place, ..)| *place).collect();
        places.dedup();
        let mut index = 0;
        let mut targets = Vec::with_capacity(all.len());
        for (place, text, token) in all {
            while places[index] != place {
                index += 1;
            }
            targets.push((index, text, token));
        }
        Wanted { places, targets }
    }

    /// The output-normed states of all places, `(places, hidden)`.
    fn states(&self, tree: &Tree, batches: &[Batch], hidden: &[Tensor], norm: &OutputNorm) -> Result<Option<Tensor>> {
        let mut parts = Vec::new();
        let mut places = self.places.iter().peekable();
        for (batch, x) in batches.iter().zip(hidden) {
            let (mut rows, mut first) = (Vec::new(), 0);
            for node in batch.nodes.clone() {
                while let Some((_, row)) = places.next_if(|(n, _)| *n == node) {
                    rows.push((first + row) as u32);
                }
                first += tree.nodes[node].tokens.len();
            }
            if !rows.is_empty() {
                let index = Tensor::from_slice(&rows, rows.len(), x.device()).or_fail()?;
                parts.push(norm.apply(&x.index_select(&index, 0).or_fail()?)?);
            }
        }
        if parts.is_empty() { Ok(None) } else { Tensor::cat(&parts, 0).or_fail().map(Some) }
    }

    fn score(&self, head: &Head, states: &Tensor, n_texts: usize) -> Result<Vec<Likelihood>> {
        let vocab = head.vocab_size();
        let mut out = vec![Likelihood { log: 0.0, greedy: true }; n_texts];
        let mut targets = self.targets.iter().peekable();
        head.for_each_chunk(states, |first, logits| {
            let said: Vec<(f64, usize)> = logits.par_chunks_exact(vocab).map(|r| (kernels::log_sum_exp(r), largest(r))).collect();
            for (i, (total, best)) in said.into_iter().enumerate() {
                while let Some((_, text, token)) = targets.next_if(|(place, ..)| *place == first + i) {
                    let likelihood = &mut out[*text];
                    likelihood.log += f64::from(logits[i * vocab + *token as usize]) - total;
                    likelihood.greedy &= best == *token as usize;
                }
            }
            Ok(())
        })?;
        match out.iter().position(|l| !l.log.is_finite()) {
            None => Ok(out),
            Some(text) => Err(Error::corrupt(format!("the logits of text {text} are not finite"))
                .hint("the output matrix or the output norm is damaged")),
        }
    }
}

/// Where a row first has its largest value.
fn largest(row: &[f32]) -> usize {
    (1..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CacheType;
    use crate::head::log_softmax;
    use crate::testing::{Rounded, model, tokens};
    use serde_json::json;

    fn quiet(_: usize, _: usize) -> Result<()> {
        Ok(())
    }

    /// Each text run alone, as a window of a sweep.
    fn alone(source: &dyn WeightSource, texts: &[Continuation]) -> Vec<Likelihood> {
        let head = Head::load(source, &Device::Cpu).unwrap();
        let one = |text: &Continuation| {
            let window = text.tokens[..text.tokens.len() - 1].to_vec();
            let normed = crate::sweep::run(source, &[window], &Device::Cpu, None).unwrap();
            let mut logits = normed.logits(&head, 0).unwrap();
            let mut out = Likelihood { log: 0.0, greedy: true };
            for at in text.from..text.tokens.len() {
                let row = &mut logits[(at - 1) * 61..at * 61];
                log_softmax(row);
                out.log += f64::from(row[text.tokens[at] as usize]);
                out.greedy &= largest(row) == text.tokens[at] as usize;
            }
            out
        };
        texts.iter().map(one).collect()
    }

    /// Questions with a common header, several answers each; some answers have one token, one is another's beginning.
    fn questions() -> Vec<Continuation> {
        let header = tokens(300, 0);
        let mut texts = Vec::new();
        for q in 0..12 {
            let context = [header.clone(), tokens(20 + 7 * q, q + 1)].concat();
            for answer in [tokens(1, q), tokens(1, q + 1), tokens(9, q + 2), tokens(12, q + 2), tokens(5, q + 3)] {
                texts.push(Continuation { from: context.len(), tokens: [context.clone(), answer].concat() });
            }
        }
        texts.push(Continuation { from: 1, tokens: tokens(40, 5) });
        texts
    }

    #[test]
    fn shared_beginnings_change_nothing() {
        for (model_type, changes) in
            [("llama", json!({"head_dim": 32})), ("mistral", json!({"sliding_window": 40})), ("qwen3", json!({"head_dim": 12}))]
        {
            let source = model(model_type, changes);
            let texts = questions();
            let got = score(&source, &texts, &Device::Cpu, &quiet).unwrap();
            let plain: usize = texts.iter().map(|t| t.tokens.len()).sum();
            assert!(got.tokens_run < plain / 10, "{} of {plain}", got.tokens_run);
            for (g, w) in got.likelihoods.iter().zip(alone(&source, &texts)) {
                assert!((g.log - w.log).abs() < 2e-4 && g.greedy == w.greedy, "{model_type}: {g:?} {w:?}");
            }
        }
    }

    #[test]
    fn rounded_caches_agree() {
        let source = Rounded(model("llama", json!({"head_dim": 32})), CacheType::Q8_0);
        let texts: Vec<Continuation> = questions().into_iter().take(10).collect();
        let got = score(&source, &texts, &Device::Cpu, &quiet).unwrap().likelihoods;
        for (g, w) in got.iter().zip(alone(&source, &texts)) {
            assert!((g.log - w.log).abs() < 5e-3, "{g:?} {w:?}");
        }
        let exact = score(&source.0, &texts, &Device::Cpu, &quiet).unwrap().likelihoods;
        assert!(got.iter().zip(&exact).any(|(a, b)| a.log != b.log));
    }

    #[test]
    fn a_certain_model_is_greedy() {
        let source = model("llama", json!({}));
        let head = Head::load(&source, &Device::Cpu).unwrap();
        let context = tokens(30, 0);
        let normed = crate::sweep::run(&source, std::slice::from_ref(&context), &Device::Cpu, None).unwrap();
        let best = largest(&normed.logits(&head, 0).unwrap()[29 * 61..]) as u32;
        let text = |t: u32| Continuation { tokens: [context.clone(), vec![t]].concat(), from: 30 };
        let got = score(&source, &[text(best), text((best + 1) % 61)], &Device::Cpu, &quiet).unwrap();
        assert!(got.likelihoods[0].greedy && !got.likelihoods[1].greedy);
        assert_eq!(got.tokens_run, 30);
        assert!(score(&source, &[], &Device::Cpu, &quiet).unwrap().likelihoods.is_empty());
    }

    #[test]
    fn what_cannot_be_scored_is_refused() {
        let source = model("llama", json!({}));
        let bad = |tokens: Vec<u32>, from| score(&source, &[Continuation { tokens, from }], &Device::Cpu, &quiet).unwrap_err();
        assert!(bad(vec![1, 2], 2).message.contains("no continuation"));
        assert!(bad(vec![1, 2], 0).message.contains("no continuation"));
        assert!(bad(vec![1, 61], 1).message.contains("token 61 in text 0"));
    }
}

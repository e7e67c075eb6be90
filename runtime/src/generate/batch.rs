//! Several sequences advanced together: one matrix product over all their rows, attention for each alone.

use super::Model;
use crate::block::{Ropes, Rows, Run};
use crate::cache::{CacheType, KvHeads, LayerCache};
use crate::embedding::check_tokens;
use crate::ops::OrFail;
use bitsmith_formats::{Error, Result};
use candle_core::Tensor;

/// What a model remembers of one sequence: keys and values of every layer.
#[derive(Debug)]
pub struct Sequence {
    caches: Vec<LayerCache>,
    len: usize,
}

impl Sequence {
    /// Tokens fed so far.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing has been fed yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A sequence that begins as this one does and then goes its own way.
    pub fn fork(&self) -> Result<Sequence> {
        let caches = self.caches.iter().map(|c| c.fork(self.len)).collect::<Result<_>>()?;
        Ok(Sequence { caches, len: self.len })
    }

    /// Forgets everything but keeps the memory for another sequence.
    pub fn clear(&mut self) {
        self.len = 0;
    }
}

/// The positions of a feed whose logits are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// None: more of the prompt follows.
    Nothing,
    /// The last one, which tells the next token.
    Last,
    /// Every one, to score the prompt.
    All,
}

/// The next tokens of one sequence.
#[derive(Debug)]
pub struct Feed<'a> {
    /// The sequence they continue.
    pub sequence: &'a mut Sequence,
    /// At least one token.
    pub tokens: &'a [u32],
    /// The logits to compute.
    pub wanted: Wanted,
}

/// Rows of a step that belong to one sequence, with that sequence's cache of the layer at hand.
pub(crate) struct Segment<'a> {
    /// Number of rows.
    pub len: usize,
    /// Position of the first row.
    pub start: usize,
    /// The earlier segment of the same step whose keys and values this one continues, if its own cache does not hold them already.
    pub parent: Option<usize>,
    pub cache: &'a mut LayerCache,
}

/// Steps many sequences through a [`Model`]. What comes out for a sequence does not depend on the others, except that sums in a matrix
/// product may be rounded differently for other numbers of rows.
#[derive(Debug)]
pub struct Batch<'m> {
    model: &'m Model,
    ropes: Ropes,
}

impl<'m> Batch<'m> {
    /// For sequences of a model.
    pub fn new(model: &'m Model) -> Self {
        Batch { model, ropes: Ropes::new(&model.spec, 0) }
    }

    /// A new, empty sequence; an error if the model's heads cannot be stored so.
    pub fn sequence(&self, cache: CacheType) -> Result<Sequence> {
        let heads = KvHeads::of(&self.model.spec);
        let caches = self.model.layers.iter().map(|_| LayerCache::new(cache, heads)).collect::<Result<_>>()?;
        Ok(Sequence { caches, len: 0 })
    }

    /// Reads the tokens of every feed and calls `each(feed, position, logits)` for the logits that are wanted, `vocab` values each, in the
    /// order of feeds and positions. Logits may be non-finite if weights are damaged. After an error no sequence has advanced.
    pub fn step(&mut self, feeds: &mut [Feed<'_>], mut each: impl FnMut(usize, usize, &[f32])) -> Result<()> {
        self.check(feeds)?;
        let tokens: Vec<u32> = feeds.iter().flat_map(|f| f.tokens).copied().collect();
        let positions: Vec<usize> = feeds.iter().flat_map(|f| f.sequence.len..f.sequence.len + f.tokens.len()).collect();
        if tokens.is_empty() {
            return Ok(());
        }
        let x = self.model.embedding.rows(&tokens, |i| positions[i])?;
        // On a thread of the pool, so that it is not entered and left for every product.
        let x = rayon::scope(|_| self.layers(feeds, x))?;
        self.score(feeds, &x, &mut each)?;
        for feed in feeds {
            feed.sequence.len += feed.tokens.len();
        }
        Ok(())
    }

    /// Pushes hidden states `(rows of all feeds, hidden)` through all layers.
    fn layers(&self, feeds: &mut [Feed<'_>], mut x: Tensor) -> Result<Tensor> {
        let rows = Rows { windows: 1, len: x.dim(0).or_fail()?, start: 0 };
        for (index, layer) in self.model.layers.iter().enumerate() {
            let segment = |feed| {
                let Feed { sequence, tokens, .. }: &mut Feed<'_> = feed;
                Segment { len: tokens.len(), start: sequence.len, parent: None, cache: &mut sequence.caches[index] }
            };
            let mut segments: Vec<_> = feeds.iter_mut().map(segment).collect();
            let run = Run { spec: &self.model.spec, ropes: &self.ropes, layer_index: index, observer: None };
            x = run.forward(layer, &x, rows, Some(&mut segments))?;
        }
        Ok(x)
    }

    /// Whether all tokens can be read; makes room for their positions.
    fn check(&mut self, feeds: &[Feed<'_>]) -> Result<()> {
        let spec = &self.model.spec;
        for feed in feeds {
            check_tokens(spec, feed.tokens, String::new)?;
            if feed.tokens.is_empty() {
                return Err(Error::usage("a sequence without new tokens"));
            }
            let end = feed.sequence.len + feed.tokens.len();
            if end > spec.context_length {
                return Err(Error::usage(format!("{end} tokens exceed the model's context of {}", spec.context_length)));
            }
            if !self.ropes.covers(end) {
                self.ropes = Ropes::for_growing(spec, end);
            }
        }
        Ok(())
    }

    /// The logits that are wanted of hidden states `(rows of all feeds, hidden)`.
    fn score(&self, feeds: &[Feed<'_>], x: &Tensor, each: &mut impl FnMut(usize, usize, &[f32])) -> Result<()> {
        let (mut rows, mut places) = (Vec::new(), Vec::new());
        let mut first = 0;
        for (index, feed) in feeds.iter().enumerate() {
            let n = feed.tokens.len();
            let wanted = match feed.wanted {
                Wanted::Nothing => n..n,
                Wanted::Last => n - 1..n,
                Wanted::All => 0..n,
            };
            for i in wanted {
                rows.push((first + i) as u32);
                places.push((index, feed.sequence.len + i));
            }
            first += n;
        }
        if rows.is_empty() {
            return Ok(());
        }
        let index = Tensor::from_slice(&rows, rows.len(), x.device()).or_fail()?;
        let wanted = x.index_select(&index, 0).or_fail()?;
        let normed = self.model.output_norm.apply(&wanted)?;
        let vocab = self.model.head.vocab_size();
        self.model.head.for_each_chunk(&normed, |first, logits| {
            for (row, (feed, position)) in logits.chunks_exact(vocab).zip(&places[first..]) {
                each(*feed, *position, row);
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{model, tokens};
    use candle_core::Device;
    use serde_json::json;

    /// The logits after every token of `text`, read alone in pieces.
    fn alone(model: &Model, text: &[u32], pieces: &[usize]) -> Vec<Vec<f32>> {
        let mut batch = Batch::new(model);
        let mut sequence = batch.sequence(CacheType::F32).unwrap();
        let (mut rows, mut at) = (Vec::new(), 0);
        for n in pieces {
            let mut feeds = [Feed { sequence: &mut sequence, tokens: &text[at..at + n], wanted: Wanted::All }];
            batch
                .step(&mut feeds, |_, position, logits| {
                    assert_eq!(position, rows.len());
                    rows.push(logits.to_vec());
                })
                .unwrap();
            at += n;
        }
        rows
    }

    #[test]
    fn company_changes_nothing() {
        for (model_type, changes) in
            [("llama", json!({})), ("mistral", json!({"sliding_window": 5})), ("qwen2", json!({})), ("qwen3", json!({}))]
        {
            let model = Model::load(&model(model_type, changes), &Device::Cpu).unwrap();
            let texts: Vec<Vec<u32>> = [40, 23, 31, 12].into_iter().zip(0..).map(|(n, seed)| tokens(n, seed)).collect();
            let want: Vec<Vec<Vec<f32>>> = texts.iter().map(|t| alone(&model, t, &vec![1; t.len()])).collect();
            // Sequences start one after the other; each reads a chunk of its prompt, then single tokens, beside the others.
            let mut batch = Batch::new(&model);
            let mut sequences: Vec<Sequence> = texts.iter().map(|_| batch.sequence(CacheType::F32).unwrap()).collect();
            let mut seen = 0;
            for step in 0..60usize {
                let mut feeds = Vec::new();
                let mut who = Vec::new();
                for (i, (sequence, text)) in sequences.iter_mut().zip(&texts).enumerate() {
                    let at = sequence.len();
                    if step < 3 * i || at == text.len() {
                        continue;
                    }
                    let n = if at == 0 { 7 + i } else { 1 };
                    let wanted = [Wanted::Last, Wanted::All, Wanted::Nothing][(step + i) % 3];
                    feeds.push(Feed { sequence, tokens: &text[at..at + n], wanted });
                    who.push(i);
                }
                let mut order = Vec::new();
                batch
                    .step(&mut feeds, |feed, position, logits| {
                        order.push((feed, position));
                        let want = &want[who[feed]][position];
                        assert!(logits.iter().zip(want).all(|(a, b)| (a - b).abs() < 2e-5), "{model_type} {feed} {position}");
                        seen += 1;
                    })
                    .unwrap();
                assert!(order.is_sorted());
            }
            assert!(sequences.iter().zip(&texts).all(|(s, t)| s.len() == t.len()) && seen > 50, "{seen}");
        }
    }

    #[test]
    fn a_cleared_sequence_is_a_new_one_and_errors_advance_nothing() {
        let model = Model::load(&model("llama", json!({"max_position_embeddings": 300})), &Device::Cpu).unwrap();
        let (first, second) = (tokens(290, 1), tokens(20, 2));
        let mut batch = Batch::new(&model);
        let mut sequence = batch.sequence(CacheType::F32).unwrap();
        let mut other = batch.sequence(CacheType::F32).unwrap();
        let mut last = Vec::new();
        batch
            .step(&mut [Feed { sequence: &mut sequence, tokens: &first, wanted: Wanted::Nothing }], |_, _, _| panic!("unwanted"))
            .unwrap();
        for bad in [vec![1; 11], vec![61], vec![]] {
            let mut feeds = [
                Feed { sequence: &mut other, tokens: &second, wanted: Wanted::Last },
                Feed { sequence: &mut sequence, tokens: &bad, wanted: Wanted::Last },
            ];
            batch.step(&mut feeds, |_, _, _| panic!("scored")).unwrap_err();
        }
        assert_eq!((sequence.len(), other.len()), (290, 0));
        sequence.clear();
        assert!(sequence.is_empty());
        // The memory of one, the other untouched: both are new.
        for sequence in [&mut sequence, &mut other] {
            let mut feeds = [Feed { sequence, tokens: &second, wanted: Wanted::Last }];
            batch.step(&mut feeds, |_, _, logits| last.push(logits.to_vec())).unwrap();
        }
        assert_eq!(last[0], last[1]);
    }
}

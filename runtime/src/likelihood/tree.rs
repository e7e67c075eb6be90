//! Texts as a tree of their common beginnings.

use std::ops::Range;

/// Common tokens that are worth a node of their own: each costs a copy of the page of keys and values that it shares in part.
const MIN_SHARED: usize = 8;

/// Consecutive tokens that all texts below the node have in common.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    /// What comes before; parents stand before their children.
    pub parent: Option<usize>,
    /// Position of the first token.
    pub start: usize,
    /// At least one.
    pub tokens: Vec<u32>,
}

/// Nodes in the order of a walk that goes down first, so that few are needed at a time.
#[derive(Debug)]
pub(super) struct Tree {
    pub nodes: Vec<Node>,
    /// The node in which each text ends.
    ends: Vec<usize>,
}

impl Tree {
    /// The tree of these texts, none of which is empty.
    pub fn new(texts: &[&[u32]]) -> Self {
        let mut order: Vec<usize> = (0..texts.len()).collect();
        order.sort_by_key(|i| texts[*i]);
        let mut tree = Tree { nodes: Vec::new(), ends: vec![0; texts.len()] };
        tree.split(texts, &order, 0, None);
        tree
    }

    /// Tokens in all nodes.
    pub fn n_tokens(&self) -> usize {
        self.nodes.iter().map(|n| n.tokens.len()).sum()
    }

    /// Texts, sorted, that have `depth` tokens in common and go on after them.
    fn split(&mut self, texts: &[&[u32]], order: &[usize], depth: usize, parent: Option<usize>) {
        let next = |i: &usize| {
            let rest = &texts[*i][depth..];
            &rest[..rest.len().min(MIN_SHARED)]
        };
        for group in order.chunk_by(|a, b| next(a) == next(b)) {
            let (first, last) = (texts[group[0]], texts[group[group.len() - 1]]);
            // Sorted: what the ends have in common, all have.
            let common = first.iter().zip(last).take_while(|(a, b)| a == b).count();
            let node = self.nodes.len();
            self.nodes.push(Node { parent, start: depth, tokens: first[depth..common].to_vec() });
            let ending = group.iter().take_while(|i| texts[**i].len() == common).count();
            group[..ending].iter().for_each(|i| self.ends[*i] = node);
            self.split(texts, &group[ending..], common, Some(node));
        }
    }

    /// The node and the row in it of each position of a text that is asked for, the last position first.
    pub fn rows(&self, text: usize, positions: Range<usize>) -> impl Iterator<Item = (usize, usize)> {
        let mut node = self.ends[text];
        positions.rev().map(move |position| {
            while self.nodes[node].start > position {
                node = self.nodes[node].parent.unwrap_or(0);
            }
            (node, position - self.nodes[node].start)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampler::Rng;

    #[test]
    fn common_beginnings_stand_once() {
        let header: Vec<u32> = (0..20).collect();
        let text = |tail: &[u32]| [&header, tail].concat();
        let context: Vec<u32> = (50..60).collect();
        let texts = [text(&[&context[..], &[1, 2]].concat()), text(&[&context[..], &[3]].concat()), text(&[9]), text(&[9])];
        let tree = Tree::new(&texts.iter().map(Vec::as_slice).collect::<Vec<_>>());
        // Header, the short tail, the context and its two ends.
        assert_eq!(tree.n_tokens(), 20 + 1 + 10 + 2 + 1);
        assert_eq!(tree.nodes.len(), 5);
        assert_eq!(tree.ends[2], tree.ends[3]);
        assert_eq!(tree.rows(0, 30..32).collect::<Vec<_>>(), [(tree.ends[0], 1), (tree.ends[0], 0)]);
        // One text is the beginning of another.
        let nested = Tree::new(&[&header[..], &header[..15]]);
        assert_eq!((nested.n_tokens(), nested.ends.as_slice()), (20, &[1, 0][..]));
    }

    #[test]
    fn every_text_is_its_path() {
        let mut rng = Rng::new(1);
        for _ in 0..200 {
            let mut below = |n: u64| rng.next_u64() % n;
            let texts: Vec<Vec<u32>> =
                (0..1 + below(20)).map(|_| (0..1 + below(30)).map(|_| below(7) as u32 / 6).collect()).collect();
            let tree = Tree::new(&texts.iter().map(Vec::as_slice).collect::<Vec<_>>());
            assert!(tree.n_tokens() <= texts.iter().map(Vec::len).sum());
            assert!(tree.nodes.iter().enumerate().all(|(i, n)| n.parent.is_none_or(|p| p < i) && !n.tokens.is_empty()));
            for (i, text) in texts.iter().enumerate() {
                let mut read: Vec<u32> = tree.rows(i, 0..text.len()).map(|(node, row)| tree.nodes[node].tokens[row]).collect();
                read.reverse();
                assert_eq!(&read, text);
            }
        }
    }
}

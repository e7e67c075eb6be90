//! Where in the text the divergence from the reference lands: by kind of token, position, confidence and domain, and the passages
//! that it hits hardest.

pub mod classes;
mod passages;

pub use passages::{Passage, PassageToken};

use crate::metrics::Position;
use crate::stats::grouped_stderr;
use bitsmith_datasets::EvalWindows;
use bitsmith_runtime::Tokenizer;
use classes::{CLASSES, Token, rare};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Where the divergence of one model lies. A token may be of several classes, so their shares need not add up to 1; those of
/// positions and confidences do.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Landing {
    /// By the class of the token that is to be predicted.
    pub classes: Vec<Group>,
    /// By the class of the token that was read last.
    pub after: Vec<Group>,
    /// By position in the window.
    pub positions: Vec<Group>,
    /// By the probability that the reference gives to what it finds most likely.
    pub confidence: Vec<Group>,
    /// The classes within each domain, if there are several domains.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub domains: Vec<DomainLanding>,
    /// The worst passages, the worst first; they do not overlap.
    pub passages: Vec<Passage>,
}

/// Where the divergence within one domain lies.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DomainLanding {
    /// The domain's name.
    pub domain: String,
    /// Its share of the whole divergence.
    pub share: f64,
    /// By the class of the token that is to be predicted; shares are of the whole divergence.
    pub classes: Vec<Group>,
    /// By the class of the token that was read last.
    pub after: Vec<Group>,
}

/// Some of the scored tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Group {
    /// What they have in common.
    pub name: String,
    /// How many they are.
    pub tokens: usize,
    /// Mean divergence, nats per token.
    pub kld: f64,
    /// Its standard error, windows taken as independent; 0 if they lie in one window.
    pub stderr: f64,
    /// Their part of the sum of all divergences, 0 to 1.
    pub share: f64,
    /// Model's perplexity on them, divided by the reference's.
    pub ppl_ratio: f64,
    /// Fraction where both models find the same token most likely.
    pub same_top_p: f64,
}

/// Bounds of the reference's probability of its favourite, by which positions are grouped.
const CONFIDENCE: [f64; 8] = [0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0];
/// Groups of positions.
const POSITIONS: usize = 8;

impl Landing {
    /// From the scored positions of every window. `tokenizer` is the one that the windows were made with.
    pub fn of(eval: &EvalWindows, by_window: &[Vec<Position>], tokenizer: &Tokenizer) -> Self {
        let texts = Texts::of(eval, tokenizer);
        let scored = eval.scored();
        let total: f64 = by_window.iter().flatten().map(|p| p.kld).sum();
        let mut tally = Tally { classes: Sums::default(), after: Sums::default() };
        let mut domains: Vec<Tally> = eval.set.domains.iter().map(|_| Tally::default()).collect();
        let (mut positions, mut confidence) = (Sums::default(), Sums::default());
        for (w, scores) in by_window.iter().enumerate() {
            let domain = &mut domains[eval.set.domain_of[w]];
            for (i, at) in scores.iter().enumerate() {
                let place = scored.start + i;
                let (next, last) = (texts.token(eval, w, place), texts.token(eval, w, place - 1));
                for (c, class) in CLASSES.iter().enumerate() {
                    for tally in [&mut tally, domain] {
                        if (class.holds)(&next) {
                            tally.classes.add(c, w, at);
                        }
                        if (class.holds)(&last) {
                            tally.after.add(c, w, at);
                        }
                    }
                }
                positions.add(i * POSITIONS / scores.len(), w, at);
                confidence.add(CONFIDENCE[1..CONFIDENCE.len() - 1].partition_point(|b| *b <= at.confidence), w, at);
            }
        }
        let place = |g: usize| {
            let edge = |g: usize| scored.start + (g * scored.len()).div_ceil(POSITIONS);
            format!("{}–{}", edge(g), edge(g + 1) - 1)
        };
        let percent = |g: usize| format!("{}–{} %", 100.0 * CONFIDENCE[g], 100.0 * CONFIDENCE[g + 1]);
        let sum = |d: usize| by_window.iter().zip(&eval.set.domain_of).filter(move |(_, of)| **of == d).flat_map(|(w, _)| w);
        let domain = |(d, tally): (usize, &Tally)| DomainLanding {
            domain: eval.set.domains[d].clone(),
            share: share(sum(d).map(|p| p.kld).sum(), total),
            classes: tally.classes.groups(total, class),
            after: tally.after.groups(total, class),
        };
        let seen = domains.iter().enumerate().filter(|(d, _)| eval.set.domain_of.contains(d));
        Landing {
            classes: tally.classes.groups(total, class),
            after: tally.after.groups(total, class),
            positions: positions.groups(total, place),
            confidence: confidence.groups(total, percent),
            domains: if eval.set.domains.len() > 1 { seen.map(domain).collect() } else { Vec::new() },
            passages: passages::worst(eval, by_window, tokenizer),
        }
    }
}

fn class(c: usize) -> String {
    CLASSES[c].name.to_string()
}

fn share(part: f64, total: f64) -> f64 {
    if total > 0.0 { part / total } else { 0.0 }
}

/// Texts of the tokens of some windows, and which of them are rare.
struct Texts<F> {
    texts: BTreeMap<u32, String>,
    rare: F,
}

impl Texts<()> {
    fn of(eval: &EvalWindows, tokenizer: &Tokenizer) -> Texts<impl Fn(u32) -> bool> {
        let mut texts = BTreeMap::new();
        for id in eval.set.windows.iter().flatten() {
            let text = || String::from_utf8_lossy(&tokenizer.bytes(*id).unwrap_or_default()).into_owned();
            texts.entry(*id).or_insert_with(text);
        }
        Texts { texts, rare: rare(eval.set.windows.iter().flatten()) }
    }
}

impl<F: Fn(u32) -> bool> Texts<F> {
    fn token(&self, eval: &EvalWindows, window: usize, place: usize) -> Token<'_> {
        let tokens = &eval.set.windows[window];
        let before = place.checked_sub(1).map_or("", |p| &self.texts[&tokens[p]]);
        Token { text: &self.texts[&tokens[place]], before, rare: (self.rare)(tokens[place]) }
    }
}

#[derive(Default)]
struct Tally {
    classes: Sums,
    after: Sums,
}

/// Sums over the tokens of numbered groups.
#[derive(Default)]
struct Sums(BTreeMap<usize, Sum>);

#[derive(Default)]
struct Sum {
    /// Sum of divergences and number of tokens by window.
    windows: BTreeMap<usize, (f64, usize)>,
    log_ratio: f64,
    same_top: usize,
}

impl Sums {
    fn add(&mut self, group: usize, window: usize, at: &Position) {
        let sum = self.0.entry(group).or_default();
        let (kld, tokens) = sum.windows.entry(window).or_default();
        *kld += at.kld;
        *tokens += 1;
        sum.log_ratio += at.nll - at.nll_against;
        sum.same_top += usize::from(at.same_top);
    }

    /// The groups that have tokens.
    fn groups(&self, total: f64, name: impl Fn(usize) -> String) -> Vec<Group> {
        let group = |(g, sum): (&usize, &Sum)| {
            let windows: Vec<(f64, usize)> = sum.windows.values().copied().collect();
            let tokens: usize = windows.iter().map(|w| w.1).sum();
            let kld: f64 = windows.iter().map(|w| w.0).sum();
            let n = tokens as f64;
            Group {
                name: name(*g),
                tokens,
                kld: kld / n,
                stderr: grouped_stderr(&windows).unwrap_or(0.0),
                share: share(kld, total),
                ppl_ratio: (sum.log_ratio / n).exp(),
                same_top_p: sum.same_top as f64 / n,
            }
        };
        self.0.iter().map(group).collect()
    }
}

#[cfg(test)]
mod tests;

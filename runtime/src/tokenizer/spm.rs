//! SentencePiece's BPE between its two forms: scores per token (SentencePiece itself, GGUF) and a list of merges (`tokenizer.json`).
//!
//! With scores, of all neighbours whose concatenation is a token, those merge first whose result scores highest. With a list,
//! the pair that stands first merges first. The list for given scores holds every split of every token, best result first
//! (within one score: longer left part first, as transformers' converter orders them).

use super::vocab::TokenType;
use std::collections::HashMap;

/// Scores that make merging by score do what the list does: minus the rank of the first merge that makes the token. Tokens that
/// no merge makes come after all that one makes.
pub(super) fn scores_from_merges(tokens: &[String], merges: &[(String, String)]) -> Vec<f32> {
    let mut rank: HashMap<String, usize> = HashMap::with_capacity(merges.len());
    for (i, (left, right)) in merges.iter().enumerate() {
        rank.entry(format!("{left}{right}")).or_insert(i);
    }
    // Ranks are exact in f32 up to 2^24 merges.
    tokens.iter().map(|t| 0.0 - *rank.get(t).unwrap_or(&merges.len()) as f32).collect()
}

/// The list of merges for given scores.
pub(super) fn merges_from_scores(tokens: &[String], types: &[TokenType], scores: &[f32]) -> Vec<(String, String)> {
    let mergeable = |id: usize| matches!(types[id], TokenType::Normal | TokenType::UserDefined | TokenType::Unused);
    let ids: HashMap<&str, usize> =
        tokens.iter().enumerate().filter(|(id, _)| mergeable(*id)).map(|(id, t)| (t.as_str(), id)).collect();
    struct Split<'a> {
        score: f32,
        left: &'a str,
        right: &'a str,
        lengths: (usize, usize),
        ids: (usize, usize),
    }
    let mut splits = Vec::new();
    for (id, token) in tokens.iter().enumerate().filter(|(id, _)| mergeable(*id)) {
        let n_chars = token.chars().count();
        for (i, (at, _)) in token.char_indices().enumerate().skip(1) {
            let (left, right) = token.split_at(at);
            if let (Some(&l), Some(&r)) = (ids.get(left), ids.get(right)) {
                splits.push(Split { score: scores[id], left, right, lengths: (i, n_chars - i), ids: (l, r) });
            }
        }
    }
    splits.sort_by(|a, b| b.score.total_cmp(&a.score).then(b.lengths.cmp(&a.lengths)).then(a.ids.cmp(&b.ids)));
    splits.into_iter().map(|s| (s.left.to_string(), s.right.to_string())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merges_and_scores_agree() {
        let tokens: Vec<String> = ["a", "b", "c", "ab", "bc", "abc", "zz"].map(String::from).into();
        let pair = |l: &str, r: &str| (l.to_string(), r.to_string());
        let merges = vec![pair("b", "c"), pair("a", "b"), pair("ab", "c"), pair("a", "bc")];
        let scores = scores_from_merges(&tokens, &merges);
        assert_eq!(scores, [-4.0, -4.0, -4.0, -1.0, 0.0, -2.0, -4.0]);
        assert!(scores.iter().all(|s| s.to_bits() != (-0.0f32).to_bits()));
        assert_eq!(merges_from_scores(&tokens, &[TokenType::Normal; 7], &scores), merges);
    }
}

//! Kinds of tokens, by their text: what the loss is told apart by. A token may be of several kinds or of none.

use std::collections::BTreeMap;

/// A token in its place.
#[derive(Debug, Clone, Copy)]
pub struct Token<'a> {
    /// What it stands for. Parts of characters have U+FFFD in it.
    pub text: &'a str,
    /// The same of the token before it; empty at the beginning.
    pub before: &'a str,
    /// Whether its id is a rare one in the text, as [`rare`] finds.
    pub rare: bool,
}

/// A kind of token.
pub struct Class {
    /// Its name in results.
    pub name: &'static str,
    /// Whether a token is of it.
    pub holds: fn(&Token<'_>) -> bool,
}

/// All kinds, in the order of tables.
pub const CLASSES: [Class; 10] = [
    Class { name: "first token of a word", holds: |t| starts_word(t) },
    Class { name: "rest of a word", holds: |t| first_letter(t.text).is_some() && !starts_word(t) },
    Class { name: "capitalised word", holds: |t| starts_word(t) && first_letter(t.text).is_some_and(char::is_uppercase) },
    Class { name: "rare token", holds: |t| t.rare },
    Class { name: "digits", holds: |t| t.text.chars().any(char::is_numeric) },
    Class { name: "punctuation", holds: |t| marks(t).is_some_and(|mut m| !m.any(is_code)) },
    Class { name: "code symbols", holds: |t| marks(t).is_some_and(|mut m| m.any(is_code)) },
    Class { name: "white space", holds: |t| !t.text.is_empty() && t.text.chars().all(char::is_whitespace) },
    Class { name: "other scripts", holds: |t| t.text.chars().any(|c| c.is_alphabetic() && c > LAST_LATIN) },
    Class { name: "part of a character", holds: |t| t.text.contains(char::REPLACEMENT_CHARACTER) },
];

/// End of Latin Extended-B.
const LAST_LATIN: char = '\u{24f}';
/// The part of a text's tokens that rare ones make up at most.
const RARE_SHARE: f64 = 0.1;

/// The letter that a token begins with, after a space.
fn first_letter(text: &str) -> Option<char> {
    text.trim_start().chars().next().filter(|c| c.is_alphabetic())
}

fn starts_word(t: &Token<'_>) -> bool {
    let after_boundary = t.text.starts_with(char::is_whitespace) || !t.before.ends_with(char::is_alphanumeric);
    first_letter(t.text).is_some() && after_boundary
}

/// A token's characters but for white space, if it has any and all of them are marks.
fn marks<'a>(t: &Token<'a>) -> Option<impl Iterator<Item = char> + 'a> {
    let marks = t.text.chars().filter(|c| !c.is_whitespace());
    let is_mark = |c: char| !c.is_alphanumeric() && c != char::REPLACEMENT_CHARACTER;
    (marks.clone().next().is_some() && marks.clone().all(is_mark)).then_some(marks)
}

fn is_code(c: char) -> bool {
    "{}[]<>=+*/\\|&^%$#@~`_".contains(c)
}

/// The ids that are rare in a text: from the rarest up, all ids of equal frequency together, as long as they make up no more than a
/// tenth of the text; those that occur once in any case.
pub fn rare<'a>(tokens: impl Iterator<Item = &'a u32>) -> impl Fn(u32) -> bool {
    let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
    tokens.for_each(|id| *counts.entry(*id).or_default() += 1);
    let mut by_count: BTreeMap<usize, usize> = BTreeMap::new();
    counts.values().for_each(|n| *by_count.entry(*n).or_default() += n);
    let limit = RARE_SHARE * by_count.values().sum::<usize>() as f64;
    let mut sum = 0;
    let mut frequency = 1;
    for (count, tokens) in by_count {
        sum += tokens;
        if sum as f64 > limit {
            break;
        }
        frequency = frequency.max(count);
    }
    move |id| counts.get(&id).is_none_or(|n| *n <= frequency)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classes(before: &str, text: &str) -> Vec<&'static str> {
        let token = Token { text, before, rare: false };
        CLASSES.iter().filter(|c| (c.holds)(&token)).map(|c| c.name).collect()
    }

    #[test]
    fn kinds_of_tokens() {
        assert_eq!(classes("the", " light"), ["first token of a word"]);
        assert_eq!(classes(" light", "house"), ["rest of a word"]);
        assert_eq!(classes("(", "Name"), ["first token of a word", "capitalised word"]);
        assert_eq!(classes(" 4", "th"), ["rest of a word"]);
        assert_eq!(classes(" ", "1984"), ["digits"]);
        assert_eq!(classes("x", ","), ["punctuation"]);
        assert_eq!(classes("x", " (\""), ["punctuation"]);
        assert_eq!(classes("x", "):"), ["punctuation"]);
        assert_eq!(classes("x", "();"), ["punctuation"]);
        assert_eq!(classes("x", " +="), ["code symbols"]);
        assert_eq!(classes("x", "]);"), ["code symbols"]);
        assert_eq!(classes("x", "\n    "), ["white space"]);
        assert_eq!(classes("x", " свет"), ["first token of a word", "other scripts"]);
        assert_eq!(classes("x", "\u{fffd}"), ["part of a character"]);
        assert!(classes("x", "").is_empty());
    }

    #[test]
    fn rare_ids_are_at_most_a_tenth() {
        // 1 and 2 occur once, 3 twice, 4 sixteen times: 1 and 2 are a tenth, with 3 it would be more.
        let tokens: Vec<u32> = [vec![1, 2, 3, 3], vec![4; 16]].concat();
        let is_rare = rare(tokens.iter());
        assert_eq!([1, 2, 3, 4].map(is_rare), [true, true, false, false]);
        let all_once = [1, 2, 3];
        let is_rare = rare(all_once.iter());
        assert!(all_once.iter().all(|id| is_rare(*id)));
    }
}

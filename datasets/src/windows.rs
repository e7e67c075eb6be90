//! Token windows from text, with any tokenizer.
//!
//! *Calibration* windows lie evenly over the whole text, so that a few of them see all of it. *Evaluation* windows are
//! consecutive, as llama.cpp's `llama-perplexity` and the GPTQ papers cut them.

use crate::spec::{Corpus, Domain};
use bitsmith_formats::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

/// A tokenizer, as much of it as is needed here.
pub struct Encoder<'a> {
    /// Token ids of a text, without any special token added. For numbers that agree with llama.cpp's, special tokens spelled out
    /// in the text must be cut like any text.
    pub encode: &'a dyn Fn(&str) -> Result<Vec<u32>>,
    /// The token that the tokenizer puts before every text; `None` if it adds none.
    pub bos: Option<u32>,
}

/// Windows of token ids.
#[derive(Debug, Clone)]
pub struct WindowSet {
    /// The DATA argument.
    pub data: String,
    /// SHA-256 of the text, as [`Corpus::sha256`].
    pub sha256: String,
    /// Tokens per window.
    pub ctx: usize,
    /// Names of the domains.
    pub domains: Vec<String>,
    /// The windows, domain by domain. Calibration windows may be shorter than `ctx` where the text is.
    pub windows: Vec<Vec<u32>>,
    /// Index of each window's domain.
    pub domain_of: Vec<usize>,
    /// What the user should know: that there are fewer windows than asked for, for example.
    pub notes: Vec<String>,
}

impl WindowSet {
    fn new(corpus: &Corpus, ctx: usize) -> Self {
        let domains = corpus.domains.iter().map(|d| d.name.clone()).collect();
        let (data, sha256) = (corpus.data.clone(), corpus.sha256.clone());
        WindowSet { data, sha256, ctx, domains, windows: Vec::new(), domain_of: Vec::new(), notes: Vec::new() }
    }
    /// Tokens in all windows.
    pub fn n_tokens(&self) -> usize {
        self.windows.iter().map(Vec::len).sum()
    }
    /// Number of windows of each domain.
    pub fn windows_per_domain(&self) -> Vec<usize> {
        let mut counts = vec![0; self.domains.len()];
        for d in &self.domain_of {
            counts[*d] += 1;
        }
        counts
    }
    fn push(&mut self, domain: usize, window: Vec<u32>) {
        self.windows.push(window);
        self.domain_of.push(domain);
    }
}

/// How evaluation text is cut into windows, and which of their tokens count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Style {
    /// As `llama-perplexity`: windows of 512 that begin with BOS, the tokens of the second half scored.
    #[default]
    #[serde(rename = "llama.cpp")]
    LlamaCpp,
    /// As the GPTQ papers: windows of 2048, no BOS, all tokens but the first scored.
    #[serde(rename = "paper")]
    Paper,
}

impl Style {
    /// Window length unless one is asked for.
    pub fn default_ctx(self) -> usize {
        match self {
            Style::LlamaCpp => 512,
            Style::Paper => 2048,
        }
    }
    /// Positions, within a window of `ctx`, of the tokens that are scored; each is predicted from all before it.
    pub fn scored(self, ctx: usize) -> Range<usize> {
        match self {
            Style::LlamaCpp => ctx / 2 + 1..ctx,
            Style::Paper => 1..ctx,
        }
    }
}

impl fmt::Display for Style {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Style::LlamaCpp => "llama.cpp",
            Style::Paper => "paper",
        })
    }
}

impl FromStr for Style {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self> {
        match s {
            "llama.cpp" => Ok(Style::LlamaCpp),
            "paper" => Ok(Style::Paper),
            _ => Err(Error::usage(format!("unknown style `{s}`")).hint("the styles are llama.cpp and paper")),
        }
    }
}

/// Windows for evaluation, all of length `set.ctx`.
#[derive(Debug, Clone)]
pub struct EvalWindows {
    /// The windows.
    pub set: WindowSet,
    /// How they were cut.
    pub style: Style,
}

impl EvalWindows {
    /// Positions within every window of the tokens that are scored.
    pub fn scored(&self) -> Range<usize> {
        self.style.scored(self.set.ctx)
    }
    /// Some of the windows, with their domains.
    pub fn part(&self, windows: Range<usize>) -> EvalWindows {
        let mut part = self.clone();
        part.set.windows = self.set.windows[windows.clone()].to_vec();
        part.set.domain_of = self.set.domain_of[windows].to_vec();
        part
    }
    /// Scored tokens in all windows.
    pub fn n_scored(&self) -> usize {
        self.set.windows.len() * self.scored().len()
    }
}

/// Up to `samples` windows of `ctx` tokens, none overlapping another, spread evenly over the text; each begins with BOS if the
/// tokenizer adds one. Domains get windows in proportion to their weights (1 where none is given), or to their sizes if no
/// domain has a weight; what one domain cannot fill goes to the others.
pub fn calibration_windows(corpus: &Corpus, encoder: &Encoder<'_>, samples: usize, ctx: usize) -> Result<WindowSet> {
    let body = ctx.saturating_sub(usize::from(encoder.bos.is_some()));
    if samples == 0 || body < 2 {
        return Err(Error::usage(format!("{samples} calibration windows of {ctx} tokens hold nothing to learn from")));
    }
    let mut set = WindowSet::new(corpus, ctx);
    let texts = corpus.domains.iter().map(|d| Tokens::of(d, encoder, samples, body)).collect::<Result<Vec<_>>>()?;
    let room: Vec<usize> = texts.iter().map(|t| t.windows(body)).collect();
    let weights: Vec<f64> = match corpus.is_weighted() {
        true => corpus.domains.iter().map(|d| d.weight.unwrap_or(1.0)).collect(),
        false => corpus.domains.iter().map(|d| d.text.len() as f64).collect(),
    };
    for (domain, n) in shares(samples, &weights, &room, Full::GiveToOthers).into_iter().enumerate() {
        for tokens in texts[domain].spread(n, body) {
            set.push(domain, encoder.bos.into_iter().chain(tokens.iter().copied()).collect());
        }
    }
    if set.windows.is_empty() {
        return Err(no_tokens(corpus));
    }
    if set.windows.len() < samples {
        set.notes.push(format!("the text gives {} calibration windows of {ctx} tokens, not {samples}", set.windows.len()));
    }
    let short = set.windows.iter().filter(|w| w.len() < ctx).count();
    if short > 0 {
        set.notes.push(format!("{short} of the calibration windows are shorter than {ctx} tokens"));
    }
    Ok(set)
}

/// Consecutive windows of `ctx` tokens ([`Style::default_ctx`] if `None`), the tail of each domain dropped; the first `limit` of
/// them. With several domains, each is tokenised and cut alone and gives its first windows: in proportion to the weights (1
/// where none is given) as long as the text of every domain suffices, or to their sizes if no domain has a weight.
pub fn evaluation_windows(
    corpus: &Corpus,
    encoder: &Encoder<'_>,
    style: Style,
    ctx: Option<usize>,
    limit: Option<usize>,
) -> Result<EvalWindows> {
    let ctx = ctx.unwrap_or(style.default_ctx());
    if style.scored(ctx).is_empty() {
        return Err(Error::usage(format!("windows of {ctx} tokens have none to score")).hint("choose a longer --ctx"));
    }
    if limit == Some(0) {
        return Err(Error::usage("a limit of 0 windows leaves nothing to evaluate"));
    }
    let bos = encoder.bos.filter(|_| style == Style::LlamaCpp);
    let mut set = WindowSet::new(corpus, ctx);
    // How many windows each of several domains has decides which it gives; of a single one, no more is tokenised than is needed.
    let needed = limit.filter(|_| corpus.domains.len() == 1).map(|windows| windows.saturating_mul(ctx));
    let mut texts = Vec::new();
    for d in &corpus.domains {
        // llama.cpp drops one newline at the end of the file.
        let text = if style == Style::LlamaCpp { d.text.strip_suffix('\n').unwrap_or(&d.text) } else { &d.text };
        texts.push(bos.into_iter().chain(beginning(text, encoder, needed)?).collect::<Vec<u32>>());
    }
    let room: Vec<usize> = texts.iter().map(|t| t.len() / ctx).collect();
    let counts = if corpus.is_weighted() {
        let weights: Vec<f64> = corpus.domains.iter().map(|d| d.weight.unwrap_or(1.0)).collect();
        shares(limit.unwrap_or(usize::MAX), &weights, &room, Full::Stop)
    } else {
        let sizes: Vec<f64> = room.iter().map(|n| *n as f64).collect();
        shares(limit.unwrap_or(usize::MAX), &sizes, &room, Full::GiveToOthers)
    };
    for (domain, (tokens, n)) in texts.iter().zip(&counts).enumerate() {
        for window in tokens.chunks_exact(ctx).take(*n) {
            let mut window = window.to_vec();
            if let Some(bos) = bos {
                window[0] = bos;
            }
            set.push(domain, window);
        }
        if room[domain] == 0 && corpus.domains.len() > 1 {
            let name = &corpus.domains[domain].name;
            set.notes.push(format!("`{name}` has {} tokens, fewer than one window of {ctx}: it is left out", tokens.len()));
        }
    }
    if set.windows.is_empty() {
        let longest = texts.iter().map(Vec::len).max().unwrap_or(0);
        return Err(Error::usage(format!("`{}` has {longest} tokens, fewer than one window of {ctx}", corpus.data))
            .hint("give more text, or a shorter --ctx"));
    }
    if let Some(limit) = limit.filter(|l| *l > set.windows.len()) {
        set.notes.push(format!("the text gives {} windows of {ctx} tokens, not {limit}", set.windows.len()));
    }
    Ok(EvalWindows { set, style })
}

/// The tokens of a text; if `needed` are enough, these or some more, the same as of the whole text.
///
/// They are those of a part of it that ends at the end of a line and makes [`MARGIN`] tokens more, which are dropped: how a tokenizer cuts depends on
/// what stands near, so that only the last few can differ from those that the whole text has there.
fn beginning(text: &str, encoder: &Encoder<'_>, needed: Option<usize>) -> Result<Vec<u32>> {
    /// More than any word that a tokenizer takes at once has on its way into tokens.
    const MARGIN: usize = 512;
    /// Bytes per token at first: about what tokenizers take on ordinary text.
    const BYTES_PER_TOKEN: usize = 6;
    let enough = needed.map_or(usize::MAX, |n| n.saturating_add(MARGIN));
    let mut bytes = enough.saturating_mul(BYTES_PER_TOKEN);
    while bytes < text.len() {
        let part = &text[..text.floor_char_boundary(bytes)];
        if let Some(line) = part.rfind('\n') {
            let mut tokens = (encoder.encode)(&part[..line])?;
            if tokens.len() >= enough {
                tokens.truncate(enough - MARGIN);
                return Ok(tokens);
            }
        }
        bytes = bytes.saturating_mul(2);
    }
    (encoder.encode)(text)
}

fn no_tokens(corpus: &Corpus) -> Error {
    Error::corrupt(format!("the tokenizer makes no tokens of `{}`", corpus.data))
}

/// A domain's tokens: of the whole text, or of spans of a text much longer than needed.
enum Tokens {
    Whole(Vec<u32>),
    Spans(Vec<Vec<u32>>),
}

/// Texts up to this many bytes are always tokenised whole.
const WHOLE_BYTES: usize = 1 << 20;
/// Bytes of a span per token needed: several times what tokenizers take on ordinary text.
const SPAN_BYTES_PER_TOKEN: usize = 16;

impl Tokens {
    fn of(domain: &Domain, encoder: &Encoder<'_>, samples: usize, body: usize) -> Result<Self> {
        let text = domain.text.as_str();
        let span = body.saturating_mul(SPAN_BYTES_PER_TOKEN);
        if text.len() <= WHOLE_BYTES.max(span.saturating_mul(samples)) {
            return Ok(Tokens::Whole((encoder.encode)(text)?));
        }
        let spans = even_starts(text.len(), samples, span).map(|at| {
            let (start, end) = (text.floor_char_boundary(at), text.floor_char_boundary(at + span));
            let piece = &text[start..end];
            // Begin at a line, if one begins soon.
            let line = piece.find('\n').filter(|i| *i < piece.len() / 4).map_or(0, |i| i + 1);
            let mut tokens = (encoder.encode)(&piece[line..])?;
            tokens.truncate(body);
            Ok(tokens)
        });
        let mut spans = spans.collect::<Result<Vec<_>>>()?;
        spans.retain(|s| !s.is_empty());
        Ok(Tokens::Spans(spans))
    }

    /// Windows that fit; a text shorter than one window makes one short window.
    fn windows(&self, body: usize) -> usize {
        match self {
            Tokens::Whole(t) => (t.len() / body).max(usize::from(!t.is_empty())),
            Tokens::Spans(s) => s.len(),
        }
    }

    /// `n` windows of up to `body` tokens, evenly spaced.
    fn spread(&self, n: usize, body: usize) -> Vec<&[u32]> {
        match self {
            Tokens::Whole(t) => {
                let len = body.min(t.len());
                even_starts(t.len(), n, len).map(|s| &t[s..s + len]).collect()
            }
            Tokens::Spans(s) => even_starts(s.len(), n, 1).map(|i| s[i].as_slice()).collect(),
        }
    }
}

/// Starts of `n` pieces of length `len` spread evenly over `0..total`, the first at the beginning and the last at the end; a
/// single one lies in the middle. They do not overlap if `n · len ≤ total`.
fn even_starts(total: usize, n: usize, len: usize) -> impl Iterator<Item = usize> {
    let slack = total.saturating_sub(len);
    (0..n).map(move |i| match n {
        1 => slack / 2,
        _ => (slack as u128 * i as u128 / (n as u128 - 1)) as usize,
    })
}

/// What happens when it is a domain's turn that has no windows left.
#[derive(PartialEq)]
enum Full {
    /// Another domain gets the turn.
    GiveToOthers,
    /// No more windows are given, so that the proportions hold.
    Stop,
}

/// Gives `total` windows, one by one, each to the domain furthest below its share (Sainte-Laguë's rule; the first of equals), so
/// that a larger total only adds windows. `room` is the number that each domain has.
fn shares(total: usize, weights: &[f64], room: &[usize], full: Full) -> Vec<usize> {
    let mut given = vec![0usize; weights.len()];
    let total = total.min(room.iter().sum());
    for _ in 0..total {
        let open = |d: &usize| room[*d] > 0 && (full == Full::Stop || given[*d] < room[*d]);
        let turn = |d: &usize| (given[*d] as f64 + 0.5) / weights[*d];
        let next = (0..weights.len()).filter(open).min_by(|a, b| turn(a).total_cmp(&turn(b)));
        match next {
            Some(d) if given[d] < room[d] => given[d] += 1,
            _ => break,
        }
    }
    given
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DataSpec, Purpose};

    /// One token per byte, so that windows can be read.
    fn bytes(text: &str) -> Result<Vec<u32>> {
        Ok(text.bytes().map(u32::from).collect())
    }

    fn encoder(bos: Option<u32>) -> Encoder<'static> {
        Encoder { encode: &bytes, bos }
    }

    fn corpus(domains: &[(&str, Option<f64>)]) -> Corpus {
        let domain = |(i, (text, weight)): (usize, &(&str, Option<f64>))| Domain {
            name: format!("d{i}"),
            weight: *weight,
            text: (*text).to_string(),
            documents: 1,
            sha256: String::new(),
        };
        let domains = domains.iter().enumerate().map(domain).collect();
        Corpus { data: "test".into(), domains, sha256: String::new() }
    }

    fn text(set: &WindowSet) -> Vec<String> {
        set.windows.iter().map(|w| w.iter().map(|t| char::from_u32(*t).unwrap()).collect()).collect()
    }

    #[test]
    fn llama_cpp_windows() {
        let c = corpus(&[("abcdefghijklmn\n", None)]);
        let with_bos = evaluation_windows(&c, &encoder(Some(u32::from(b'^'))), Style::LlamaCpp, Some(4), None).unwrap();
        // BOS takes the first place of the text; each window's first token becomes BOS.
        assert_eq!(text(&with_bos.set), ["^abc", "^efg", "^ijk"]);
        assert_eq!(with_bos.scored(), 3..4);
        assert_eq!(with_bos.n_scored(), 3);
        let without = evaluation_windows(&c, &encoder(None), Style::LlamaCpp, Some(4), Some(2)).unwrap();
        assert_eq!(text(&without.set), ["abcd", "efgh"]);
        // The final newline is gone: 14 letters are two windows of 7, and 15 bytes would be one of 15.
        assert_eq!(evaluation_windows(&c, &encoder(None), Style::LlamaCpp, Some(7), None).unwrap().set.windows.len(), 2);
        assert!(evaluation_windows(&c, &encoder(None), Style::LlamaCpp, Some(15), None).is_err());
        assert_eq!(Style::LlamaCpp.scored(512), 257..512);
    }

    #[test]
    fn paper_windows() {
        let c = corpus(&[("abcdefghij", None)]);
        let w = evaluation_windows(&c, &encoder(Some(94)), Style::Paper, Some(4), None).unwrap();
        assert_eq!(text(&w.set), ["abcd", "efgh"]);
        assert_eq!(w.scored(), 1..4);
        assert_eq!(Style::Paper.scored(2048), 1..2048);
    }

    #[test]
    fn a_limit_spares_the_rest_of_the_text() {
        let text: String = (0..20_000).map(|i| format!("line {i}{}\n", [" of a text", "\n\n  and more", ""][i % 3])).collect();
        let without_lines = text.replace('\n', " ");
        // A token per byte, or for up to 40 that are no spaces.
        let words = |text: &str| {
            let pieces = text.split_inclusive(' ').flat_map(|w| w.as_bytes().chunks(40));
            Ok(pieces.map(|p| p.iter().fold(7u32, |h, b| h.wrapping_mul(31) + u32::from(*b))).collect())
        };
        type Cut<'a> = &'a dyn Fn(&str) -> Result<Vec<u32>>;
        let tokenizers: [Cut<'_>; 2] = [&bytes, &words];
        for (text, spared) in [(&text, true), (&without_lines, false)] {
            let c = corpus(&[(text, None)]);
            for tokenizer in tokenizers {
                let longest = std::cell::Cell::new(0);
                let encode = |t: &str| {
                    longest.set(longest.get().max(t.len()));
                    tokenizer(t)
                };
                let encoder = Encoder { encode: &encode, bos: Some(1) };
                let cut = |limit| evaluation_windows(&c, &encoder, Style::LlamaCpp, Some(64), limit).unwrap().set.windows;
                let some = cut(Some(10));
                assert_eq!(longest.get() < text.len() / 2, spared, "{} of {}", longest.get(), text.len());
                assert!(some.len() == 10 && some[..] == cut(None)[..10]);
            }
        }
    }

    #[test]
    fn limits_are_shared_among_domains() {
        let (a, b) = ("a".repeat(60), "b".repeat(30));
        let plain = corpus(&[(&a, None), (&b, None)]);
        let cut = |c: &Corpus, limit| {
            evaluation_windows(c, &encoder(None), Style::Paper, Some(3), limit).unwrap().set.windows_per_domain()
        };
        assert_eq!(cut(&plain, None), [20, 10]);
        assert_eq!(cut(&plain, Some(6)), [4, 2]);
        assert_eq!(cut(&plain, Some(99)), [20, 10]);
        let weighted = corpus(&[(&a, Some(1.0)), (&b, Some(3.0))]);
        assert_eq!(cut(&weighted, Some(8)), [2, 6]);
        // The proportions end when the second domain does.
        let all = cut(&weighted, None);
        assert!(all[1] == 10 && (3..=4).contains(&all[0]), "{all:?}");
        let short = corpus(&[(&a, None), ("bb", None)]);
        let w = evaluation_windows(&short, &encoder(None), Style::Paper, Some(3), None).unwrap();
        assert_eq!(w.set.windows_per_domain(), [20, 0]);
        assert!(w.set.notes[0].contains("`d1` has 2 tokens"));
    }

    #[test]
    fn bad_requests() {
        let c = corpus(&[("abc", None)]);
        let eval = |style, ctx, limit| evaluation_windows(&c, &encoder(None), style, Some(ctx), limit);
        assert!(eval(Style::LlamaCpp, 2, None).is_err());
        assert!(eval(Style::Paper, 1, None).is_err());
        assert!(eval(Style::Paper, 2, Some(0)).is_err());
        assert!(eval(Style::Paper, 99, None).unwrap_err().message.contains("3 tokens"));
        assert!(calibration_windows(&c, &encoder(None), 0, 8).is_err());
        assert!(calibration_windows(&c, &encoder(Some(1)), 1, 2).is_err());
        assert!("other".parse::<Style>().is_err());
    }

    #[test]
    fn calibration_reaches_from_beginning_to_end() {
        let letters: String = (b'a'..=b'z').map(char::from).collect();
        let c = corpus(&[(&letters, None)]);
        let set = calibration_windows(&c, &encoder(Some(94)), 3, 5).unwrap();
        assert_eq!(text(&set), ["^abcd", "^lmno", "^wxyz"]);
        assert!(set.notes.is_empty());
        let all = calibration_windows(&c, &encoder(None), 100, 5).unwrap();
        assert_eq!(all.windows.len(), 5);
        assert!(all.notes[0].contains("5 calibration windows"));
        let short = calibration_windows(&c, &encoder(None), 4, 64).unwrap();
        assert_eq!(text(&short), [letters]);
        assert!(short.notes[1].contains("shorter"));
        let nothing = Encoder { encode: &|_| Ok(Vec::new()), bos: None };
        assert!(calibration_windows(&c, &nothing, 4, 64).is_err());
    }

    #[test]
    fn calibration_weights_and_sizes() {
        let (a, b) = ("a".repeat(1000), "b".repeat(1000));
        let count = |c: &Corpus, n| calibration_windows(c, &encoder(None), n, 10).unwrap().windows_per_domain();
        assert_eq!(count(&corpus(&[(&a, Some(3.0)), (&b, None)]), 20), [15, 5]);
        assert_eq!(count(&corpus(&[(&a, None), (&b[..500], None)]), 30), [20, 10]);
        assert_eq!(count(&corpus(&[(&a, Some(1.0)), (&b[..20], Some(9.0))]), 30), [28, 2]);
    }

    #[test]
    fn a_long_text_is_sampled_over_its_whole_length() {
        let long: String = (0..400_000).map(|i| format!("{i:06}é\n")).collect();
        assert!(long.len() > WHOLE_BYTES);
        let c = corpus(&[(&long, None)]);
        let total = std::cell::Cell::new(0);
        let counting = |t: &str| {
            total.set(total.get() + t.len());
            bytes(t)
        };
        let set = calibration_windows(&c, &Encoder { encode: &counting, bos: None }, 16, 64).unwrap();
        assert_eq!(set.windows.len(), 16);
        assert!(set.windows.iter().all(|w| w.len() == 64));
        assert!(total.get() <= 16 * 64 * SPAN_BYTES_PER_TOKEN);
        let first_line =
            |w: &[u32]| -> usize { w[..6].iter().map(|t| char::from_u32(*t).unwrap()).collect::<String>().parse().unwrap() };
        assert!(first_line(&set.windows[0]) < 10 && first_line(&set.windows[15]) > 399_000);
    }

    #[test]
    fn builtin_text_gives_windows_of_every_domain() {
        let c = "builtin".parse::<DataSpec>().unwrap().load(Purpose::Calibration).unwrap();
        let set = calibration_windows(&c, &encoder(Some(1)), 64, 256).unwrap();
        assert_eq!(set.windows.len(), 64);
        assert!(set.windows_per_domain().iter().all(|n| (12..=14).contains(n)));
        let again = calibration_windows(&c, &encoder(Some(1)), 64, 256).unwrap();
        assert_eq!(set.windows, again.windows);
    }

    #[test]
    fn shares_grow_one_by_one() {
        let weights = [5.0, 3.0, 1.0];
        let mut before = vec![0; 3];
        for total in 1..40 {
            let now = shares(total, &weights, &[99; 3], Full::GiveToOthers);
            assert_eq!(now.iter().sum::<usize>(), total);
            assert!(now.iter().zip(&before).all(|(a, b)| a >= b));
            before = now;
        }
        assert_eq!(shares(9, &weights, &[99; 3], Full::GiveToOthers), [5, 3, 1]);
    }
}

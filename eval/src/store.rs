//! A reference's predictions in a file, so that a model can be compared with one that is not there.
//!
//! Of each scored position's distribution the file has the likeliest tokens, until what is left, the tail, is below 1e-4 or 1/80 of
//! the vocabulary is stored; then its mass, and up to 1/80 of the vocabulary as a sample of it. Log-probabilities are rounded to 1/512 nat,
//! ids are stored as differences, and each window is a zstd frame: at least 20 times less than the 2 bytes per token of the vocabulary
//! in llama.cpp's files, mostly far more.
//!
//! With the tail as one outcome of mass `t` the divergence `Σ p ln(p/q)` lacks `t · KL(p' ‖ q')`, where `p'` and `q'` are the
//! distributions within the tail. As both of them sum to 1, that is `Σ p' φ(q'/p')` with `φ(r) = r − 1 − ln r ≥ 0`. Tail tokens are drawn
//! with probabilities proportional to `p` (systematic sampling along the ids), so that the mean of `φ` over the sample expects
//! that sum: what is measured over many positions has no bias, and its noise is of the divergence's own order divided by the root
//! of the sample's size. A sum of logarithms would be as right on average, and an order of magnitude noisier. Since `φ` has no slope
//! at 1, rounding adds less than 1e-6.

use crate::metrics::{Position, log_sum};
use bitsmith_datasets::{EvalWindows, Style};
use bitsmith_formats::atomic::AtomicFile;
use bitsmith_formats::hash::sha256_bytes;
use bitsmith_formats::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// How a stored reference starts.
pub const MAGIC: &[u8; 7] = b"BSREF\0\0";
/// The version that follows.
pub const VERSION: u8 = 2;
/// Probability that need not be stored.
const TAIL: f64 = 1e-4;
/// At most this part of the vocabulary is stored as the likeliest tokens, and as much again as a sample of the others.
const STORED: usize = 80;
/// Steps of log-probabilities per nat.
const STEPS: f64 = 512.0;
/// What a frame may unpack to, times its own size.
const MAX_RATIO: usize = 1000;
/// The tail that is nothing.
const NO_TAIL: u16 = u16::MAX;

/// What the file says of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// The reference model.
    pub model: String,
    /// The DATA argument.
    pub data: String,
    /// SHA-256 of the text.
    pub sha256: String,
    /// Tokens per window.
    pub ctx: usize,
    /// How windows were cut.
    pub style: Style,
    /// Size of the vocabulary.
    pub vocab_size: usize,
    /// Number of windows.
    pub windows: usize,
}

/// The prediction of one token, as stored.
#[derive(Debug, Clone, PartialEq)]
pub struct Sparse {
    /// Negative log-likelihood of the token that came.
    nll: f64,
    /// The likeliest tokens: ids in ascending order, and their probabilities.
    entries: Vec<(u32, f64)>,
    /// Probability of all other tokens.
    tail: f64,
    /// Some of the others, drawn in proportion to their probabilities.
    sample: Vec<(u32, f64)>,
}

/// Whether a file holds a stored reference.
pub fn is_store(path: &Path) -> bool {
    let mut magic = [0; MAGIC.len()];
    File::open(path).and_then(|mut f| f.read_exact(&mut magic)).is_ok() && magic == *MAGIC
}

impl Sparse {
    /// Keeps what is worth keeping of a row of logits. `target` is the token that came.
    pub fn of(logits: &[f32], target: u32) -> Sparse {
        let z = log_sum(logits);
        let p = |id: u32| (f64::from(logits[id as usize]) - z).exp();
        let most = (logits.len() / STORED).max(1);
        let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
        let by_logit = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
        if most < ids.len() {
            ids.select_nth_unstable_by(most, by_logit);
            ids.truncate(most);
        }
        ids.sort_unstable_by(by_logit);
        let mut rest = 1.0;
        let mut kept = 0;
        while kept < ids.len() && rest > TAIL {
            rest -= p(ids[kept]);
            kept += 1;
        }
        ids.truncate(kept);
        ids.sort_unstable();
        let tail = match kept == logits.len() {
            true => 0.0,
            false => rest.max(0.0),
        };
        let sample = if tail > TAIL { sample(logits, z, &ids, tail, most) } else { Vec::new() };
        let entries = ids.into_iter().map(|id| (id, p(id))).collect();
        Sparse { nll: z - f64::from(logits[target as usize]), entries, tail, sample }
    }

    /// The rounded log-probabilities. Where an earlier token's would be the likeliest one's, it is a step less likely, so that the
    /// likeliest token is still the first of the likeliest.
    fn steps(&self) -> impl Iterator<Item = u16> {
        let (top, p) = self.entries.iter().copied().fold((0, 0.0), likelier);
        let most = to_steps(p);
        let stored =
            move |(id, p): &(u32, f64)| to_steps(*p) + u16::from(*id < top && to_steps(*p) == most && most < NO_TAIL - 1);
        self.entries.iter().map(stored).chain(self.sample.iter().map(|(_, p)| to_steps(*p)))
    }

    /// Negative log-likelihood of the token that came.
    pub fn nll(&self) -> f64 {
        self.nll
    }

    /// Compares a candidate's row of logits with the stored prediction.
    pub fn compare(&self, candidate: &[f32], target: u32) -> Position {
        let z = log_sum(candidate);
        // Rounding has moved the sum from 1.
        let total: f64 = self.entries.iter().map(|e| e.1).sum::<f64>() + self.tail;
        let q = |id: u32| (f64::from(candidate[id as usize]) - z).exp();
        let (mut kld, mut q_stored) = (0.0, 0.0);
        for &(id, p) in &self.entries {
            kld += divergence(p / total, q(id));
            q_stored += q(id);
        }
        let tail = self.tail / total;
        if tail > 0.0 {
            // What rounding leaves of a very confident candidate's tail may be less than what is known of it.
            let known: f64 = self.sample.iter().map(|s| q(s.0)).sum();
            let q_tail = (1.0 - q_stored).max(known).max(f64::MIN_POSITIVE);
            kld += divergence(tail, q_tail);
            let within: f64 = self.sample.iter().map(|&(id, p)| excess(q(id) / q_tail / (p / self.tail))).sum();
            kld += tail * within / self.sample.len().max(1) as f64;
        }
        let (top_against, confidence) = self.entries.iter().copied().fold((0, 0.0), likelier);
        let top =
            candidate.iter().enumerate().fold((0, f32::NEG_INFINITY), |a, (i, v)| if *v > a.1 { (i, *v) } else { a }).0 as u32;
        Position {
            nll_against: self.nll,
            nll: z - f64::from(candidate[target as usize]),
            kld,
            same_top: top == top_against,
            top_against,
            top,
            confidence: confidence / total,
        }
    }
}

/// The token with the greater probability, the first of equal ones.
fn likelier(a: (u32, f64), b: (u32, f64)) -> (u32, f64) {
    if b.1 > a.1 { b } else { a }
}

/// `φ(r) = r − 1 − ln r`, which no rounding makes negative.
fn excess(r: f64) -> f64 {
    (r - 1.0 - r.max(f64::MIN_POSITIVE).ln()).max(0.0)
}

/// An outcome's part of a divergence, `p ln(p/q) − p + q`: over all outcomes of two distributions the last terms cancel.
fn divergence(p: f64, q: f64) -> f64 {
    if p > 0.0 { p * excess(q / p) } else { q }
}

/// Up to `most` tokens that are not in `kept` (ascending), whose probabilities sum to `tail`: systematic sampling, in steps of equal
/// probability along the ids from a start that the row itself decides.
fn sample(logits: &[f32], z: f64, kept: &[u32], tail: f64, most: usize) -> Vec<(u32, f64)> {
    let mut kept = kept.iter().copied().peekable();
    let others = (0..logits.len() as u32).filter(|id| kept.next_if_eq(id).is_none());
    let others: Vec<(u32, f64)> = others.map(|id| (id, (f64::from(logits[id as usize]) - z).exp())).collect();
    // No token may be met twice.
    let largest = others.iter().fold(f64::MIN_POSITIVE, |a, o| a.max(o.1));
    let step = (tail / most as f64).max(largest);
    let mut next = step * (splitmix(z.to_bits()) >> 11) as f64 / (1u64 << 53) as f64;
    let mut sum = 0.0;
    let mut drawn = Vec::with_capacity(most);
    for (id, p) in others {
        sum += p;
        if sum > next && drawn.len() < most {
            drawn.push((id, p));
            next += step;
        }
    }
    drawn
}

/// Numbers without a pattern from numbers with one (Steele, Lea and Flood 2014).
fn splitmix(seed: u64) -> u64 {
    let mut x = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Writes a store, window by window.
pub(crate) struct Writer {
    file: AtomicFile,
    at: u64,
    offsets: Vec<u64>,
}

impl Writer {
    pub(crate) fn create(path: &Path, header: &Header) -> Result<Self> {
        let file = AtomicFile::create(path)?;
        let json = serde_json::to_vec(header).map_err(|e| Error::failed(e.to_string()))?;
        file.write_all_at(&[MAGIC.as_slice(), &[VERSION], &(json.len() as u64).to_le_bytes(), &json].concat(), 0)?;
        let at = 16 + json.len() as u64;
        Ok(Writer { file, at, offsets: vec![at] })
    }

    /// Adds the predictions of a window's scored tokens.
    pub(crate) fn push(&mut self, tokens: &[u32], positions: &[Sparse]) -> Result<()> {
        let frame = pack(&encode(tokens, positions)).map_err(|e| Error::failed(e.to_string()))?;
        self.file.write_all_at(&frame, self.at)?;
        self.at += frame.len() as u64;
        self.offsets.push(self.at);
        Ok(())
    }

    /// Gives the file its name; returns its size.
    pub(crate) fn finish(self) -> Result<u64> {
        let index: Vec<u8> = self.offsets.iter().chain([&self.at]).flat_map(|o| o.to_le_bytes()).collect();
        self.file.write_all_at(&index, self.at)?;
        self.file.commit()?;
        Ok(self.at + index.len() as u64)
    }
}

/// An opened store.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    header: Header,
    offsets: Vec<u64>,
    file: Mutex<File>,
}

impl Store {
    /// Opens a store.
    pub fn open(path: impl AsRef<Path>) -> Result<Store> {
        let path = path.as_ref();
        let mut file = File::open(path).map_err(|e| Error::read(path, e))?;
        let len = file.metadata().map_err(|e| Error::read(path, e))?.len();
        let damaged = || Error::corrupt("this is no stored reference, or it is cut short").file(path);
        let start = read_at(&mut file, 0, 16, len).ok_or_else(damaged)?;
        let (version, header_len) = match start.strip_prefix(MAGIC) {
            Some([version, n @ ..]) => (*version, u64_at(n, 0)),
            _ => return Err(damaged()),
        };
        if version != VERSION {
            return Err(Error::unsupported(format!("a stored reference of version {version}; this is for version {VERSION}"))
                .file(path)
                .hint("make it again with --save-reference"));
        }
        let header = read_at(&mut file, 16, header_len, len).ok_or_else(damaged)?;
        let header: Header = serde_json::from_slice(&header).map_err(|_| damaged())?;
        let trailer = read_at(&mut file, len.saturating_sub(8), 8, len).ok_or_else(damaged)?;
        let (index, end) = (u64_at(&trailer, 0), len - 8);
        let offsets = index.le(&end).then(|| read_at(&mut file, index, end - index, len)).flatten().ok_or_else(damaged)?;
        let offsets: Vec<u64> = offsets.chunks_exact(8).map(|b| u64_at(b, 0)).collect();
        let rising = offsets.windows(2).all(|w| w[0] <= w[1]) && offsets.last() == Some(&index);
        if !rising || header.windows.checked_add(1) != Some(offsets.len()) || header.vocab_size == 0 {
            return Err(damaged());
        }
        Ok(Store { path: path.to_path_buf(), header, offsets, file: Mutex::new(file) })
    }

    /// What the file says of itself.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Checks that it has these windows, or more.
    pub(crate) fn check(&self, eval: &EvalWindows) -> Result<()> {
        let h = &self.header;
        let cut = (h.ctx, h.style) == (eval.set.ctx, eval.style);
        let refuse = |why: String| {
            let hint = format!("it was made of {} with windows of {} tokens, {} style", h.data, h.ctx, h.style);
            Err(Error::usage(why).file(&self.path).hint(hint))
        };
        if !cut || eval.set.windows.len() > h.windows {
            return refuse(format!("the stored reference does not have {} windows of this text", eval.set.windows.len()));
        }
        for (w, tokens) in eval.set.windows.iter().enumerate() {
            if self.frame(w)?.get(..8) != Some(&tag(tokens)) {
                return refuse(format!("window {w} of the text has other tokens than the stored reference saw"));
            }
        }
        Ok(())
    }

    /// The predictions of a window's scored tokens.
    pub fn window(&self, window: usize) -> Result<Vec<Sparse>> {
        let damaged = || Error::corrupt(format!("the stored reference is damaged in window {window}")).file(&self.path);
        decode(&self.frame(window)?, self.header.style.scored(self.header.ctx).len(), self.header.vocab_size).ok_or_else(damaged)
    }

    fn frame(&self, window: usize) -> Result<Vec<u8>> {
        let damaged = || Error::corrupt(format!("the stored reference is damaged in window {window}")).file(&self.path);
        let (from, to) = (self.offsets[window], self.offsets[window + 1]);
        let mut file = self.file.lock().unwrap_or_else(|e| e.into_inner());
        let frame = read_at(&mut file, from, to - from, to).ok_or_else(damaged)?;
        // Nothing larger comes from a sound file, whose probabilities cannot be packed much tighter than they are.
        let limit = 8 + self.header.ctx.saturating_mul(16 + 14 * (self.header.vocab_size / STORED).max(1));
        unpack(&frame, limit.min(frame.len().saturating_mul(MAX_RATIO))).ok_or_else(damaged)
    }
}

/// A frame with a checksum: a flipped bit shall not become another prediction.
fn pack(bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut packer = zstd::stream::Encoder::new(Vec::new(), 9)?;
    packer.include_checksum(true)?;
    packer.write_all(bytes)?;
    packer.finish()
}

/// The contents of a frame, if it is sound and they are no more than `limit` bytes.
fn unpack(frame: &[u8], limit: usize) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let frames = zstd::stream::Decoder::new(frame).ok()?;
    frames.take(limit as u64 + 1).read_to_end(&mut bytes).ok()?;
    (bytes.len() <= limit).then_some(bytes)
}

/// `n` bytes at `at` of a file of length `len`, if they are there.
fn read_at(file: &mut File, at: u64, n: u64, len: u64) -> Option<Vec<u8>> {
    at.checked_add(n).filter(|end| *end <= len)?;
    let mut bytes = vec![0; usize::try_from(n).ok()?];
    file.seek(SeekFrom::Start(at)).and_then(|_| file.read_exact(&mut bytes)).ok().map(|()| bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

/// Tells windows apart.
fn tag(tokens: &[u32]) -> [u8; 8] {
    let bytes: Vec<u8> = tokens.iter().flat_map(|t| t.to_le_bytes()).collect();
    let mut tag = [0; 8];
    tag.copy_from_slice(&sha256_bytes(&bytes).as_bytes()[..8]);
    tag
}

fn to_steps(p: f64) -> u16 {
    match p > 0.0 {
        true => (-p.ln() * STEPS).round().clamp(0.0, f64::from(NO_TAIL - 1)) as u16,
        false => NO_TAIL,
    }
}

fn from_steps(steps: u16) -> f64 {
    if steps == NO_TAIL { 0.0 } else { (-f64::from(steps) / STEPS).exp() }
}

/// Kind by kind, because like compresses with like: tag, negative log-likelihoods, tails, numbers of likeliest and of sampled tokens,
/// differences of ids, upper and lower bytes of log-probabilities.
fn encode(tokens: &[u32], positions: &[Sparse]) -> Vec<u8> {
    let mut out = tag(tokens).to_vec();
    positions.iter().for_each(|p| out.extend((p.nll as f32).to_le_bytes()));
    positions.iter().for_each(|p| out.extend(to_steps(p.tail).to_le_bytes()));
    positions.iter().for_each(|p| varint(p.entries.len() as u32, &mut out));
    positions.iter().for_each(|p| varint(p.sample.len() as u32, &mut out));
    for list in positions.iter().flat_map(|p| [&p.entries, &p.sample]) {
        let mut last = 0;
        for (id, _) in list {
            varint(id - last, &mut out);
            last = *id;
        }
    }
    let steps = || positions.iter().flat_map(Sparse::steps);
    out.extend(steps().map(|s| (s >> 8) as u8));
    out.extend(steps().map(|s| s as u8));
    out
}

fn decode(bytes: &[u8], scored: usize, vocab_size: usize) -> Option<Vec<Sparse>> {
    let mut rest = bytes.get(8..)?;
    let mut take = |n: usize| {
        let (head, tail) = rest.split_at_checked(n)?;
        rest = tail;
        Some(head)
    };
    let nlls: Vec<f64> = take(4 * scored)?.as_chunks::<4>().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect();
    let tails: Vec<f64> = take(2 * scored)?.as_chunks::<2>().0.iter().map(|b| from_steps(u16::from_le_bytes(*b))).collect();
    let counts: Vec<usize> = (0..2 * scored).map(|_| read_varint(&mut rest).map(|n| n as usize)).collect::<Option<_>>()?;
    let total = counts.iter().try_fold(0usize, |a, n| a.checked_add(*n)).filter(|n| *n <= rest.len())?;
    let (likeliest, sampled) = counts.split_at(scored);
    let mut ids = Vec::with_capacity(total);
    for n in likeliest.iter().zip(sampled).flat_map(|(a, b)| [*a, *b]) {
        let mut last = 0u32;
        for _ in 0..n {
            last = last.checked_add(read_varint(&mut rest)?).filter(|id| (*id as usize) < vocab_size)?;
            ids.push(last);
        }
    }
    let (high, low) = rest.split_at_checked(total)?;
    let steps = high.iter().zip(low).map(|(h, l)| from_steps(u16::from_be_bytes([*h, *l])));
    if low.len() != total || nlls.iter().any(|n| !n.is_finite()) {
        return None;
    }
    let mut entries = ids.into_iter().zip(steps);
    let mut take = |n: &usize| entries.by_ref().take(*n).collect::<Vec<_>>();
    let counts = likeliest.iter().zip(sampled);
    let sparse = |((nll, tail), (a, b))| Sparse { nll, entries: take(a), tail, sample: take(b) };
    Some(nlls.into_iter().zip(tails).zip(counts).map(sparse).collect())
}

fn varint(mut n: u32, out: &mut Vec<u8>) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

fn read_varint(bytes: &mut &[u8]) -> Option<u32> {
    let mut n = 0u32;
    for shift in (0..35).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        n |= u32::from(first & 0x7f).checked_shl(shift)?;
        if first & 0x80 == 0 {
            return Some(n);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics;
    use crate::results::tests::eval_windows;

    /// Logits as models have them, `spread` apart, and a candidate's that differ by `noise`.
    fn rows(vocab: usize, seed: u64, spread: f32, noise: f32) -> (Vec<f32>, Vec<f32>) {
        let mut state = seed;
        let mut next = || {
            // The sum of uniform numbers is bell-shaped enough.
            let sum: f32 = (0..4)
                .map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
                })
                .sum();
            sum * 1.73
        };
        let reference: Vec<f32> = (0..vocab).map(|_| spread * next()).collect();
        let candidate = reference.iter().map(|r| r + noise * next()).collect();
        (reference, candidate)
    }

    #[test]
    fn divergence_is_close_to_the_exact_one_and_the_file_small() {
        // Confident and unsure predictions, large and small changes.
        for (vocab, spread, noise) in [(4096, 3.0, 0.05), (32_000, 4.0, 0.3), (4096, 1.5, 0.02), (32_000, 2.5, 0.01)] {
            // As many positions as bring the sample's noise well below what is allowed.
            let positions = 4_000_000 / vocab;
            let (mut exact, mut stored, mut bytes) = (0.0, 0.0, 0);
            for seed in 0..positions as u64 {
                let (r, c) = rows(vocab, seed, spread, noise);
                let target = (seed * 37 % vocab as u64) as u32;
                let sparse = Sparse::of(&r, target);
                let frame = pack(&encode(&[1, 2], std::slice::from_ref(&sparse))).unwrap();
                bytes += frame.len();
                let back = decode(&unpack(&frame, 1 << 20).unwrap(), 1, vocab).unwrap();
                let (want, got) = (metrics::compare(&r, &c, target), back[0].compare(&c, target));
                assert!((got.nll - want.nll).abs() < 1e-9 && (got.nll_against - want.nll_against).abs() < 1e-5);
                assert_eq!((got.top, got.top_against, got.same_top), (want.top, want.top_against, want.same_top));
                assert!((got.confidence - want.confidence).abs() < 0.003 * want.confidence);
                exact += want.kld;
                stored += got.kld;
            }
            assert!((stored / exact - 1.0).abs() < 0.01, "{vocab} {spread} {noise}: {stored} for {exact}");
            let dense = 2 * vocab * positions;
            assert!(bytes * 20 < dense, "{vocab} {spread}: {} times", dense as f64 / bytes as f64);
        }
    }

    #[test]
    fn equal_models_do_not_diverge() {
        let (r, _) = rows(4096, 1, 3.0, 0.0);
        let sparse = Sparse::of(&r, 3);
        let back = decode(&encode(&[], std::slice::from_ref(&sparse)), 1, 4096).unwrap();
        assert!(back[0].compare(&r, 3).kld < 6e-7, "{}", back[0].compare(&r, 3).kld);
    }

    #[test]
    fn files_are_checked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.bsref");
        let mut eval = eval_windows(&["a"], &[0, 0]);
        eval.set.ctx = 8;
        eval.set.windows = vec![(0..8).collect(), (8..16).collect()];
        let header = Header {
            model: "m".into(),
            data: "d".into(),
            sha256: "s".into(),
            ctx: 8,
            style: eval.style,
            vocab_size: 64,
            windows: 2,
        };
        let mut writer = Writer::create(&path, &header).unwrap();
        let window: Vec<Sparse> = (0..eval.scored().len()).map(|i| Sparse::of(&rows(64, i as u64, 3.0, 0.0).0, 1)).collect();
        eval.set.windows.iter().for_each(|tokens| writer.push(tokens, &window).unwrap());
        assert_eq!(writer.finish().unwrap(), std::fs::metadata(&path).unwrap().len());
        assert!(is_store(&path) && !is_store(dir.path()));
        let store = Store::open(&path).unwrap();
        assert_eq!(store.header(), &header);
        store.check(&eval).unwrap();
        assert_eq!(store.window(1).unwrap().len(), window.len());
        // Other tokens, other windows.
        let mut other = eval.clone();
        other.set.windows[1][0] = 3;
        assert!(store.check(&other).unwrap_err().message.contains("window 1"));
        other.set.ctx = 16;
        assert!(store.check(&other).is_err());
        // Every cut and every changed byte gives an error or other numbers, never a panic.
        let whole = std::fs::read(&path).unwrap();
        for at in 0..whole.len() {
            for damaged in [whole[..at].to_vec(), [&whole[..at], &[whole[at] ^ 0x55], &whole[at + 1..]].concat()] {
                std::fs::write(&path, damaged).unwrap();
                if let Ok(store) = Store::open(&path) {
                    let _ = store.check(&eval).map(|()| (0..2).map(|w| store.window(w)).collect::<Vec<_>>());
                }
            }
        }
    }
}

//! ggml's encoder of the 2-bit codebook formats, step by step as ggml does it (`ggml-quants.c`: `quantize_row_iq2_xxs_impl`,
//! `quantize_row_iq2_xs_impl`, `quantize_row_iq2_s_impl`): for each sub-block a row of trial scales, for each trial the points,
//! and of all trials the one whose points correlate best with the weights' magnitudes.
//!
//! Trials do not depend on each other until the best is chosen, so lanes are trials; the neighbours of a point do not either, so
//! there lanes are neighbours; and where one chain of operations must be walked for each sub-block, lanes are sub-blocks.

use super::book8::{Block, GROUPS, LEN, Marks, SCALES, Shape};
use super::codebook8::{Codebook, Terms, WIDTH, fourfold, nearest_one, squares, weigh};
use super::search;
use crate::simd::{IntLanes, Kernel, Lanes, MAX_LANES, MaskLanes, dispatch, nearest};
use std::array::from_fn;

/// What the three formats do differently.
pub(super) struct Rules {
    /// What the mean square counts for in the weights with importance.
    pub sigma: f32,
    /// What it counts for in those without; `None`: importance 1.
    pub plain: Option<f32>,
    /// Sub-blocks without a magnitude as large as this count as zero.
    pub least: f32,
    /// Trials lie this many tenths on both sides of the first scale.
    pub reach: i32,
    /// Whether the first scale is a search's, and all points are chosen anew for the best trial's scale. If not, the first scale
    /// is the largest magnitude's, and only points from neighbours' lists are chosen anew.
    pub thorough: bool,
    /// What the block's scale is multiplied by before it is stored.
    pub shrink: f32,
    /// Whether a block whose scales are all zero keeps its points and signs.
    pub keep: bool,
}

/// The most weights and groups of a sub-block, and the most trials, filled up for any lanes.
const MAX_SUB: usize = 32;
const MAX_PARTS: usize = MAX_SUB / WIDTH;
const MAX_TRIALS: usize = 32;
/// The value of level 2.
const TOP: f32 = 5.0;
/// Values of the levels as the encoder has them; the fourth is never picked.
const VALUES: Terms = {
    let mut values = [1.0; 4 * WIDTH];
    let mut i = 0;
    while i < WIDTH {
        values[4 * i + 1] = 3.0;
        values[4 * i + 2] = TOP;
        i += 1;
    }
    values
};

/// The points, signs and scale of one sub-block.
struct Found {
    scale: f32,
    levels: [u16; MAX_PARTS],
    /// Whether `scale` came out negative, so that all signs change.
    flip: bool,
}

/// Encodes consecutive super-blocks of a row.
pub(super) fn encode(shape: Shape, rules: &Rules, x: &[f32], importance: Option<&[f32]>, blocks: &mut [Block]) {
    dispatch(Encode { shape, rules, x, importance, blocks });
}

struct Encode<'a> {
    shape: Shape,
    rules: &'a Rules,
    x: &'a [f32],
    importance: Option<&'a [f32]>,
    blocks: &'a mut [Block],
}

impl Kernel for Encode<'_> {
    type Output = ();

    #[inline(always)]
    fn run<F: Lanes>(self) {
        for (i, (x, block)) in self.x.chunks_exact(LEN).zip(self.blocks).enumerate() {
            *block = encode_block::<F>(&self.shape, self.rules, x, self.importance.map(|q| &q[i * LEN..][..LEN]));
        }
    }
}

#[inline(always)]
fn encode_block<F: Lanes>(shape: &Shape, rules: &Rules, x: &[f32], importance: Option<&[f32]>) -> Block {
    let book: &Codebook = shape.book;
    let mut weights = [0f32; LEN];
    weigh::<F>(x, importance, rules.sigma, rules.plain, &mut weights);
    let mut magnitudes = [0f32; LEN];
    let mut signs = magnitudes_and_signs::<F>(x, &mut magnitudes);
    if shape.marks == Marks::EvenSigns {
        for (g, signs) in signs.iter_mut().enumerate() {
            if signs.count_ones() % 2 == 1 {
                let at = WIDTH * g;
                let i = cheapest(&x[at..][..WIDTH], &weights[at..][..WIDTH]);
                magnitudes[at + i] = -magnitudes[at + i];
                *signs ^= 1 << i;
            }
        }
    }
    let (subs, parts) = (LEN / shape.sub, shape.sub / WIDTH);
    let mut largest = [0f32; SCALES];
    for (largest, x) in largest.iter_mut().zip(magnitudes.chunks_exact(shape.sub)) {
        *largest = x.iter().fold(x[0], |m, &x| if m > x { m } else { x });
    }
    let mut starts = largest.map(|m| m / TOP);
    if rules.thorough {
        positive_scales::<F>(&magnitudes, &weights, &mut starts);
    }

    let mut block = Block::ZERO;
    let mut scales = [0f32; SCALES];
    for s in 0..subs {
        let at = s * shape.sub;
        // `thorough` starts may be zero or negative where a magnitude of opposite sign weighs most.
        if largest[s] < rules.least || (rules.thorough && starts[s] * 3.0 <= 0.0) {
            continue;
        }
        let (x, w) = (&magnitudes[at..][..shape.sub], &weights[at..][..shape.sub]);
        let found = search_scale::<F>(book, rules, x, w, starts[s], largest[s]);
        for (p, &levels) in found.levels[..parts].iter().enumerate() {
            let g = s * parts + p;
            // Points of the book all; but for NaN, which leaves levels as they were.
            block.points[g] = book.index(levels).unwrap_or(0);
            block.marks[g] = if found.flip { !signs[g] } else { signs[g] };
        }
        scales[s] = found.scale;
    }

    let largest = scales.iter().fold(0f32, |m, &s| if m > s { m } else { s });
    if largest == 0.0 {
        return if rules.keep { block } else { Block::ZERO };
    }
    let d = largest / 31.0;
    block.d = d * rules.shrink;
    let inverse = 1.0 / d;
    for (stored, &scale) in block.scales.iter_mut().zip(&scales[..subs]) {
        *stored = nearest_one(0.5 * (inverse * scale - 1.0)).clamp(0, 15) as u8;
    }
    block
}

/// The magnitudes, and a bit for each weight below zero.
#[inline(always)]
fn magnitudes_and_signs<F: Lanes>(x: &[f32], magnitudes: &mut [f32]) -> [u8; GROUPS] {
    let mut signs = [0u8; GROUPS];
    for at in (0..LEN).step_by(F::N) {
        let x = F::load(&x[at..]);
        let positive = F::zero().le(x);
        F::select(positive, x, F::zero() - x).store(&mut magnitudes[at..]);
        let bits = (!positive).bits() << (at % WIDTH);
        for (signs, k) in signs[at / WIDTH..].iter_mut().zip(0..F::N.div_ceil(WIDTH)) {
            *signs |= (bits >> (8 * k)) as u8;
        }
    }
    signs
}

/// The first weight whose change of sign costs least.
#[inline(always)]
fn cheapest(x: &[f32], weights: &[f32]) -> usize {
    let cost: [f32; WIDTH] = from_fn(|i| weights[i] * x[i] * x[i]);
    let (mut at, mut least) = (0, cost[0]);
    for (i, &cost) in cost.iter().enumerate().skip(1) {
        if cost < least {
            (at, least) = (i, cost);
        }
    }
    at
}

/// The first scales of sub-blocks of 32; lanes are sub-blocks.
#[inline(always)]
fn positive_scales<F: Lanes>(x: &[f32], weights: &[f32], scales: &mut [f32; SCALES]) {
    const SUBS: usize = LEN / MAX_SUB;
    for first in (0..SUBS).step_by(F::N) {
        let (mut xs, mut ws) = ([F::zero(); MAX_SUB], [F::zero(); MAX_SUB]);
        for (all, lanes) in [(x, &mut xs), (weights, &mut ws)] {
            for (i, lanes) in lanes.iter_mut().enumerate() {
                let mut across = [0f32; MAX_LANES];
                for (s, across) in across.iter_mut().enumerate().take(F::N.min(SUBS - first)) {
                    *across = all[MAX_SUB * (first + s) + i];
                }
                *lanes = F::load(&across);
            }
        }
        let mut codes = [F::Int::splat(0); MAX_SUB];
        let mut lanes = [0f32; MAX_LANES];
        search::positive(&xs, &ws, 4, &mut codes).store(&mut lanes);
        for (scale, lane) in scales[first..SUBS].iter_mut().zip(lanes).take(F::N) {
            *scale = lane;
        }
    }
}

/// A sub-block's magnitudes and weights, and what follows from them for all trials, four numbers for each weight.
struct Sub<'a> {
    book: &'a Codebook,
    x: &'a [f32],
    /// The magnitudes, and the roots of the weights, fourfold.
    x4: [f32; 4 * MAX_SUB],
    roots: [f32; 4 * MAX_SUB],
    /// weight · x · value and weight · value² for every level.
    xv: [f32; 4 * MAX_SUB],
    vv: [f32; 4 * MAX_SUB],
}

/// Searches the scale of a sub-block.
#[inline(always)]
fn search_scale<F: Lanes>(book: &Codebook, rules: &Rules, x: &[f32], weights: &[f32], start: f32, largest: f32) -> Found {
    let parts = x.len() / WIDTH;
    let sub = Sub::new::<F>(book, x, weights);
    let divisor = if rules.thorough { start * 3.0 } else { largest };
    let count = 2 * rules.reach as usize + 1;
    let mut inverses = [0f32; MAX_TRIALS];
    for (inverse, step) in inverses.iter_mut().zip(-rules.reach..=rules.reach) {
        *inverse = (TOP + step as f32 * 0.1) / divisor;
    }
    let mut levels = [[0i32; MAX_TRIALS]; MAX_PARTS];
    let mut off = [[false; MAX_TRIALS]; MAX_PARTS];
    for (p, (levels, off)) in levels.iter_mut().zip(&mut off).take(parts).enumerate() {
        for at in (0..count).step_by(F::N) {
            sub.round(p, F::load(&inverses[at..])).store(&mut levels[at..]);
        }
        for ((levels, off), inverse) in levels.iter_mut().zip(off).zip(inverses).take(count) {
            if book.index(*levels as u16).is_none() {
                *levels = sub.neighbour::<F>(p, *levels as u16, 1.0 / inverse) as i32;
                *off = true;
            }
        }
    }
    let (mut sum_qx, mut sum_q2) = ([0f32; MAX_TRIALS], [0f32; MAX_TRIALS]);
    for at in (0..count).step_by(F::N) {
        let (qx, q2) = sub.sums::<F>(&levels[..parts], at);
        qx.store(&mut sum_qx[at..]);
        q2.store(&mut sum_q2[at..]);
    }
    let (mut scale, mut best, mut chosen) = (start, 0f32, None);
    for (t, (&qx, &q2)) in sum_qx.iter().zip(&sum_q2).take(count).enumerate() {
        if q2 > 0.0 && qx * qx > best * q2 {
            scale = qx / q2;
            best = scale * qx;
            chosen = Some(t);
        }
    }
    let mut found: [u16; MAX_PARTS] = from_fn(|p| chosen.map_or(0, |t| levels[p][t] as u16));
    let again: [bool; MAX_PARTS] = from_fn(|p| p < parts && (rules.thorough || chosen.is_some_and(|t| off[p][t])));
    if again.contains(&true) && scale > 0.0 {
        let inverse = 1.0 / scale;
        for (p, found) in found.iter_mut().enumerate().filter(|&(p, _)| again[p]) {
            *found = sub.round_one(p, inverse);
            if book.index(*found).is_none() {
                *found = sub.neighbour::<F>(p, *found, scale);
            }
        }
        let (qx, q2) = sub.sums_one(&found[..parts]);
        if q2 > 0.0 {
            scale = qx / q2;
        }
    }
    Found { scale: scale.abs(), levels: found, flip: scale < 0.0 }
}

impl<'a> Sub<'a> {
    #[inline(always)]
    fn new<F: Lanes>(book: &'a Codebook, x: &'a [f32], weights: &[f32]) -> Self {
        let [mut x4, mut w4, mut roots, mut xv, mut vv] = [[0f32; 4 * MAX_SUB]; 5];
        fourfold(x, &mut x4);
        fourfold(weights, &mut w4);
        for at in (0..4 * x.len()).step_by(F::N) {
            let (x, w, v) = (F::load(&x4[at..]), F::load(&w4[at..]), F::load(&VALUES[at % VALUES.len()..]));
            w.sqrt().store(&mut roots[at..]);
            (w * x * v).store(&mut xv[at..]);
            (w * v * v).store(&mut vv[at..]);
        }
        Sub { book, x, x4, roots, xv, vv }
    }
    /// The levels nearest to the weights of part `p`; lanes are scales.
    #[inline(always)]
    fn round<F: Lanes>(&self, p: usize, inverse: F) -> F::Int {
        let mut levels = F::Int::splat(0);
        for &x in self.x[WIDTH * p..][..WIDTH].iter().rev() {
            let level = nearest(F::splat(0.5) * (inverse * F::splat(x) - F::splat(1.0)));
            levels = levels.shl::<2>() | level.min(F::Int::splat(2)).max(F::Int::splat(0));
        }
        levels
    }
    #[inline(always)]
    fn round_one(&self, p: usize, inverse: f32) -> u16 {
        let level = |&x: &f32| nearest_one(0.5 * (inverse * x - 1.0)).clamp(0, 2) as u16;
        self.x[WIDTH * p..][..WIDTH].iter().rev().fold(0, |levels, x| levels << 2 | level(x))
    }
    #[inline(always)]
    fn neighbour<F: Lanes>(&self, p: usize, levels: u16, scale: f32) -> u16 {
        let at = 4 * WIDTH * p;
        self.book.neighbour::<F>(levels, &squares::<F>(&VALUES, scale, &self.x4[at..], &self.roots[at..]))
    }
    /// Σ weight · x · value and Σ weight · value²; lanes are trials from `first` on, with the levels of each part.
    #[inline(always)]
    fn sums<F: Lanes>(&self, levels: &[[i32; MAX_TRIALS]], first: usize) -> (F, F) {
        let (mut qx, mut q2) = (F::zero(), F::zero());
        for (levels, (xv, vv)) in levels.iter().zip(self.xv.chunks_exact(4 * WIDTH).zip(self.vv.chunks_exact(4 * WIDTH))) {
            let mut levels = F::Int::load(&levels[first..]);
            for (xv, vv) in xv.chunks_exact(4).zip(vv.chunks_exact(4)) {
                qx = qx + F::pick(F::quad(&[xv[0], xv[1], xv[2], xv[3]]), levels);
                q2 = q2 + F::pick(F::quad(&[vv[0], vv[1], vv[2], vv[3]]), levels);
                levels = levels.shr::<2>();
            }
        }
        (qx, q2)
    }
    /// The same for one choice of levels.
    #[inline(always)]
    fn sums_one(&self, levels: &[u16]) -> (f32, f32) {
        let (mut qx, mut q2) = (0f32, 0f32);
        for i in 0..WIDTH * levels.len() {
            let at = 4 * i + (levels[i / WIDTH] >> (2 * (i % WIDTH)) & 3) as usize;
            qx += self.xv[at];
            q2 += self.vv[at];
        }
        (qx, q2)
    }
}

//! Importance-weighted fit of a K-quant super-block.
//!
//! 1. Every sub-block by itself: several good real-valued lines ([`Problem::search`]).
//! 2. Candidates for (d, dmin): those that land the sub-blocks' best steps (minima) closest to integers, weighed by how much the
//!    error curves there; the best ones first, for the others are given up as soon as they cannot win.
//! 3. For each candidate, every sub-block chooses its integers by true error: from each of its lines, the nearest integers,
//!    then downhill over neighbours.
//! 4. With the integers and codes fixed, least squares for (d, dmin); with these, 3 again from where it stands; until nothing
//!    improves.

use super::fit::{self, Line, Moments, Problem};
use super::float::saturate;
use super::superblock::{INTS, LEN, Layout, Scales};
use crate::codec::Float;
use crate::kernels;
use std::marker::PhantomData;

/// Lines per sub-block that step 3 starts from.
const LINES: usize = 3;
/// Density of the search for them.
const STRIDE: f32 = 0.8;
/// Candidates for d, and for dmin, that step 3 tries.
const CANDIDATES: usize = 3;
/// The same near scales that are known.
const CANDIDATES_NEAR: usize = 2;
/// Rounds of step 4.
const ROUNDS: usize = 4;
/// Errors that are remembered, and in how wide a window around the first pair of integers.
const MEMORY: usize = 64;
const WINDOW: usize = 16;

/// A sub-block's problem and what is known about it.
struct Sub<'a> {
    problem: Problem<'a>,
    weight: f64,
    lines: Vec<(Line, f32)>,
    /// How the error curves along the step (the bias following) and along the bias, at the best line.
    curvature: (f64, f64),
}

/// The best scales found for `x`.
pub(super) fn fit<L: Layout>(x: &[f32], importance: &[f32]) -> Scales<L> {
    let (mut xs, mut ws) = ([0f32; LEN], [0f32; LEN]);
    let (xs, ws) = fit::prepare(x, importance, &mut xs, &mut ws);
    let (mut best, mut least) = (Scales::new(0.0, 0.0, [0; INTS]), f32::INFINITY);
    for negative in [false, true] {
        // A negative dmin raises every sub-block: of use where hardly any weight is negative.
        if negative && (!Scales::<L>::MINS || x.iter().filter(|&&x| x < 0.0).count() > LEN / 8) {
            break;
        }
        let limits = limits::<L>(negative);
        let subs: Vec<Sub> = problems::<L>(xs, ws).map(|p| Sub::new(p, limits, p.search(limits, STRIDE, LINES))).collect();
        try_starts(&subs, candidates::<L>(&subs, negative, CANDIDATES), &mut best, &mut least);
    }
    best
}

/// The best scales found near `start`, which suited other weights much like `x`.
pub(super) fn fit_near<L: Layout>(start: Scales<L>, x: &[f32], importance: &[f32]) -> Scales<L> {
    let (mut xs, mut ws) = ([0f32; LEN], [0f32; LEN]);
    let (xs, ws) = fit::prepare(x, importance, &mut xs, &mut ws);
    let mut best = start;
    let mut least = total(&start, xs, ws);
    let negative = start.dmin < 0.0;
    let limits = limits::<L>(negative);
    let near = |(s, p): (usize, Problem<'_>)| p.search_near(line(&start, s), limits, LINES);
    let subs: Vec<Sub> = problems::<L>(xs, ws).enumerate().map(|(s, p)| Sub::new(p, limits, near((s, p)))).collect();
    let starts = candidates::<L>(&subs, negative, CANDIDATES_NEAR);
    try_starts(&subs, starts.chain([(start.d, start.dmin)]), &mut best, &mut least);
    best
}

fn try_starts<L: Layout>(subs: &[Sub], starts: impl Iterator<Item = (f32, f32)>, best: &mut Scales<L>, least: &mut f32) {
    for (d, dmin) in starts {
        let mut scales = Scales::new(d, dmin, [0; INTS]);
        if let Some(error) = descend(subs, &mut scales, *least)
            && error < *least
        {
            (*least, *best) = (error, scales);
        }
    }
}

/// The sub-blocks' problems.
fn problems<'a, L: Layout>(xs: &'a [f32], ws: &'a [f32]) -> impl Iterator<Item = Problem<'a>> {
    xs.chunks_exact(L::SUB).zip(ws.chunks_exact(L::SUB)).map(|(x, w)| {
        let zero = L::ZERO as f32;
        Problem { x, w, low: -zero, high: L::MAX as f32 - zero }
    })
}

/// The super-block's error.
fn total<L: Layout>(scales: &Scales<L>, xs: &[f32], ws: &[f32]) -> f32 {
    problems::<L>(xs, ws).enumerate().map(|(s, p)| p.error(line(scales, s))).sum()
}

/// What biases dmin of this sign allows.
fn limits<L: Layout>(negative: bool) -> (f32, f32) {
    match (Scales::<L>::MINS, negative) {
        (false, _) => (0.0, 0.0),
        (true, false) => (f32::MIN, 0.0),
        (true, true) => (0.0, f32::MAX),
    }
}

/// The line of sub-block `s`.
fn line<L: Layout>(scales: &Scales<L>, s: usize) -> Line {
    Line { step: scales.step(s), bias: -scales.min(s) }
}

impl<'a> Sub<'a> {
    fn new(problem: Problem<'a>, limits: (f32, f32), lines: Vec<(Line, f32)>) -> Self {
        let weight = problem.weight();
        let m = problem.moments(lines[0].0);
        let along_step = if weight > 0.0 { m.cc - m.c * m.c / weight } else { 0.0 };
        let curvature = if limits.0 == limits.1 { (m.cc, 0.0) } else { (along_step, weight) };
        Sub { problem, weight, lines, curvature }
    }
}

/// Pairs (d, dmin), exact in f16, to start from: `count` of each, those pairs first that look best.
fn candidates<L: Layout>(subs: &[Sub], negative: bool, count: usize) -> impl Iterator<Item = (f32, f32)> {
    let steps: Vec<(f64, f64)> = subs.iter().map(|s| (s.lines[0].0.step as f64, s.curvature.0)).collect();
    let mins: Vec<(f64, f64)> = subs.iter().map(|s| (s.lines[0].0.bias.abs() as f64, s.curvature.1)).collect();
    let ds = spacings(&steps, L::SCALES, count);
    let dmins = if Scales::<L>::MINS { spacings(&mins, (0, L::MAX_MIN), count) } else { vec![(0.0, 0.0)] };
    let pair = |d: &(f64, f64), dmin: &(f64, f64)| (d.0 + dmin.0, d.1 as f32, dmin.1 as f32);
    let mut pairs: Vec<(f64, f32, f32)> = ds.iter().flat_map(|d| dmins.iter().map(move |dmin| pair(d, dmin))).collect();
    pairs.sort_by(|a, b| a.0.total_cmp(&b.0));
    let sign = if negative { -1.0 } else { 1.0 };
    pairs.into_iter().map(move |(_, d, dmin)| (saturate(Float::F16, d), sign * saturate(Float::F16, dmin)))
}

/// The `count` spacings whose multiples (by integers in `range`) approximate `values`, pairs of value and curvature, best. Pairs of what
/// is missed and the spacing.
fn spacings(values: &[(f64, f64)], range: (i16, i16), count: usize) -> Vec<(f64, f64)> {
    let (low, high) = (range.0 as f64, range.1 as f64);
    let extreme = values.iter().map(|v| v.0).fold(0f64, |m, v| if v.abs() > m.abs() { v } else { m });
    if extreme == 0.0 {
        return vec![(0.0, 0.0)];
    }
    let cost = |spacing: f64| kernels::spacing_cost(values, spacing, low, high);
    // The extreme at full scale, a little beyond it (cut off), and well below.
    let mut found: Vec<(f64, f64)> = (-8..=40)
        .map(|i| {
            let full = if extreme < 0.0 && low < 0.0 { low } else { high };
            let spacing = extreme / (full * (1.0 - 0.006 * i as f64));
            (cost(spacing), spacing)
        })
        .collect();
    found.sort_by(|a, b| a.0.total_cmp(&b.0));
    found.truncate(count);
    found
}

/// Steps 3 and 4 from the given (d, dmin). Returns the error, or nothing once step 3 is known to end above `limit`: step 4 hardly ever
/// makes up for that.
fn descend<L: Layout>(subs: &[Sub], scales: &mut Scales<L>, limit: f32) -> Option<f32> {
    let mut errors = [0f32; INTS];
    // No integers do better than lines that need none.
    let mut bound = subs.iter().map(|s| s.lines[0].1).sum::<f32>();
    for (s, sub) in subs.iter().enumerate() {
        errors[s] = f32::INFINITY;
        let mut starts = [(0, 0); LINES];
        let starts = &mut starts[..sub.lines.len()];
        starts.iter_mut().zip(&sub.lines).for_each(|(start, (line, _))| *start = nearest(sub, scales, *line));
        let mut tried = Tried::<L>::new(sub, scales, starts[0]);
        for i in 0..starts.len() {
            if starts[..i].contains(&starts[i]) {
                continue;
            }
            let (ints, error) = tried.choose(starts[i]);
            if error < errors[s] {
                errors[s] = error;
                scales.set(s, ints);
            }
        }
        bound += errors[s] - sub.lines[0].1;
        if bound > limit {
            return None;
        }
    }
    let mut least = errors[..subs.len()].iter().sum::<f32>();
    for _ in 0..ROUNDS {
        let mut trial = *scales;
        (trial.d, trial.dmin) = super_scales(subs, scales);
        let mut error = 0f32;
        for (s, sub) in subs.iter().enumerate() {
            let (ints, e) = Tried::new(sub, &trial, trial.get(s)).choose(trial.get(s));
            trial.set(s, ints);
            error += e;
        }
        if error < least {
            (least, *scales) = (error, trial);
        } else {
            break;
        }
    }
    Some(least)
}

/// The errors of a sub-block at pairs of integers, with the super-block's (d, dmin) fixed. Each is computed once: descents from several
/// starts cross each other, and a step keeps some of the neighbours.
struct Tried<'a, L> {
    sub: &'a Sub<'a>,
    d: f32,
    dmin: f32,
    /// The first start.
    origin: (i16, i16),
    /// For pairs around the origin, one more than the place of the error, or 0.
    places: [[u8; WINDOW]; WINDOW],
    errors: [f32; MEMORY],
    /// How many errors there are.
    len: usize,
    layout: PhantomData<L>,
}

impl<'a, L: Layout> Tried<'a, L> {
    fn new(sub: &'a Sub<'a>, scales: &Scales<L>, origin: (i16, i16)) -> Self {
        let (d, dmin) = (scales.d, scales.dmin);
        let places = [[0; WINDOW]; WINDOW];
        Tried { sub, d, dmin, origin, places, errors: [0.0; MEMORY], len: 0, layout: PhantomData }
    }

    /// Downhill over neighbouring integers from `ints`: where it ends, and the error there.
    fn choose(&mut self, ints: (i16, i16)) -> ((i16, i16), f32) {
        const WITH_MINS: [(i16, i16); 9] = [(0, 0), (0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, -1), (1, -1), (-1, 1)];
        const WITHOUT: [(i16, i16); 3] = [(0, 0), (1, 0), (-1, 0)];
        let moves: &[(i16, i16)] = if Scales::<L>::MINS { &WITH_MINS } else { &WITHOUT };
        let (mut best, mut least) = (ints, f32::INFINITY);
        for _ in 0..8 {
            let center = best;
            let mut around = [(0, 0); WITH_MINS.len()];
            let mut n = 0;
            for (ds, dm) in moves {
                let ints = (center.0 + ds, center.1 + dm);
                if (L::SCALES.0..=L::SCALES.1).contains(&ints.0) && (0..=L::MAX_MIN).contains(&ints.1) {
                    around[n] = ints;
                    n += 1;
                }
            }
            let errors = self.errors(&around[..n]);
            for (ints, error) in around[..n].iter().zip(errors) {
                if error < least {
                    (least, best) = (error, *ints);
                }
            }
            if best == center {
                break;
            }
        }
        (best, least)
    }

    /// The errors of at most nine pairs.
    fn errors(&mut self, pairs: &[(i16, i16)]) -> [f32; 9] {
        if self.len + pairs.len() > MEMORY {
            (self.len, self.places) = (0, [[0; WINDOW]; WINDOW]);
        }
        let (mut places, mut lines, known) = ([0; 9], [(0.0, 0.0); 9], self.len);
        for (to, pair) in places.iter_mut().zip(pairs) {
            let at = |of: i16, origin: i16| (of - origin + WINDOW as i16 / 2) as usize;
            let (row, column) = (at(pair.0, self.origin.0), at(pair.1, self.origin.1));
            let place = self.places.get_mut(row).and_then(|row| row.get_mut(column));
            if let Some(&mut place @ 1..) = place {
                *to = usize::from(place) - 1;
                continue;
            }
            lines[self.len - known] = (self.d * pair.0 as f32, -(self.dmin * pair.1 as f32));
            *to = self.len;
            self.len += 1;
            if let Some(place) = place {
                *place = self.len as u8;
            }
        }
        let new = known..self.len;
        self.sub.problem.errors(&lines[..new.len()], &mut self.errors[new]);
        places.map(|place| self.errors[place])
    }
}

/// The integers closest to a line; the bias as it suits the rounded step.
fn nearest<L: Layout>(sub: &Sub, scales: &Scales<L>, line: Line) -> (i16, i16) {
    let to_int = |v: f32, spacing: f32, (low, high): (i16, i16)| {
        let t = (v / spacing).round_ties_even();
        if t.is_nan() { 0 } else { t.clamp(low as f32, high as f32) as i16 }
    };
    let scale = to_int(line.step, scales.d, L::SCALES);
    if !Scales::<L>::MINS {
        return (scale, 0);
    }
    let m = sub.problem.moments(Line { step: scales.d * scale as f32, bias: line.bias });
    let bias = line.bias + if sub.weight > 0.0 { (m.r / sub.weight) as f32 } else { 0.0 };
    (scale, to_int(-bias, scales.dmin, (0, L::MAX_MIN)))
}

/// Least squares for (d, dmin) with integers and codes fixed, in f16.
fn super_scales<L: Layout>(subs: &[Sub], scales: &Scales<L>) -> (f32, f32) {
    // Values are d·(scale·c) − dmin·min: normal equations in (Δd, Δdmin).
    let (mut dd, mut dm, mut mm, mut rd, mut rm) = (0f64, 0f64, 0f64, 0f64, 0f64);
    for (s, sub) in subs.iter().enumerate() {
        let Moments { r, rc, c, cc, .. } = sub.problem.moments(line(scales, s));
        let (scale, min) = scales.get(s);
        let (scale, min) = (scale as f64, min as f64);
        dd += scale * scale * cc;
        dm -= scale * min * c;
        mm += min * min * sub.weight;
        rd += scale * rc;
        rm -= min * r;
    }
    let det = dd * mm - dm * dm;
    let (mut d, mut dmin) = (0.0, 0.0);
    if det > 1e-9 * dd * mm {
        d = (mm * rd - dm * rm) / det;
    } else if dd > 0.0 {
        d = rd / dd;
    }
    let new_d = saturate(Float::F16, (scales.d as f64 + d) as f32);
    if mm > 0.0 {
        // The best dmin for the rounded d.
        dmin = (rm - dm * (new_d as f64 - scales.d as f64)) / mm;
    }
    (new_d, saturate(Float::F16, (scales.dmin as f64 + dmin) as f32))
}

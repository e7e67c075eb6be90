//! Importance-weighted fit of a K-quant super-block.
//!
//! 1. Every sub-block by itself: several good real-valued lines ([`Problem::search`]).
//! 2. Candidates for (d, dmin): those that land the sub-blocks' best steps (minima) closest to integers, weighed by how much the
//!    error curves there, and ggml's own.
//! 3. For each candidate, every sub-block chooses its integers by true error: from each of its lines, the nearest integers,
//!    then downhill over neighbours.
//! 4. With the integers and codes fixed, least squares for (d, dmin); with these, 3 again from where it stands; until nothing
//!    improves.

use super::fit::{self, Line, Moments, Problem};
use super::float::saturate;
use super::superblock::{INTS, LEN, Layout, Scales, reference_scales};
use crate::codec::Float;
use crate::kernels;

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
    let reference = reference_scales::<L>(x, importance);
    let (mut xs, mut ws) = ([0f32; LEN], [0f32; LEN]);
    let (xs, ws) = fit::prepare(x, importance, &mut xs, &mut ws);

    let mut best = reference;
    let mut least = total(&reference, xs, ws);
    if !least.is_finite() {
        (best, least) = (Scales::new(0.0, 0.0, [0; INTS]), f32::INFINITY);
    }
    for negative in [false, true] {
        // A negative dmin raises every sub-block: of use where hardly any weight is negative.
        if negative && (!Scales::<L>::MINS || x.iter().filter(|&&x| x < 0.0).count() > LEN / 8) {
            break;
        }
        let limits = limits::<L>(negative);
        let subs: Vec<Sub> = problems::<L>(xs, ws).map(|p| Sub::new(p, limits, p.search(limits, STRIDE, LINES))).collect();
        let starts = candidates::<L>(&subs, negative, CANDIDATES);
        try_starts(&subs, starts.into_iter().chain((!negative).then_some((reference.d, reference.dmin))), &mut best, &mut least);
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
    try_starts(&subs, starts.into_iter().chain([(start.d, start.dmin)]), &mut best, &mut least);
    best
}

fn try_starts<L: Layout>(subs: &[Sub], starts: impl Iterator<Item = (f32, f32)>, best: &mut Scales<L>, least: &mut f32) {
    for (d, dmin) in starts {
        let mut scales = Scales::new(d, dmin, [0; INTS]);
        let error = descend(subs, &mut scales);
        if error < *least {
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

/// Pairs (d, dmin), exact in f16, to start from.
fn candidates<L: Layout>(subs: &[Sub], negative: bool, count: usize) -> Vec<(f32, f32)> {
    let steps: Vec<(f64, f64)> = subs.iter().map(|s| (s.lines[0].0.step as f64, s.curvature.0)).collect();
    let mins: Vec<(f64, f64)> = subs.iter().map(|s| (s.lines[0].0.bias.abs() as f64, s.curvature.1)).collect();
    let ds = spacings(&steps, L::SCALES, count);
    let dmins = if Scales::<L>::MINS { spacings(&mins, (0, L::MAX_MIN), count) } else { vec![0.0] };
    let sign = if negative { -1.0 } else { 1.0 };
    ds.iter().flat_map(|&d| dmins.iter().map(move |&dmin| (saturate(Float::F16, d), sign * saturate(Float::F16, dmin)))).collect()
}

/// The spacings whose multiples (by integers in `range`) approximate `values` best: pairs of value and curvature.
fn spacings(values: &[(f64, f64)], range: (i16, i16), count: usize) -> Vec<f32> {
    let (low, high) = (range.0 as f64, range.1 as f64);
    let extreme = values.iter().map(|v| v.0).fold(0f64, |m, v| if v.abs() > m.abs() { v } else { m });
    if extreme == 0.0 {
        return vec![0.0];
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
    found.into_iter().map(|f| f.1 as f32).collect()
}

/// Steps 3 and 4 from the given (d, dmin). Returns the error.
fn descend<L: Layout>(subs: &[Sub], scales: &mut Scales<L>) -> f32 {
    let mut errors = [0f32; INTS];
    for (s, sub) in subs.iter().enumerate() {
        errors[s] = f32::INFINITY;
        let mut tried = [(0, 0); LINES];
        for (i, &(line, _)) in sub.lines.iter().enumerate() {
            tried[i] = nearest(sub, scales, line);
            if tried[..i].contains(&tried[i]) {
                continue;
            }
            let (ints, error) = choose(sub, scales, tried[i]);
            if error < errors[s] {
                errors[s] = error;
                scales.set(s, ints);
            }
        }
    }
    let mut least = errors[..subs.len()].iter().sum::<f32>();
    for _ in 0..ROUNDS {
        let mut trial = *scales;
        (trial.d, trial.dmin) = super_scales(subs, scales);
        let mut error = 0f32;
        for (s, sub) in subs.iter().enumerate() {
            let (ints, e) = choose(sub, &trial, trial.get(s));
            trial.set(s, ints);
            error += e;
        }
        if error < least {
            (least, *scales) = (error, trial);
        } else {
            break;
        }
    }
    least
}

/// The error of a sub-block with these integers.
fn error<L: Layout>(sub: &Sub, scales: &Scales<L>, ints: (i16, i16)) -> f32 {
    sub.problem.error(Line { step: scales.d * ints.0 as f32, bias: -(scales.dmin * ints.1 as f32) })
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

/// Downhill over neighbouring integers from `ints`.
fn choose<L: Layout>(sub: &Sub, scales: &Scales<L>, ints: (i16, i16)) -> ((i16, i16), f32) {
    const WITH_MINS: [(i16, i16); 8] = [(0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, -1), (1, -1), (-1, 1)];
    const WITHOUT: [(i16, i16); 2] = [(1, 0), (-1, 0)];
    let moves: &[(i16, i16)] = if Scales::<L>::MINS { &WITH_MINS } else { &WITHOUT };
    let mut best = ints;
    let mut least = error(sub, scales, best);
    for _ in 0..8 {
        let center = best;
        for (ds, dm) in moves {
            let ints = (center.0 + ds, center.1 + dm);
            if (L::SCALES.0..=L::SCALES.1).contains(&ints.0) && (0..=L::MAX_MIN).contains(&ints.1) {
                let e = error(sub, scales, ints);
                if e < least {
                    (least, best) = (e, ints);
                }
            }
        }
        if best == center {
            break;
        }
    }
    (best, least)
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

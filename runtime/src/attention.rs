//! Attention with grouped key and value heads (GQA), sliding windows, capped scores and sinks, straight from the cache.
//!
//! Scores never stand in memory whole: a task goes through the keys and values of one head page by page, decodes a page into a
//! scratch that stays in the processor's cache, and keeps per query row the largest score `m` so far, the total `l = Σ exp(s − m)`
//! and the mixture `o = Σ exp(s − m) v`. A page with a larger score multiplies `l` and `o` by `exp(m − m')` (the online softmax of
//! Milakov and Gimelshein 2018, in blocks as in FlashAttention, Dao et al. 2022). All query heads of a key head share its pages, and
//! pages that no query of a task sees are not touched.
//!
//! A few queries over a long cache are cut into ranges of keys, each with an `(m, l, o)` of its own, put together in the order of
//! the keys. How work is cut depends on shapes alone, so results do not depend on the number of threads.

mod composed;
mod decode;
mod dots;
#[cfg(test)]
mod tests;
mod tile;

use crate::cache::{LayerCache, PAGE};
use crate::kernels;
use crate::ops::{self, OrFail, with_f32};
use crate::product::{Output, Processor};
use bitsmith_formats::{Error, Result};
use candle_core::{Device, Tensor};
use rayon::prelude::*;
use tile::{COLUMNS, Factors};

/// Query rows (tokens times heads of a group) that a task takes, about.
const QUERY_ROWS: usize = 256;
/// Query rows whose scores are computed together.
const TILE: usize = 6;
/// Tokens that are few enough for their keys to be cut into ranges.
const FEW_TOKENS: usize = 8;
/// Keys of a range: whole pages.
const RANGE: usize = 8 * PAGE;
/// Query rows for which keys are multiplied as they lie.
const FEW_ROWS: usize = 8;
/// Multiplications for which other threads are not woken.
const SMALL: usize = 1 << 16;

/// One sequence of an attention call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span<'a> {
    /// Keys and values, of which the last `queries` are at the queries' own positions.
    pub cache: &'a LayerCache,
    /// Tokens that ask.
    pub queries: usize,
}

/// One layer's flavour of attention.
#[derive(Debug, Clone)]
pub(crate) struct Attention {
    /// Query heads, which share key and value heads in groups.
    pub n_heads: usize,
    /// What scores are multiplied by.
    pub scale: f32,
    /// Scores become `c tanh(score / c)`.
    pub softcap: Option<f32>,
    /// Tokens that a query may look back, itself included.
    pub window: Option<usize>,
    /// Whether a window is a chunk: a query sees the keys since the last multiple of its length.
    pub chunked: bool,
    /// Whether queries see no later keys.
    pub causal: bool,
    /// A logit per head that takes a share of the attention and gives no value.
    pub sinks: Option<Vec<f32>>,
}

/// Query rows of one key head: consecutive tokens of a span, and for each the query heads of the group.
#[derive(Clone, Copy)]
struct Task<'a> {
    processor: Processor,
    cache: &'a LayerCache,
    /// The key head.
    head: usize,
    /// Row of the first token in the call's queries.
    row: usize,
    /// Position of the first token in its sequence.
    position: usize,
    tokens: usize,
    /// Keys that any of them sees: `low..high`.
    low: usize,
    high: usize,
}

/// Places of a page.
#[derive(Clone, Copy)]
struct Places {
    page: usize,
    from: usize,
    to: usize,
}

/// Buffers of a thread.
#[derive(Default)]
struct Scratch {
    /// `(row, k_dim)`, scaled.
    queries: Vec<f32>,
    /// `(key, k_dim)`.
    keys: Vec<f32>,
    /// The same, `(k_dim, PAGE)`.
    panel: Vec<f32>,
    /// `(key, v_dim)`, rows padded with zeros to whole groups of columns.
    values: Vec<f32>,
}

/// The softmax of query rows over some of their keys, before it is divided by the totals.
struct Partial {
    most: Vec<f32>,
    total: Vec<f32>,
    /// `(row, v_dim)`, rows padded to whole groups of columns.
    mixed: Vec<f32>,
}

/// Values that attention holds per thread at most, besides its operands.
pub(crate) fn scratch_values(n_heads: usize, k_dim: usize, v_dim: usize) -> usize {
    (2 * PAGE + QUERY_ROWS.max(n_heads)) * (k_dim + v_dim)
}

impl Attention {
    /// `softmax(scale q kᵀ) v`. `q` is `(tokens of all spans, heads × k_dim)`, f32 and contiguous. Gives
    /// `(tokens of all spans, heads × v_dim)`.
    pub fn run(&self, q: &Tensor, spans: &[Span<'_>]) -> Result<Tensor> {
        let (rows, width) = q.dims2().or_fail()?;
        let Some(heads) = spans.first().map(|s| s.cache.heads()) else {
            return Err(Error::failed("attention without sequences"));
        };
        let fits = |s: &Span<'_>| s.cache.heads() == heads && s.cache.len() >= s.queries;
        let tokens: usize = spans.iter().map(|s| s.queries).sum();
        if rows != tokens
            || width != self.n_heads * heads.k_dim
            || !self.n_heads.is_multiple_of(heads.n)
            || !spans.iter().all(fits)
        {
            return Err(Error::failed(format!("attention: queries {:?} for {} heads over {heads:?}", q.dims(), self.n_heads)));
        }
        if ops::composed::takes(q) {
            return self.composed(q, spans);
        }
        let out = Output::new(rows, self.n_heads * heads.v_dim);
        let tasks = self.tasks(Processor::detect(), spans, self.n_heads / heads.n);
        let work: usize = tasks.iter().map(|t| t.tokens * (t.high - t.low)).sum();
        with_f32(q, |q| {
            let one = |scratch: &mut Scratch, task: &Task<'_>| self.attend(q, *task, scratch, &out);
            match work * (self.n_heads / heads.n) * heads.k_dim <= SMALL {
                true => {
                    let mut scratch = Scratch::default();
                    tasks.iter().for_each(|task| one(&mut scratch, task));
                }
                false => tasks.par_iter().for_each_init(Scratch::default, one),
            }
        })?;
        Tensor::from_vec(out.into_vec(), (rows, self.n_heads * heads.v_dim), &Device::Cpu).or_fail()
    }

    fn tasks<'a>(&self, processor: Processor, spans: &[Span<'a>], group: usize) -> Vec<Task<'a>> {
        let per_task = (QUERY_ROWS / group).max(1);
        let mut tasks = Vec::new();
        let mut row = 0;
        for span in spans {
            let keys = span.cache.len();
            for first in (0..span.queries).step_by(per_task) {
                let tokens = per_task.min(span.queries - first);
                let position = keys - span.queries + first;
                let (low, high) = (self.first_key(position), if self.causal { position + tokens } else { keys });
                let task = Task { processor, cache: span.cache, head: 0, row: row + first, position, tokens, low, high };
                tasks.extend((0..span.cache.heads().n).map(|head| Task { head, ..task }));
            }
            row += span.queries;
        }
        tasks
    }

    /// The first key that the query at this position sees.
    fn first_key(&self, position: usize) -> usize {
        match self.window.map(|w| w.max(1)) {
            None => 0,
            Some(chunk) if self.chunked => position / chunk * chunk,
            Some(window) => (position + 1).saturating_sub(window),
        }
    }

    /// All of one task.
    fn attend(&self, q: &[f32], task: Task<'_>, scratch: &mut Scratch, out: &Output) {
        let heads = task.cache.heads();
        let group = self.n_heads / heads.n;
        let mut own = std::mem::take(&mut scratch.queries);
        own.clear();
        for token in q.chunks_exact(self.n_heads * heads.k_dim).skip(task.row).take(task.tokens) {
            own.extend(token[task.head * group * heads.k_dim..][..group * heads.k_dim].iter().map(|v| v * self.scale));
        }
        let few = task.tokens <= FEW_TOKENS && task.high - task.low > RANGE;
        let partial = if few {
            let range = |i: usize| Task { low: task.low.max(i * RANGE), high: task.high.min((i + 1) * RANGE), ..task };
            let ranges = (task.low / RANGE..task.high.div_ceil(RANGE)).into_par_iter();
            let parts: Vec<Partial> =
                ranges.map_init(Scratch::default, |scratch, i| self.partial(&own, range(i), scratch)).collect();
            merge(parts)
        } else {
            self.partial(&own, task, scratch)
        };
        scratch.queries = own;
        let stride = heads.v_dim.next_multiple_of(COLUMNS);
        let mut mixed = partial.mixed;
        for (row, mixed) in mixed.chunks_exact_mut(stride).enumerate() {
            let (most, total) = (f64::from(partial.most[row]), f64::from(partial.total[row]));
            let head = task.head * group + row % group;
            let sink = self.sinks.as_ref().map_or(0.0, |sinks| (f64::from(sinks[head]) - most).exp());
            let share = (1.0 / (total + sink)) as f32;
            mixed.iter_mut().for_each(|v| *v *= share);
            // SAFETY: no other task has these tokens and heads.
            unsafe { out.write(task.row + row / group, head * heads.v_dim, &mixed[..heads.v_dim]) };
        }
    }

    /// Query rows `q`, `(tokens × group, k_dim)` and scaled, over the keys `low..high` of a task.
    fn partial(&self, q: &[f32], task: Task<'_>, scratch: &mut Scratch) -> Partial {
        let heads = task.cache.heads();
        let rows = q.len() / heads.k_dim;
        let stride = heads.v_dim.next_multiple_of(COLUMNS);
        let mut partial =
            Partial { most: vec![f32::NEG_INFINITY; rows], total: vec![0.0; rows], mixed: vec![0.0; rows * stride] };
        for page in task.low / PAGE..task.high.div_ceil(PAGE) {
            let first = page * PAGE;
            let (from, to) = (task.low.max(first) - first, task.high.min(first + PAGE) - first);
            let places = Places { page, from, to };
            scratch.fill(task, places, rows > FEW_ROWS);
            for row in (0..rows).step_by(TILE) {
                self.tile(q, task, scratch, places, row, &mut partial);
            }
        }
        partial
    }

    /// The tile of query rows from `row` on, over places whose keys and values lie in the scratch.
    fn tile(&self, q: &[f32], task: Task<'_>, scratch: &Scratch, places: Places, row: usize, partial: &mut Partial) {
        let (processor, heads) = (task.processor, task.cache.heads());
        let Places { page, from, to } = places;
        let (group, k_dim) = (self.n_heads / heads.n, heads.k_dim);
        let rows = TILE.min(partial.most.len() - row);
        let stride = heads.v_dim.next_multiple_of(COLUMNS);
        // The places that a row sees.
        let seen = |row: usize| {
            let position = task.position + row / group;
            let place = |key: usize| key.saturating_sub(page * PAGE).clamp(from, to);
            (place(self.first_key(position)), if self.causal { place(position + 1) } else { to })
        };
        // Both ends grow with the position.
        let (from, to) = (seen(row).0, seen(row + rows - 1).1);
        if from >= to {
            return;
        }
        let mut scores = [[0f32; PAGE]; TILE];
        let q = &q[row * k_dim..(row + rows) * k_dim];
        let flat = scores.as_flattened_mut();
        if partial.most.len() > FEW_ROWS {
            let left = from / COLUMNS * COLUMNS;
            let columns = to.next_multiple_of(COLUMNS) - left;
            let (a_stride, b_stride) = (k_dim, PAGE);
            let factors = Factors { a: q, a_stride, b: &scratch.panel[left..], b_stride, rows, depth: k_dim, columns };
            tile::add_product(processor, factors, &mut flat[left..], PAGE);
        } else {
            dots::scores(processor, q, &scratch.keys[from * k_dim..to * k_dim], k_dim, &mut flat[from..], PAGE);
        }
        for (r, scores) in scores.iter_mut().enumerate().take(rows) {
            let (begin, end) = seen(row + r);
            if begin >= end {
                scores[from..to].fill(0.0);
                continue;
            }
            scores[from..begin].fill(0.0);
            scores[end..to].fill(0.0);
            let scores = &mut scores[begin..end];
            if let Some(cap) = self.softcap {
                kernels::softcap(scores, 1.0, cap);
            }
            let (most, total) = (&mut partial.most[row + r], &mut partial.total[row + r]);
            let largest = kernels::largest(scores);
            if largest > *most {
                let shrink = if *total == 0.0 { 0.0 } else { kernels::exp(*most - largest) };
                *most = largest;
                *total *= shrink;
                partial.mixed[(row + r) * stride..][..stride].iter_mut().for_each(|v| *v *= shrink);
            }
            *total += kernels::exponentials(scores, *most);
        }
        let factors = Factors {
            a: &scores.as_flattened()[from..],
            a_stride: PAGE,
            b: &scratch.values[from * stride..],
            b_stride: stride,
            rows,
            depth: to - from,
            columns: stride,
        };
        tile::add_product(processor, factors, &mut partial.mixed[row * stride..], stride);
    }
}

impl Scratch {
    /// Decodes the task's head at some places; keys are turned around into the panel, if that is wanted.
    fn fill(&mut self, task: Task<'_>, Places { page, from, to }: Places, turn: bool) {
        let (processor, cache, heads) = (task.processor, task.cache, task.cache.heads());
        let (k_dim, v_dim, kind) = (heads.k_dim, heads.v_dim, cache.kind());
        let stride = v_dim.next_multiple_of(COLUMNS);
        self.keys.resize(PAGE * k_dim, 0.0);
        self.values.resize(PAGE * stride, 0.0);
        let keys = &mut self.keys[from * k_dim..to * k_dim];
        decode::decode(processor, kind, k_dim, cache.keys(page, task.head, from, to), keys);
        let (bytes, values) = (cache.values(page, task.head, from, to), &mut self.values[from * stride..to * stride]);
        if stride == v_dim {
            decode::decode(processor, kind, v_dim, bytes, values);
        } else {
            for (bytes, values) in bytes.chunks_exact(bytes.len() / (to - from)).zip(values.chunks_exact_mut(stride)) {
                decode::decode(processor, kind, v_dim, bytes, &mut values[..v_dim]);
            }
        }
        if turn {
            self.panel.resize(k_dim * PAGE, 0.0);
            for (place, key) in (from..to).zip(keys.chunks_exact(k_dim)) {
                self.panel[place..].iter_mut().step_by(PAGE).zip(key).for_each(|(to, value)| *to = *value);
            }
        }
    }
}

/// The softmax over the keys of all parts.
fn merge(parts: Vec<Partial>) -> Partial {
    let mut parts = parts.into_iter();
    let Some(mut all) = parts.next() else { return Partial { most: vec![], total: vec![], mixed: vec![] } };
    for part in parts {
        let stride = part.mixed.len() / part.most.len();
        for (row, (most, total)) in part.most.into_iter().zip(part.total).enumerate() {
            if total == 0.0 {
                continue;
            }
            let larger = if most > all.most[row] { most } else { all.most[row] };
            let factor = |most: f32| if most == f32::NEG_INFINITY { 0.0 } else { kernels::exp(most - larger) };
            let (before, now) = (factor(all.most[row]), factor(most));
            all.most[row] = larger;
            all.total[row] = all.total[row] * before + total * now;
            let mixed = &mut all.mixed[row * stride..][..stride];
            for (a, b) in mixed.iter_mut().zip(&part.mixed[row * stride..]) {
                *a = *a * before + b * now;
            }
        }
    }
    all
}

use super::*;
use crate::cache::{CacheType, KvHeads};

/// What this processor can run.
pub(super) fn processors() -> Vec<Processor> {
    match Processor::detect() {
        Processor::Portable => vec![Processor::Portable],
        Processor::Avx2 => vec![Processor::Portable, Processor::Avx2],
        Processor::Avx512 => vec![Processor::Portable, Processor::Avx2, Processor::Avx512],
    }
}

/// Values within ±1 without a pattern.
pub(super) fn ramp(n: usize, seed: usize) -> Vec<f32> {
    (0..n).map(|i| (((i + 1) * (seed + 7) * 7919 % 10007) as f32 * 0.37).sin()).collect()
}

fn tensor(values: Vec<f32>, width: usize) -> Tensor {
    let rows = values.len() / width;
    Tensor::from_vec(values, (rows, width), &Device::Cpu).unwrap()
}

const HEADS: KvHeads = KvHeads { n: 2, k_dim: 32, v_dim: 32 };

fn plain() -> Attention {
    Attention { n_heads: 6, scale: 0.6, softcap: None, window: None, chunked: false, causal: true, sinks: None }
}

/// Every flavour that models have, with the heads of keys.
fn flavours() -> Vec<(&'static str, Attention, KvHeads)> {
    let of = |name, change: fn(&mut Attention)| {
        let mut attention = plain();
        change(&mut attention);
        (name, attention, HEADS)
    };
    let mut all = vec![
        of("causal", |_| {}),
        of("encoder", |a| a.causal = false),
        of("window", |a| a.window = Some(37)),
        of("wide window", |a| a.window = Some(300)),
        of("chunks", |a| (a.window, a.chunked) = (Some(50), true)),
        of("soft-cap", |a| a.softcap = Some(1.5)),
        of("sinks", |a| a.sinks = Some(vec![0.3, 9.0, -4.0, 2.0, 0.0, 40.0])),
        of("sinks in a window", |a| (a.sinks, a.window) = (Some(vec![1.0; 6]), Some(9))),
        of("large scores", |a| a.scale = 30.0),
    ];
    let heads = [(2, 40, 24), (1, 7, 5), (6, 96, 64), (3, 128, 128)];
    all.extend(heads.map(|(n, k_dim, v_dim)| ("heads", plain(), KvHeads { n, k_dim, v_dim })));
    all
}

/// Attention from its definition, in f64, over keys and values as the cache has them.
fn twin(a: &Attention, q: &[f32], cache: &LayerCache, queries: usize) -> Vec<f64> {
    let (heads, keys) = (cache.heads(), cache.len());
    let row = |head: usize, j: usize, value: bool| -> Vec<f32> {
        let (page, place) = (j / PAGE, j % PAGE);
        let width = if value { heads.v_dim } else { heads.k_dim };
        let read = if value { LayerCache::values } else { LayerCache::keys };
        let mut out = vec![0f32; width];
        cache.kind().codec(width).codec().decode(read(cache, page, head, place, place + 1), &mut out);
        out
    };
    let mut out = Vec::new();
    for (i, token) in q.chunks(a.n_heads * heads.k_dim).enumerate() {
        let position = keys - queries + i;
        for (h, q) in token.chunks(heads.k_dim).enumerate() {
            let head = h / (a.n_heads / heads.n);
            let sees = |j: &usize| {
                let near = match a.window {
                    Some(w) if a.chunked => j / w == position / w || *j > position,
                    Some(w) => j + w > position,
                    None => true,
                };
                near && (*j <= position || !a.causal)
            };
            let seen: Vec<usize> = (0..keys).filter(sees).collect();
            let score = |j: &usize| {
                let s = f64::from(a.scale)
                    * q.iter().zip(row(head, *j, false)).map(|(a, b)| f64::from(*a) * f64::from(b)).sum::<f64>();
                a.softcap.map_or(s, |c| f64::from(c) * (s / f64::from(c)).tanh())
            };
            let scores: Vec<f64> = seen.iter().map(score).collect();
            let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sink = a.sinks.as_ref().map_or(0.0, |s| (f64::from(s[h]) - most).exp());
            let total = scores.iter().map(|s| (s - most).exp()).sum::<f64>() + sink;
            let mut mixed = vec![0f64; heads.v_dim];
            for (j, s) in seen.iter().zip(&scores) {
                let share = (s - most).exp() / total;
                mixed.iter_mut().zip(row(head, *j, true)).for_each(|(m, v)| *m += share * f64::from(v));
            }
            out.extend(mixed);
        }
    }
    out
}

fn cache(kind: CacheType, heads: KvHeads, keys: usize, seed: usize) -> LayerCache {
    let k = tensor(ramp(keys * heads.n * heads.k_dim, seed), heads.n * heads.k_dim);
    let v = tensor(ramp(keys * heads.n * heads.v_dim, seed + 1), heads.n * heads.v_dim);
    LayerCache::of(kind, heads, &k, &v).unwrap()
}

fn values(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

/// All flavours, at the lengths where paths change: single tokens over short and long caches, few tokens, whole texts.
#[test]
fn every_flavour_follows_its_definition() {
    for (name, attention, heads) in flavours() {
        for (queries, keys) in [(1, 1), (1, 64), (1, 700), (3, 1100), (8, 530), (9, 600), (70, 70), (150, 150), (40, 200)] {
            let cache = cache(CacheType::F32, heads, keys, 3);
            let q = ramp(queries * attention.n_heads * heads.k_dim, 1);
            let span = Span { cache: &cache, queries };
            let got = values(&attention.run(&tensor(q.clone(), attention.n_heads * heads.k_dim), &[span]).unwrap());
            let want = twin(&attention, &q, &cache, queries);
            assert_eq!(got.len(), want.len());
            for (i, (g, w)) in got.iter().zip(&want).enumerate() {
                assert!((f64::from(*g) - w).abs() < 3e-5, "{name} {heads:?} {queries} of {keys}, {i}: {g} {w}");
            }
        }
    }
}

/// Attention for keys and values on a device, in every flavour.
#[test]
fn composed_attention_is_the_same() {
    for (name, attention, heads) in flavours() {
        for (queries, keys) in [(1, 1), (1, 400), (3, 130), (150, 150), (70, 200)] {
            let run = || {
                let cache = cache(CacheType::F32, heads, keys, 3);
                let q = ramp(queries * attention.n_heads * heads.k_dim, 2);
                let spans = [Span { cache: &cache, queries }];
                values(&attention.run(&tensor(q, attention.n_heads * heads.k_dim), &spans).unwrap())
            };
            for (got, want) in ops::composed::testing::composed(run).iter().zip(run()) {
                // Each is within 3e-5 of the definition.
                assert!((got - want).abs() < 6e-5, "{name} {queries} of {keys}: {got} {want}");
            }
        }
    }
}

/// Every processor and every type of cache, with both kernels.
#[test]
fn every_type_and_processor_computes_the_same() {
    for kind in CacheType::ALL {
        for (queries, keys) in [(1, 900), (2, 130), (90, 90)] {
            let (attention, cache) = (plain(), cache(kind, HEADS, keys, 5));
            let q = ramp(queries * 6 * HEADS.k_dim, 2);
            let want = twin(&attention, &q, &cache, queries);
            for processor in processors() {
                let out = Output::new(queries, 6 * HEADS.v_dim);
                for task in attention.tasks(processor, &[Span { cache: &cache, queries }], 3) {
                    attention.attend(&q, task, &mut Scratch::default(), &out);
                }
                for (g, w) in out.into_vec().iter().zip(&want) {
                    assert!((f64::from(*g) - w).abs() < 2e-5, "{kind} {processor:?} {queries} of {keys}: {g} {w}");
                }
            }
        }
    }
}

#[test]
fn threads_and_company_change_no_bit() {
    let attention = plain();
    let caches: Vec<LayerCache> = [5, 1300, 64, 700].into_iter().map(|n| cache(CacheType::F16, HEADS, n, n)).collect();
    let queries = [1, 1, 20, 150];
    let width = 6 * HEADS.k_dim;
    let q = ramp(queries.iter().sum::<usize>() * width, 4);
    let spans: Vec<Span<'_>> = caches.iter().zip(queries).map(|(cache, queries)| Span { cache, queries }).collect();
    let with = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| values(&attention.run(&tensor(q.clone(), width), &spans).unwrap()))
    };
    let all = with(1);
    assert!(all == with(2) && all == with(3));
    let (mut first, mut apart) = (0, Vec::new());
    for span in spans {
        let own = tensor(q[first * width..(first + span.queries) * width].to_vec(), width);
        apart.extend(values(&attention.run(&own, &[span]).unwrap()));
        first += span.queries;
    }
    assert!(all == apart);
}

#[test]
fn a_cache_is_the_same_however_it_grew() {
    for kind in CacheType::ALL {
        let width = HEADS.n * HEADS.k_dim;
        let (k, v) = (tensor(ramp(200 * width, 1), width), tensor(ramp(200 * width, 2), width));
        let whole = LayerCache::of(kind, HEADS, &k, &v).unwrap();
        let mut pieces = LayerCache::new(kind, HEADS).unwrap();
        // Longer and different at first, then again from the tenth token on.
        pieces.append(&v, &k, 0).unwrap();
        let part = |t: &Tensor, from: usize, n: usize| t.narrow(0, from, n).unwrap();
        for (from, n) in [(0, 40), (10, 1), (11, 60), (71, 128), (199, 1)] {
            pieces.append(&part(&k, from, n), &part(&v, from, n), from).unwrap();
        }
        assert_eq!((whole.len(), pieces.len()), (200, 200));
        for (page, to) in [(0, 64), (1, 64), (2, 64), (3, 8)] {
            for head in 0..HEADS.n {
                assert_eq!(whole.keys(page, head, 0, to), pieces.keys(page, head, 0, to));
                assert_eq!(whole.values(page, head, 0, to), pieces.values(page, head, 0, to));
            }
        }
        assert!(pieces.append(&k, &v, 201).is_err() && pieces.append(&k, &k.narrow(1, 0, 32).unwrap(), 0).is_err());
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let narrow = KvHeads { n: 2, k_dim: 40, v_dim: 64 };
    for kind in CacheType::ALL {
        let blocks = matches!(kind, CacheType::Q8_0 | CacheType::Q4_0);
        assert_eq!(LayerCache::new(kind, narrow).is_err(), blocks, "{kind}");
    }
    let e = LayerCache::new(CacheType::Q4_0, narrow).unwrap_err();
    assert!(e.message.contains("q4_0") && e.message.contains("40"), "{e}");
    for bad in [f32::NAN, f32::INFINITY] {
        let mut v = ramp(64, 1);
        v[5] = bad;
        let e = LayerCache::of(CacheType::Q8_0, HEADS, &tensor(ramp(64, 2), 64), &tensor(v, 64)).unwrap_err();
        assert!(e.message.contains("not finite"), "{e}");
    }
    let cache = cache(CacheType::F32, HEADS, 4, 1);
    let q = tensor(ramp(5 * 192, 1), 192);
    assert!(plain().run(&q, &[Span { cache: &cache, queries: 5 }]).is_err());
    assert!(plain().run(&q, &[]).is_err());
}

use super::*;

/// Numbers of all kinds, without a pattern.
fn numbers(seed: u32) -> Vec<f32> {
    let special = [0.0, -0.0, 1.0, -1.5, 2.5, 1e-40, -1e30, 3e9, -2_147_483_648.0, 0.499_999_97, f32::INFINITY, f32::NAN];
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12345);
    let noise = (0..20).map(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 4096.0 - 2048.0
    });
    special.into_iter().chain(noise).collect()
}

/// The results of every operation on all pairs of numbers, lane by lane, as bits.
struct Everything<'a>(&'a [f32], &'a [f32]);

impl Kernel for Everything<'_> {
    type Output = Vec<Vec<u32>>;

    #[inline(always)]
    fn run<F: Lanes>(self) -> Self::Output {
        let mut results: Vec<Vec<u32>> = Vec::new();
        let table: Vec<f32> = (0..64).map(|i| i as f32 * 0.5).collect();
        for (a, b) in self.0.chunks_exact(F::N).zip(self.1.chunks_exact(F::N)) {
            let (a, b) = (F::load(a), F::load(b));
            let (p, q) = (a.to_bits(), b.to_bits());
            let index = p.shr::<9>() & F::Int::splat(63);
            let less = a.lt(b);
            let floats = [
                a + b,
                a - b,
                a * b,
                a / b,
                a.abs().sqrt(),
                a.abs(),
                a.min(b),
                a.max(b),
                F::select(less, a, b),
                F::from_int(p),
                F::gather(&table, index),
                F::select(a.abs().lt(F::splat(4e6)), a.round() + F::zero(), F::zero()),
                F::zero(),
                F::select(a.le(b) & !a.eq(b), a, b),
                F::select(a.gt(b) | a.eq(b), a, b),
            ];
            let integers = [
                p + q,
                p - q,
                p & q,
                p | q,
                p.min(q),
                p.max(q),
                p.shl::<3>(),
                p.shr::<5>(),
                nearest(a),
                F::Int::select(p.gt(q), p, q),
                F::Int::select(p.eq(q), p, F::Int::splat(9)),
            ];
            let mut values: Vec<Vec<u32>> = Vec::new();
            let mut buffer = [0f32; MAX_LANES];
            for x in floats {
                x.store(&mut buffer);
                // The bits of a NaN that an operation makes are not laid down.
                values.push(buffer[..F::N].iter().map(|x| if x.is_nan() { 0x7fc0_0000 } else { x.to_bits() }).collect());
            }
            let mut buffer = [0i32; MAX_LANES];
            for x in integers {
                x.store(&mut buffer);
                values.push(buffer[..F::N].iter().map(|x| x.cast_unsigned()).collect());
            }
            let mask = less.bits();
            values.push((0..F::N).map(|i| mask >> i & 1).collect());
            assert_eq!(less.any(), mask != 0);
            results.extend((0..F::N).map(|lane| values.iter().map(|v| v[lane]).collect::<Vec<u32>>()));
        }
        results
    }
}

#[test]
fn all_lanes_compute_alike() {
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for x in numbers(1) {
        for y in numbers(2) {
            a.push(x);
            b.push(y);
        }
    }
    let scalar = Everything(&a, &b).run::<Portable<1>>();
    assert_eq!(scalar, Everything(&a, &b).run::<Portable<8>>());
    assert_eq!(scalar, dispatch(Everything(&a, &b)));
    #[cfg(target_arch = "x86_64")]
    if vectors() != Vectors::Baseline {
        #[target_feature(enable = "avx2,f16c")]
        fn wide(kernel: Everything<'_>) -> Vec<Vec<u32>> {
            kernel.run::<avx2::Avx2>()
        }
        #[target_feature(enable = "avx2,f16c")]
        fn paired(kernel: Everything<'_>) -> Vec<Vec<u32>> {
            kernel.run::<pair::Pair<avx2::Avx2>>()
        }
        // SAFETY: AVX2 is there.
        assert_eq!(scalar, unsafe { wide(Everything(&a, &b)) });
        // SAFETY: as above.
        assert_eq!(scalar, unsafe { paired(Everything(&a, &b)) });
    }
}

#[test]
fn nearest_rounds_ties_to_even() {
    for (x, want) in
        [(0.5, 0), (1.5, 2), (2.5, 2), (-0.5, 0), (-1.5, -2), (-2.5, -2), (2.4999, 2), (-7.51, -8), (4e6 + 0.4, 4_000_000)]
    {
        let mut got = [0];
        nearest(Portable::<1>::splat(x)).store(&mut got);
        assert_eq!(got[0], want, "{x}");
    }
}

#[test]
#[should_panic]
fn gathering_outside_the_table_panics() {
    struct Gather;
    impl Kernel for Gather {
        type Output = ();
        #[inline(always)]
        fn run<F: Lanes>(self) {
            F::gather(&[1.0, 2.0], F::Int::splat(2)).store(&mut [0.0; MAX_LANES]);
        }
    }
    dispatch(Gather);
}

//! Which examples stand before a question: those that lm-evaluation-harness draws, which takes Python's random numbers.

/// Mersenne Twister (Matsumoto and Nishimura, 1998) as Python's `random.Random(seed)` runs it.
pub(super) struct PythonRandom {
    state: [u32; Self::N],
    at: usize,
}

impl PythonRandom {
    const N: usize = 624;
    const M: usize = 397;

    /// Seeded with a number below 2³².
    pub fn new(seed: u32) -> Self {
        let mut state = [0u32; Self::N];
        state[0] = 19_650_218;
        for i in 1..Self::N {
            state[i] = 1_812_433_253u32.wrapping_mul(state[i - 1] ^ (state[i - 1] >> 30)).wrapping_add(i as u32);
        }
        // Seeding by a key of one word.
        let mut i = 1;
        for _ in 0..Self::N {
            let before = state[i - 1] ^ (state[i - 1] >> 30);
            state[i] = (state[i] ^ before.wrapping_mul(1_664_525)).wrapping_add(seed);
            i = Self::next_index(&mut state, i);
        }
        for _ in 1..Self::N {
            let before = state[i - 1] ^ (state[i - 1] >> 30);
            state[i] = (state[i] ^ before.wrapping_mul(1_566_083_941)).wrapping_sub(i as u32);
            i = Self::next_index(&mut state, i);
        }
        state[0] = 0x8000_0000;
        PythonRandom { state, at: Self::N }
    }

    fn next_index(state: &mut [u32; Self::N], i: usize) -> usize {
        if i + 1 < Self::N {
            return i + 1;
        }
        state[0] = state[Self::N - 1];
        1
    }

    fn next(&mut self) -> u32 {
        if self.at == Self::N {
            for i in 0..Self::N {
                let y = self.state[i] & 0x8000_0000 | self.state[(i + 1) % Self::N] & 0x7fff_ffff;
                let odd = if y & 1 == 1 { 0x9908_b0df } else { 0 };
                self.state[i] = self.state[(i + Self::M) % Self::N] ^ (y >> 1) ^ odd;
            }
            self.at = 0;
        }
        let mut y = self.state[self.at];
        self.at += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// `randrange(n)` for `1 ≤ n < 2³¹`.
    fn below(&mut self, n: usize) -> usize {
        let bits = usize::BITS - n.leading_zeros();
        loop {
            let r = (self.next() >> (32 - bits)) as usize;
            if r < n {
                return r;
            }
        }
    }

    /// `sample(range(n), k)`; `k ≤ n`.
    pub fn sample(&mut self, n: usize, k: usize) -> Vec<usize> {
        // Python shuffles a copy where that takes less memory than a set of the chosen.
        let set_size = if k > 5 { 21 + 4usize.pow(((k * 3) as f64).log(4.0).ceil() as u32) } else { 21 };
        let mut chosen = Vec::with_capacity(k);
        if n <= set_size {
            let mut pool: Vec<usize> = (0..n).collect();
            for i in 0..k {
                let j = self.below(n - i);
                chosen.push(pool[j]);
                pool[j] = pool[n - i - 1];
            }
        } else {
            for _ in 0..k {
                let mut j = self.below(n);
                while chosen.contains(&j) {
                    j = self.below(n);
                }
                chosen.push(j);
            }
        }
        chosen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against CPython's `random.Random(seed)`.
    #[test]
    fn draws_are_pythons() {
        let mut r = PythonRandom::new(1234);
        assert_eq!([r.next(), r.next(), r.next()], [4150886329, 3342196574, 1892932127]);
        let mut r = PythonRandom::new(0);
        assert_eq!((0..1000).map(|_| r.next()).nth(999), Some(2971151651));
        let mut r = PythonRandom::new(1234);
        assert_eq!(r.sample(7473, 5), [6374, 3610, 957, 61, 742]);
        assert_eq!(r.sample(15, 6), [14, 12, 9, 0, 10, 1]);
        assert_eq!(r.sample(9, 3), [1, 5, 8]);
        assert_eq!(
            r.sample(500, 40),
            [
                8, 15, 403, 177, 331, 319, 247, 315, 237, 76, 46, 93, 365, 58, 432, 7, 257, 249, 450, 494, 127, 33, 341, 277,
                467, 238, 35, 307, 345, 45, 263, 296, 23, 138, 422, 284, 32, 330, 154, 246
            ]
        );
    }
}

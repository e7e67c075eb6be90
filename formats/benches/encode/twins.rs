//! Encoders against their scalar twins: the same bytes, on random blocks of many kinds, with and without importance.

use bitsmith_formats::{CodecId, Result, encode_rows, set_scalar};

/// Weights that are encoded at a time, in rows of this length. Groups of blocks cross rows.
const ROW_LEN: usize = 1024;
const ROWS: usize = 37;
/// Mismatches that are described, per type.
const SHOWN: usize = 3;

/// Compares at least `blocks` blocks of each type; prints a line per type. Whether all were the same.
pub fn run(blocks: usize, types: &[CodecId]) -> Result<bool> {
    let mut same = true;
    for (i, &id) in types.iter().enumerate() {
        let row_bytes = id.row_bytes(ROW_LEN)?;
        let block_bytes = id.codec().block_bytes();
        let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ (i as u64 + 1) << 32);
        let (mut weights, mut importance) = (vec![0f32; ROWS * ROW_LEN], vec![0f32; ROW_LEN]);
        let (mut wide, mut scalar) = (vec![0x55u8; ROWS * row_bytes], vec![0xaau8; ROWS * row_bytes]);
        let (mut compared, mut mismatches) = (0, 0);
        for round in 0.. {
            if compared >= blocks {
                break;
            }
            random.fill(&mut weights);
            importance.iter_mut().for_each(|q| *q = random.importance());
            let importance = (round % 2 == 1).then_some(&importance[..]);
            encode_rows(id, &weights, ROW_LEN, importance, &mut wide);
            set_scalar(true);
            encode_rows(id, &weights, ROW_LEN, importance, &mut scalar);
            set_scalar(false);
            compared += wide.len() / block_bytes;
            if wide == scalar {
                continue;
            }
            for (b, (wide, scalar)) in wide.chunks(block_bytes).zip(scalar.chunks(block_bytes)).enumerate() {
                if wide != scalar {
                    mismatches += 1;
                    if mismatches <= SHOWN {
                        let x = &weights[b * id.codec().block_len()..][..id.codec().block_len()];
                        println!("{id}, importance {}: {x:?}", importance.is_some());
                        println!("  vectors {wide:02x?}\n  scalar  {scalar:02x?}");
                    }
                }
            }
        }
        println!("{id}: {compared} blocks compared, {mismatches} mismatches");
        same &= mismatches == 0;
    }
    Ok(same)
}

/// A generator of 64 bits (xorshift), and weights from it.
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    /// In −1 .. 1.
    fn uniform(&mut self) -> f32 {
        (self.bits() >> 39) as f32 / (1 << 24) as f32 - 1.0
    }
    /// Bell-shaped, within ±4.
    fn bell(&mut self) -> f32 {
        let bits = self.bits();
        (0..4).map(|k| (bits >> (16 * k)) as u16 as f32 / 32768.0 - 1.0).sum()
    }
    /// A number whose magnitude may be any of f32's.
    fn any_finite(&mut self) -> f32 {
        let x = f32::from_bits((self.bits() >> 32) as u32);
        if x.is_finite() { x } else { 0.0 }
    }
    fn importance(&mut self) -> f32 {
        match self.bits() >> 60 {
            0 => 0.0,
            1 => self.uniform().abs() * 1e-6,
            _ => self.bell() * self.bell(),
        }
        .abs()
    }

    /// Weights of another kind every 32, half of the time of the same as before.
    fn fill(&mut self, weights: &mut [f32]) {
        let (mut kind, mut scale, mut value) = (0, 0.02, 1.0);
        for x in weights.chunks_mut(32) {
            if self.bits() >> 63 == 0 {
                kind = self.bits() >> 32 & 15;
                scale = if kind == 5 { 10f32.powf(38.0 * self.uniform()) } else { 0.02 };
                value = self.bell() * scale;
            }
            for x in x {
                *x = match kind {
                    // Laplace-like tails, and outliers.
                    1 => scale * self.bell() / (self.uniform().abs() + 1e-3),
                    2 if self.bits() >> 57 == 0 => 40.0 * scale * self.bell(),
                    // Sparse, with zeros of both signs.
                    3 => [0.0, -0.0, 0.0, scale * self.bell()][(self.bits() >> 62) as usize],
                    4 => [0.0, -0.0][(self.bits() >> 63) as usize],
                    // Constant, up to the sign, and one-sided.
                    6 => value,
                    7 => value * [1.0, -1.0][(self.bits() >> 63) as usize],
                    8 => -(scale * self.bell()).abs(),
                    9 => (scale * self.bell()).abs(),
                    // Few values, ties between codes, just beside powers of two.
                    10 => (self.bell() * 2.0).round() / 64.0,
                    11 => (self.bell() * 8.0).round() / 16.0,
                    12 => f32::from_bits(0x3f80_0000 + ((self.bits() >> 61) as u32) * 0x0040_0000 - (self.bits() >> 60) as u32),
                    // Subnormal, and of any magnitude.
                    13 => f32::from_bits((self.bits() >> 41) as u32 | (self.bits() >> 63 << 31) as u32),
                    14 => self.any_finite(),
                    15 => self.bell() * 1e37,
                    _ => scale * self.bell(),
                };
            }
        }
    }
}

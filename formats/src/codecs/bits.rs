//! Streams of codes narrower than a byte, first code in the lowest bits.

/// Reads `out.len()` codes of `bits` bits (at most 8), a multiple of 8 of them.
pub(crate) fn unpack(bits: u8, stream: &[u8], out: &mut [u8]) {
    debug_assert_eq!(stream.len() * 8, out.len() * usize::from(bits));
    let mask = ((1u16 << bits) - 1) as u8;
    for (bytes, codes) in stream.chunks_exact(usize::from(bits)).zip(out.chunks_exact_mut(8)) {
        let word = bytes.iter().rev().fold(0u64, |word, &b| word << 8 | u64::from(b));
        for (i, code) in codes.iter_mut().enumerate() {
            *code = (word >> (i * usize::from(bits))) as u8 & mask;
        }
    }
}

/// The inverse of [`unpack`]. Codes have no bits beyond `bits`.
pub(crate) fn pack(bits: u8, codes: &[u8], stream: &mut [u8]) {
    debug_assert_eq!(stream.len() * 8, codes.len() * usize::from(bits));
    for (codes, bytes) in codes.chunks_exact(8).zip(stream.chunks_exact_mut(usize::from(bits))) {
        let word = codes.iter().rev().fold(0u64, |word, &c| word << bits | u64::from(c));
        bytes.copy_from_slice(&word.to_le_bytes()[..usize::from(bits)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_straddle_bytes_from_the_lowest_bit() {
        let mut stream = [0; 3];
        pack(3, &[1, 2, 3, 4, 5, 6, 7, 0], &mut stream);
        // 11 010 001, 0 101 100 0, 000 111 11.
        assert_eq!(stream, [0b1101_0001, 0b0101_1000, 0b0001_1111]);
        for bits in 1..=8u8 {
            let codes: Vec<u8> = (0..64u32).map(|i| (i * 37 % (1 << bits)) as u8).collect();
            let mut stream = vec![0; 8 * usize::from(bits)];
            pack(bits, &codes, &mut stream);
            let mut back = vec![0xff; 64];
            unpack(bits, &stream, &mut back);
            assert_eq!(back, codes, "{bits} bits");
        }
    }
}

//! Codes of 2 to 8 bits as a little-endian bit stream: code `i` has the bits `i · width .. (i + 1) · width`, lowest first, so that
//! eight codes fill `width` bytes.

/// Packs codes, one per byte, into `codes.len() · BITS / 8` bytes. There is a multiple of eight of them, each below 2^`BITS`.
#[inline(always)]
pub(super) fn pack<const BITS: usize>(codes: &[u8], out: &mut [u8]) {
    for (codes, out) in codes.as_chunks::<8>().0.iter().zip(out.as_chunks_mut::<BITS>().0) {
        // Neighbours move together: two codes, four, eight.
        let x = u64::from_le_bytes(*codes);
        let x = x & 0x00ff_00ff_00ff_00ff | (x & 0xff00_ff00_ff00_ff00) >> (8 - BITS);
        let x = x & 0x0000_ffff_0000_ffff | (x & 0xffff_0000_ffff_0000) >> (16 - 2 * BITS);
        let x = x & 0xffff_ffff | x >> 32 << (4 * BITS);
        out.copy_from_slice(&x.to_le_bytes()[..BITS]);
    }
}

/// The inverse of [`pack`].
#[inline(always)]
pub(super) fn unpack<const BITS: usize>(bytes: &[u8], codes: &mut [u8]) {
    let mask = |bits: usize| u64::MAX >> (64 - bits);
    let (pairs, fours) = (mask(2 * BITS) << 32 | mask(2 * BITS), mask(4 * BITS));
    let ones = 0x0001_0001_0001_0001 * mask(BITS);
    for (codes, bytes) in codes.as_chunks_mut::<8>().0.iter_mut().zip(bytes.as_chunks::<BITS>().0) {
        let mut word = [0; 8];
        word[..BITS].copy_from_slice(bytes);
        let x = u64::from_le_bytes(word);
        let x = x & fours | (x >> (4 * BITS) & fours) << 32;
        let x = x & pairs | (x >> (2 * BITS) & pairs) << 16;
        let x = x & ones | (x >> BITS & ones) << 8;
        *codes = x.to_le_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bit(bytes: &[u8], i: usize) -> u8 {
        bytes[i / 8] >> (i % 8) & 1
    }

    fn check<const BITS: usize>() {
        let codes: Vec<u8> = (0..64).map(|i| (i * 151 + 77) as u8 >> (8 - BITS)).collect();
        let mut bytes = vec![0xa5; 8 * BITS];
        pack::<BITS>(&codes, &mut bytes);
        for (i, code) in codes.iter().enumerate() {
            assert!((0..BITS).all(|b| bit(&bytes, i * BITS + b) == code >> b & 1), "{BITS} bits, code {i}");
        }
        let mut back = vec![0x5a; 64];
        unpack::<BITS>(&bytes, &mut back);
        assert_eq!(back, codes);
    }

    #[test]
    fn codes_follow_one_another_bit_by_bit() {
        check::<2>();
        check::<3>();
        check::<4>();
        check::<5>();
        check::<6>();
        check::<7>();
        check::<8>();
    }
}

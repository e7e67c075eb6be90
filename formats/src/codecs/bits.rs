//! Codes of 2 to 8 bits as a little-endian bit stream: code `i` has the bits `i · width .. (i + 1) · width`, lowest first, so that
//! eight codes fill `width` bytes.

/// Packs codes, one per byte, into `codes.len() · BITS / 8` bytes. There is a multiple of eight of them, each below 2^`BITS`.
#[inline(always)]
pub(crate) fn pack<const BITS: usize>(codes: &[u8], out: &mut [u8]) {
    /// Bytes of codes at a time.
    const STEP: usize = 32;
    let (codes, codes_rest) = codes.as_chunks::<STEP>();
    let (out, out_rest) = out.split_at_mut(codes.len() * STEP / 8 * BITS);
    for (codes, out) in codes.iter().zip(out.chunks_exact_mut(STEP / 8 * BITS)) {
        // All words before any byte is written: vector registers hold them.
        let mut words = [0u64; STEP / 8];
        words.iter_mut().zip(codes.as_chunks::<8>().0).for_each(|(word, codes)| *word = together::<BITS>(*codes));
        // Each write but the last passes its word's end.
        let mut bytes = [0u8; STEP + 8];
        for (i, word) in words.iter().enumerate() {
            bytes[i * BITS..][..8].copy_from_slice(&word.to_le_bytes());
        }
        out.copy_from_slice(&bytes[..STEP / 8 * BITS]);
    }
    for (codes, out) in codes_rest.as_chunks::<8>().0.iter().zip(out_rest.as_chunks_mut::<BITS>().0) {
        out.copy_from_slice(&together::<BITS>(*codes).to_le_bytes()[..BITS]);
    }
}

/// Eight codes as one number. Neighbours move together: two codes, four, eight.
#[inline(always)]
fn together<const BITS: usize>(codes: [u8; 8]) -> u64 {
    let x = u64::from_le_bytes(codes);
    let x = x & 0x00ff_00ff_00ff_00ff | (x & 0xff00_ff00_ff00_ff00) >> (8 - BITS);
    let x = x & 0x0000_ffff_0000_ffff | (x & 0xffff_0000_ffff_0000) >> (16 - 2 * BITS);
    x & 0xffff_ffff | x >> 32 << (4 * BITS)
}

/// The inverse of [`pack`].
#[inline(always)]
pub(crate) fn unpack<const BITS: usize>(bytes: &[u8], codes: &mut [u8]) {
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

/// [`pack`] for a width of 1 to 8 bits that is known only at run time.
pub(crate) fn pack_width(bits: u8, codes: &[u8], out: &mut [u8]) {
    debug_assert_eq!(out.len() * 8, codes.len() * usize::from(bits));
    match bits {
        1 => pack::<1>(codes, out),
        2 => pack::<2>(codes, out),
        3 => pack::<3>(codes, out),
        4 => pack::<4>(codes, out),
        5 => pack::<5>(codes, out),
        6 => pack::<6>(codes, out),
        7 => pack::<7>(codes, out),
        8 => pack::<8>(codes, out),
        _ => unreachable!("codes have 1 to 8 bits"),
    }
}

/// The inverse of [`pack_width`].
pub(crate) fn unpack_width(bits: u8, bytes: &[u8], codes: &mut [u8]) {
    debug_assert_eq!(bytes.len() * 8, codes.len() * usize::from(bits));
    match bits {
        1 => unpack::<1>(bytes, codes),
        2 => unpack::<2>(bytes, codes),
        3 => unpack::<3>(bytes, codes),
        4 => unpack::<4>(bytes, codes),
        5 => unpack::<5>(bytes, codes),
        6 => unpack::<6>(bytes, codes),
        7 => unpack::<7>(bytes, codes),
        8 => unpack::<8>(bytes, codes),
        _ => unreachable!("codes have 1 to 8 bits"),
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
        let mut same = vec![0xa5; 8 * BITS];
        pack_width(BITS as u8, &codes, &mut same);
        back.fill(0x5a);
        unpack_width(BITS as u8, &same, &mut back);
        assert_eq!((same, back), (bytes, codes));
    }

    #[test]
    fn codes_follow_one_another_bit_by_bit() {
        check::<1>();
        check::<2>();
        check::<3>();
        check::<4>();
        check::<5>();
        check::<6>();
        check::<7>();
        check::<8>();
    }
}

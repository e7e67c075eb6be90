//! Which instructions the products may use.

/// The widest instructions that the processor has, of those that kernels are written for. Others, 64-bit Arm among them, run what the
/// compiler makes of the portable loops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Processor {
    /// No particular ones.
    Portable,
    /// AVX2, FMA and F16C.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code))]
    Avx2,
    /// Those and AVX-512 F, BW, VL and VNNI.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code))]
    Avx512,
}

impl Processor {
    /// This one.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            use std::is_x86_feature_detected as has;
            if has!("avx2") && has!("fma") && has!("f16c") {
                let wider = has!("avx512f") && has!("avx512bw") && has!("avx512vl") && has!("avx512vnni");
                return if wider { Processor::Avx512 } else { Processor::Avx2 };
            }
        }
        Processor::Portable
    }
}

/// Asks for `len` bytes from `start` on, as far as there are any, to be fetched into the cache: hardware stops at every page.
#[inline]
pub(crate) fn prefetch(bytes: &[u8], start: usize, len: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in (start..(start + len).min(bytes.len())).step_by(64) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: within the slice, and fetching reads nothing anyway.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(bytes.as_ptr().add(line).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (bytes, start, len);
}

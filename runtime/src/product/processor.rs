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

/// Asks for what stands some way behind these bytes to be fetched into the caches, a line for each 64 of them: rows of weights follow each
/// other, and hardware stops fetching ahead at every page. What is near comes into the first level; what is far into the second, which
/// can wait for several times as many lines at once.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) fn fetch_behind(bytes: &[u8]) {
    use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};
    const NEAR: usize = 1024;
    const FAR: usize = 6144;
    for line in (0..bytes.len()).step_by(64) {
        let at = |ahead: usize| bytes.as_ptr().wrapping_add(ahead + line).cast();
        // SAFETY: fetching reads nothing, so that an address after the weights' end does no harm.
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(at(NEAR));
            _mm_prefetch::<_MM_HINT_T1>(at(FAR));
        }
    }
}

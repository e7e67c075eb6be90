//! The block formats, one file each, and [`lookup`], the table of all.
//!
//! | file | formats | scales |
//! |---|---|---|
//! | `float.rs` | f32, f16, bf16 | none |
//! | `legacy.rs` | ggml's Q4_0, Q4_1, Q5_0, Q5_1: 32 weights | f16 scale, f16 minimum |
//! | `q8_0.rs` | ggml, 32 weights | one f16 scale |
//! | `tq1_0.rs` `tq2_0.rs` | ggml, 256 ternary weights | one f16 scale |
//! | `q1_0.rs` `q2_0.rs` | ggml, 128 weights of one bit, 64 of two | one f16 scale |
//! | `mxfp4.rs` `nvfp4.rs` | ggml, 32 and 64 weights in e2m1 | one e8m0, four e4m3 scales; shared part in `fp4.rs` |
//! | `q4_k.rs` `q5_k.rs` | ggml, 256 weights | f16 scale and minimum, 6-bit scales and minima of 8 sub-blocks; shared part in `k_affine.rs` |
//! | `q6_k.rs` | ggml, 256 weights | f16 scale, 8-bit scales of 16 sub-blocks |
//! | `mlx_affine.rs` | MLX affine, 4 and 8 bits, groups of 32, 64, 128 | scale and bias |
//!
//! `flat.rs` holds what the formats with one scale per block have in common (`block.rs`, what ggml's have), `superblock.rs` what the K-quants have in common,
//! with `super_fit.rs` and `super_refit.rs` for their grids. `search.rs` has ggml's own searches, for encoding as ggml does;
//! `fit.rs` and `gram.rs` have the weighted least-squares tools behind [`Grid::fit`](crate::Grid::fit) and
//! [`Grid::refit`](crate::Grid::refit).

mod block;
mod fit;
mod flat;
mod float;
mod fp4;
mod gram;
mod k_affine;
mod legacy;
mod mlx_affine;
mod mxfp4;
mod nvfp4;
mod q1_0;
mod q2_0;
mod q4_k;
mod q5_k;
mod q6_k;
mod q8_0;
mod search;
mod side_by_side;
mod super_fit;
mod super_refit;
mod superblock;
mod tq1_0;
mod tq2_0;

use crate::codec::{Codec, CodecId, Float};

/// The codec with this id.
///
/// # Panics
/// If `id` is an MLX format of bits or group size that does not exist here; [`find`] asks first. Ids from
/// [`CodecId::from_str`](std::str::FromStr) and from the container readers always exist.
pub fn lookup(id: CodecId) -> &'static dyn Codec {
    find(id).unwrap_or_else(|| panic!("no such encoding: {id}"))
}

/// The codec with this id, if it exists.
pub fn find(id: CodecId) -> Option<&'static dyn Codec> {
    static F32: float::Plain = float::Plain(Float::F32);
    static F16: float::Plain = float::Plain(Float::F16);
    static BF16: float::Plain = float::Plain(Float::BF16);
    static Q8_0: flat::Flat<q8_0::Q8_0> = flat::Flat(q8_0::Q8_0);
    static Q4_0: flat::Flat<legacy::Legacy<4, false>> = flat::Flat(legacy::Legacy);
    static Q5_0: flat::Flat<legacy::Legacy<5, false>> = flat::Flat(legacy::Legacy);
    static Q4_1: flat::Flat<legacy::Legacy<4, true>> = flat::Flat(legacy::Legacy);
    static Q5_1: flat::Flat<legacy::Legacy<5, true>> = flat::Flat(legacy::Legacy);
    static TQ1_0: flat::Flat<tq1_0::TQ1_0> = flat::Flat(tq1_0::TQ1_0);
    static TQ2_0: flat::Flat<tq2_0::TQ2_0> = flat::Flat(tq2_0::TQ2_0);
    static MXFP4: fp4::Fp4<mxfp4::Mxfp4> = fp4::Fp4::new();
    static NVFP4: fp4::Fp4<nvfp4::Nvfp4> = fp4::Fp4::new();
    static Q1_0: q1_0::Q1_0 = q1_0::Q1_0;
    static Q2_0: flat::Flat<q2_0::Q2_0> = flat::Flat(q2_0::Q2_0);
    static Q4_K: superblock::KQuant<q4_k::Q4K> = superblock::KQuant::new();
    static Q5_K: superblock::KQuant<q5_k::Q5K> = superblock::KQuant::new();
    static Q6_K: superblock::KQuant<q6_k::Q6K> = superblock::KQuant::new();
    Some(match id {
        CodecId::F32 => &F32,
        CodecId::F16 => &F16,
        CodecId::BF16 => &BF16,
        CodecId::Q8_0 => &Q8_0,
        CodecId::Q4_0 => &Q4_0,
        CodecId::Q5_0 => &Q5_0,
        CodecId::Q4_1 => &Q4_1,
        CodecId::Q5_1 => &Q5_1,
        CodecId::Q4K => &Q4_K,
        CodecId::Q5K => &Q5_K,
        CodecId::Q6K => &Q6_K,
        CodecId::MlxAffine { bits, group, scale } => return mlx_affine::find(bits, group, scale),
        CodecId::Q2K => return None,
        CodecId::Q3K => return None,
        CodecId::IQ4NL => return None,
        CodecId::IQ4XS => return None,
        CodecId::IQ3S => return None,
        CodecId::IQ3XXS => return None,
        CodecId::IQ2S => return None,
        CodecId::IQ2XS => return None,
        CodecId::IQ2XXS => return None,
        CodecId::IQ1S => return None,
        CodecId::IQ1M => return None,
        CodecId::TQ1_0 => &TQ1_0,
        CodecId::TQ2_0 => &TQ2_0,
        CodecId::MXFP4 => &MXFP4,
        CodecId::NVFP4 => &NVFP4,
        CodecId::Q1_0 => &Q1_0,
        CodecId::Q2_0 => &Q2_0,
        CodecId::Micro(_) => return None,
        CodecId::IntGroup { .. } => return None,
        CodecId::Fp8Group { .. } => return None,
        CodecId::Nf4 { .. } => return None,
    })
}

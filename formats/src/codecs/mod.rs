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
//! | `q2_k.rs` | ggml, 256 weights | f16 scale and minimum, 4-bit scales and minima of 16 sub-blocks |
//! | `q3_k.rs` | ggml, 256 weights | f16 scale, 6-bit scales of 16 sub-blocks |
//! | `q6_k.rs` | ggml, 256 weights | f16 scale, 8-bit scales of 16 sub-blocks |
//! | `fp8_group.rs` | e4m3 in groups of any length | one per group; shared part in `levels.rs` |
//! | `nf4.rs` | bitsandbytes' NF4, groups of any even length | one f32 per group |
//! | `iq2_xxs.rs` `iq2_xs.rs` `iq2_s.rs` | ggml, 256 weights, points of a codebook and signs | f16 scale, 4-bit scales of 8 or 16 sub-blocks; encoder in `iq2.rs` |
//! | `iq1_s.rs` `iq1_m.rs` | ggml, 256 weights, ternary points of a codebook and shifts | f16 scale, 3-bit scales of 8 or 16 sub-blocks; encoder in `iq1.rs` |
//! | `mlx_affine.rs` | MLX affine, 2 to 8 bits, groups of 32, 64, 128 | scale and bias |
//! | `micro.rs` | MXFP4, MXFP8, NVFP4 as MLX has them; the small floats themselves in `minifloat.rs` | one byte |
//! | `int_group.rs` | GPTQ and AWQ, 2, 3, 4 and 8 bits, any group | scale and integer zero point |
//! | `iq4_nl.rs` `iq4_xs.rs` | ggml, 32 and 256 weights, table of 16 values; shared part in `iq4.rs` | f16 scale; 6-bit scales of 8 sub-blocks |
//! | `iq3_s.rs` `iq3_xxs.rs` | ggml, 256 weights, codebooks of 4 weights; shared part in `iq3.rs` | f16 scale, 4-bit scales of 8 sub-blocks |
//!
//! `flat.rs` holds what the formats with one scale per block have in common, `superblock.rs` what the K-quants have in common,
//! with `super_fit.rs` and `super_refit.rs` for their grids, `tabled.rs` and `tabled_fit.rs` what the formats with tables of values
//! have in common, `codebook.rs` and `codebook_nearest.rs` the searches of codebooks of 4 weights. `codebook8.rs` holds the codebooks of 8 weights (points in
//! `codebook8_points.rs`), `book8.rs` what their formats have in common, with `book8_fit.rs` and `book8_refit.rs` for their
//! grids. `search.rs` has ggml's own searches, for encoding as ggml does;
//! `fit.rs` and `gram.rs` have the weighted least-squares tools behind [`Grid::fit`](crate::Grid::fit) and
//! [`Grid::refit`](crate::Grid::refit).

pub(crate) mod bits;
mod block;
mod book8;
mod book8_fit;
mod book8_refit;
mod codebook;
mod codebook8;
mod codebook8_points;
mod codebook_nearest;
mod fit;
mod flat;
pub(crate) mod float;
mod fp4;
mod fp8_group;
mod gram;
mod int_group;
mod iq1;
mod iq1_m;
mod iq1_s;
mod iq2;
mod iq2_s;
mod iq2_xs;
mod iq2_xxs;
mod iq3;
mod iq3_points;
mod iq3_s;
mod iq3_xxs;
mod iq4;
mod iq4_nl;
mod iq4_xs;
mod k_affine;
mod legacy;
mod levels;
mod micro;
mod minifloat;
mod mlx_affine;
mod mxfp4;
pub(crate) mod nf4;
mod nvfp4;
pub(crate) mod nvfp4_scaled;
mod q1_0;
mod q2_0;
mod q2_k;
mod q3_k;
mod q4_k;
mod q5_k;
mod q6_k;
mod q8_0;
mod registry;
mod search;
mod side_by_side;
mod super_fit;
mod super_refit;
mod superblock;
mod tabled;
mod tabled_fit;
mod tq1_0;
mod tq2_0;
#[cfg(test)]
mod worked_example;

use crate::codec::{Codec, CodecId, Float, Micro};
pub(crate) use float::read as read_float;

/// The codec with this id.
///
/// # Panics
/// If `id` has bits or a group size that do not exist here; [`find`] asks first. Ids from
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
    static Q2_K: superblock::KQuant<q2_k::Q2K> = superblock::KQuant::new();
    static Q3_K: superblock::KQuant<q3_k::Q3K> = superblock::KQuant::new();
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
    static IQ2_S: book8::Book8<iq2_s::IQ2S> = book8::Book8::new();
    static IQ2_XS: book8::Book8<iq2_xs::IQ2XS> = book8::Book8::new();
    static IQ2_XXS: book8::Book8<iq2_xxs::IQ2XXS> = book8::Book8::new();
    static IQ1_S: book8::Book8<iq1_s::IQ1S> = book8::Book8::new();
    static IQ1_M: book8::Book8<iq1_m::IQ1M> = book8::Book8::new();
    static MICRO: [micro::Group; 3] = [micro::Group(Micro::Mxfp4), micro::Group(Micro::Mxfp8), micro::Group(Micro::Nvfp4)];
    static IQ4_NL: tabled::Tabled<iq4_nl::IQ4NL> = tabled::Tabled::new();
    static IQ4_XS: tabled::Tabled<iq4_xs::IQ4XS> = tabled::Tabled::new();
    static IQ3_S: tabled::Tabled<iq3::Tabled<iq3_s::IQ3S>> = tabled::Tabled::new();
    static IQ3_XXS: tabled::Tabled<iq3::Tabled<iq3_xxs::IQ3XXS>> = tabled::Tabled::new();
    Some(match id {
        CodecId::F32 => &F32,
        CodecId::F16 => &F16,
        CodecId::BF16 => &BF16,
        CodecId::Q8_0 => &Q8_0,
        CodecId::Q4_0 => &Q4_0,
        CodecId::Q5_0 => &Q5_0,
        CodecId::Q4_1 => &Q4_1,
        CodecId::Q5_1 => &Q5_1,
        CodecId::Q2K => &Q2_K,
        CodecId::Q3K => &Q3_K,
        CodecId::Q4K => &Q4_K,
        CodecId::Q5K => &Q5_K,
        CodecId::Q6K => &Q6_K,
        CodecId::MlxAffine { bits, group, scale } => return mlx_affine::find(bits, group, scale),
        CodecId::IQ4NL => &IQ4_NL,
        CodecId::IQ4XS => &IQ4_XS,
        CodecId::IQ3S => &IQ3_S,
        CodecId::IQ3XXS => &IQ3_XXS,
        CodecId::IQ2S => &IQ2_S,
        CodecId::IQ2XS => &IQ2_XS,
        CodecId::IQ2XXS => &IQ2_XXS,
        CodecId::IQ1S => &IQ1_S,
        CodecId::IQ1M => &IQ1_M,
        CodecId::Micro(Micro::Mxfp4) => &MICRO[0],
        CodecId::Micro(Micro::Mxfp8) => &MICRO[1],
        CodecId::Micro(Micro::Nvfp4) => &MICRO[2],
        CodecId::IntGroup { bits, group, scale, symmetric } => return int_group::find(bits, group, scale, symmetric),
        CodecId::Fp8Group { group, scale } => return fp8_group::find(group, scale),
        CodecId::Nf4 { group } => return nf4::find(group),
        CodecId::TQ1_0 => &TQ1_0,
        CodecId::TQ2_0 => &TQ2_0,
        CodecId::MXFP4 => &MXFP4,
        CodecId::NVFP4 => &NVFP4,
        CodecId::Q1_0 => &Q1_0,
        CodecId::Q2_0 => &Q2_0,
    })
}

//! The block formats, one file each, and [`lookup`], the table of all.
//!
//! | file | formats | scales |
//! |---|---|---|
//! | `float.rs` | f32, f16, bf16 | none |
//! | `q4_0.rs` `q5_0.rs` `q8_0.rs` | ggml, 32 weights | one f16 scale |
//! | `q4_1.rs` `q5_1.rs` | ggml, 32 weights | f16 scale and minimum |
//! | `q4_k.rs` `q5_k.rs` | ggml, 256 weights | f16 scale and minimum, 6-bit scales and minima of 8 sub-blocks; shared part in `k_affine.rs` |
//! | `q2_k.rs` | ggml, 256 weights | f16 scale and minimum, 4-bit scales and minima of 16 sub-blocks |
//! | `q3_k.rs` | ggml, 256 weights | f16 scale, 6-bit scales of 16 sub-blocks |
//! | `q6_k.rs` | ggml, 256 weights | f16 scale, 8-bit scales of 16 sub-blocks |
//! | `iq4_nl.rs` `iq4_xs.rs` | ggml, 32 and 256 weights, table of 16 values; shared part in `iq4.rs` | f16 scale; 6-bit scales of 8 sub-blocks |
//! | `iq3_s.rs` `iq3_xxs.rs` | ggml, 256 weights, codebooks of 4 weights; shared part in `iq3.rs` | f16 scale, 4-bit scales of 8 sub-blocks |
//! | `mlx_affine.rs` | MLX affine, 4 and 8 bits, groups of 32, 64, 128 | scale and bias |
//!
//! `flat.rs` holds what the formats with one scale per block have in common, `superblock.rs` what the K-quants have in common,
//! with `super_fit.rs` and `super_refit.rs` for their grids, `tabled.rs` and `tabled_fit.rs` what the formats with tables of values
//! have in common, `codebook.rs` and `codebook_nearest.rs` the searches of codebooks of 4 weights. `search.rs` has ggml's own searches, for encoding as ggml does;
//! `fit.rs` and `gram.rs` have the weighted least-squares tools behind [`Grid::fit`](crate::Grid::fit) and
//! [`Grid::refit`](crate::Grid::refit).

mod codebook;
mod codebook_nearest;
mod fit;
mod flat;
mod float;
mod gram;
mod iq3;
mod iq3_points;
mod iq3_s;
mod iq3_xxs;
mod iq4;
mod iq4_nl;
mod iq4_xs;
mod k_affine;
mod legacy;
mod mlx_affine;
mod q2_k;
mod q3_k;
mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;
mod search;
mod side_by_side;
mod super_fit;
mod super_refit;
mod superblock;
mod tabled;
mod tabled_fit;

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
    static Q4_0: flat::Flat<q4_0::Q4_0> = flat::Flat(q4_0::Q4_0);
    static Q5_0: flat::Flat<q5_0::Q5_0> = flat::Flat(q5_0::Q5_0);
    static Q4_1: flat::Flat<q4_1::Q4_1> = flat::Flat(q4_1::Q4_1);
    static Q5_1: flat::Flat<q5_1::Q5_1> = flat::Flat(q5_1::Q5_1);
    static Q2_K: superblock::KQuant<q2_k::Q2K> = superblock::KQuant::new();
    static Q3_K: superblock::KQuant<q3_k::Q3K> = superblock::KQuant::new();
    static Q4_K: superblock::KQuant<q4_k::Q4K> = superblock::KQuant::new();
    static Q5_K: superblock::KQuant<q5_k::Q5K> = superblock::KQuant::new();
    static Q6_K: superblock::KQuant<q6_k::Q6K> = superblock::KQuant::new();
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
        CodecId::IQ2S => return None,
        CodecId::IQ2XS => return None,
        CodecId::IQ2XXS => return None,
        CodecId::IQ1S => return None,
        CodecId::IQ1M => return None,
        CodecId::TQ1_0 => return None,
        CodecId::TQ2_0 => return None,
        CodecId::MXFP4 => return None,
        CodecId::NVFP4 => return None,
        CodecId::Q1_0 => return None,
        CodecId::Q2_0 => return None,
        CodecId::Micro(_) => return None,
        CodecId::IntGroup { .. } => return None,
        CodecId::Fp8Group { .. } => return None,
        CodecId::Nf4 { .. } => return None,
    })
}

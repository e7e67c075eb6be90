//! IQ4_NL: bytes 0–1 scale, 2–17 codes; byte 2 + j holds code j (low half) and code j + 16 (high half).

use super::float::{self, saturate};
use super::iq4;
use super::legacy::{read_nibbles, write_nibbles};
use super::tabled::{Layout, MAX_SUBS, SUB, Scales};
use crate::codec::{CodecId, Float};

pub(super) struct IQ4NL;

impl Layout for IQ4NL {
    const ID: CodecId = CodecId::IQ4NL;
    const LEN: usize = SUB;
    const BYTES: usize = 2 + SUB / 2;
    const VALUES: [f32; 16] = iq4::VALUES;
    const STEP: usize = 1;
    const INTS: (i16, i16) = (0, 0);

    fn factor(_: i16) -> f32 {
        1.0
    }
    fn nearest(x: &[f32], codes: &mut [u8]) {
        codes[0] = iq4::nearest(x[0]);
    }
    fn write(scales: &Scales, codes: &[u8], out: &mut [u8]) {
        float::write(Float::F16, scales.d, out);
        write_nibbles(&codes[..SUB], &mut out[2..]);
    }
    fn read(bytes: &[u8], codes: &mut [u8]) -> Scales {
        read_nibbles(&bytes[2..], &mut codes[..SUB]);
        Scales { d: float::read(Float::F16, bytes), ints: [0; MAX_SUBS] }
    }
    fn encode(rows: &[f32], row_len: usize, importance: Option<&[f32]>, out: &mut [u8]) {
        let mut codes = [0; SUB];
        for (i, (x, out)) in rows.chunks_exact(SUB).zip(out.chunks_exact_mut(Self::BYTES)).enumerate() {
            let importance = importance.map(|q| &q[i * SUB % row_len..][..SUB]);
            let d = iq4::scale(x, iq4::sigma2(x), importance);
            iq4::codes(x, d, &mut codes);
            Self::write(&Scales { d: saturate(Float::F16, d), ints: [0; MAX_SUBS] }, &codes, out);
        }
    }
}

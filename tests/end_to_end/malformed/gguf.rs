//! GGUF files: headers from scratch, and whole models with single bytes changed.

use super::{Row, row};
use crate::support::Work;
use crate::tiny::LLAMA;
use std::fs;

const FILE: &str = "m.gguf";
const INSPECT: &str = "inspect m.gguf";
const GENERATE: &str = "generate m.gguf -p x -n 1";

/// A header as it stands, and 64 bytes of data.
#[derive(Default)]
struct Header {
    bytes: Vec<u8>,
}

impl Header {
    fn new(version: u32, tensors: u64, pairs: u64) -> Self {
        Header { bytes: b"GGUF".to_vec() }.u32(version).u64(tensors).u64(pairs)
    }
    fn u32(mut self, n: u32) -> Self {
        self.bytes.extend(n.to_le_bytes());
        self
    }
    fn u16(mut self, n: u16) -> Self {
        self.bytes.extend(n.to_le_bytes());
        self
    }
    fn u64(mut self, n: u64) -> Self {
        self.bytes.extend(n.to_le_bytes());
        self
    }
    fn text(self, text: &[u8]) -> Self {
        let mut next = self.u64(text.len() as u64);
        next.bytes.extend(text);
        next
    }
    /// A tensor of F32 or another type.
    fn tensor(self, name: &str, shape: &[u64], ty: u32, offset: u64) -> Self {
        let head = self.text(name.as_bytes()).u32(shape.len() as u32);
        shape.iter().fold(head, |h, n| h.u64(*n)).u32(ty).u64(offset)
    }
    fn padded(mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len().next_multiple_of(32) + 64, 0);
        self.bytes
    }
    fn write(self, work: &Work) -> String {
        work.write(FILE, self.padded());
        INSPECT.into()
    }
}

/// A whole model with other bytes.
fn model(work: &Work, line: &str, change: impl FnOnce(&mut Vec<u8>)) -> String {
    LLAMA.write(work, "dense");
    work.ok("convert dense --to gguf:q8_0 -o m.gguf");
    fs::remove_dir_all(work.path("dense")).unwrap();
    fs::remove_file(work.path("m.gguf.bitsmith.json")).unwrap();
    let mut bytes = fs::read(work.path(FILE)).unwrap();
    change(&mut bytes);
    work.write(FILE, bytes);
    line.into()
}

/// Another value for a key of UINT32.
fn set_u32(bytes: &mut [u8], key: &str, value: u32) {
    let at = bytes.windows(key.len()).position(|w| w == key.as_bytes()).unwrap() + key.len() + 4;
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

/// Where a tensor's data begin.
fn data_of(bytes: &[u8], name: &str) -> usize {
    let header = bitsmith_formats::gguf::parse_header(bytes).unwrap();
    header.tensors.iter().find(|t| t.name == name).unwrap().range.start
}

pub fn rows() -> Vec<Row> {
    let q = "blk.1.attn_q.weight";
    vec![
        row("a file of another kind", 65, FILE, "GGUF", |w| {
            w.write(FILE, "This is no GGUF file.");
            INSPECT.into()
        }),
        row("a version of the future", 69, FILE, "version 99", |w| Header::new(99, 0, 0).write(w)),
        row("bytes in the other order", 69, FILE, "big-endian", |w| Header::new(3u32.swap_bytes(), 0, 0).write(w)),
        row("more tensors than bytes", 65, FILE, "tensor count", |w| Header::new(3, u64::MAX, 0).write(w)),
        row("more metadata than bytes", 65, FILE, "metadata count", |w| Header::new(3, 0, 1 << 60).write(w)),
        row("a key longer than the file", 65, FILE, "metadata key", |w| Header::new(3, 0, 1).u64(u64::MAX).write(w)),
        row("a key that is no text", 65, FILE, "UTF-8", |w| Header::new(3, 0, 1).text(b"\xff\xfe").u32(4).u32(1).write(w)),
        row("a value of a type that is not there", 65, FILE, "unknown value type 77", |w| {
            Header::new(3, 0, 1).text(b"x").u32(77).u64(1).write(w)
        }),
        row("a string longer than the file", 65, FILE, "metadata `x`", |w| {
            Header::new(3, 0, 1).text(b"x").u32(8).u64(1 << 50).write(w)
        }),
        row("an array longer than the file", 65, FILE, "array", |w| {
            Header::new(3, 0, 1).text(b"x").u32(9).u32(10).u64(1 << 61).write(w)
        }),
        row("arrays in arrays in arrays", 65, FILE, "nested", |w| {
            (0..1000).fold(Header::new(3, 0, 1).text(b"x").u32(9), |h, _| h.u32(9).u64(1)).write(w)
        }),
        row("an alignment of 3", 65, FILE, "power of two", |w| {
            Header::new(3, 0, 1).text(b"general.alignment").u32(4).u32(3).write(w)
        }),
        row("an alignment of 0", 65, FILE, "power of two", |w| {
            Header::new(3, 0, 1).text(b"general.alignment").u32(4).u32(0).write(w)
        }),
        row("a key twice", 65, FILE, "appears twice", |w| {
            Header::new(3, 0, 2).text(b"x").u32(4).u32(0).text(b"x").u32(4).u32(0).write(w)
        }),
        row("a tensor twice", 65, FILE, "appears twice", |w| {
            Header::new(3, 2, 0).tensor("a", &[4], 0, 0).tensor("a", &[4], 0, 32).write(w)
        })
        .tensor("a"),
        row("an offset that is not aligned", 65, FILE, "alignment", |w| Header::new(3, 1, 0).tensor("a", &[4], 0, 8).write(w))
            .tensor("a"),
        row("tensors that overlap", 65, FILE, "overlaps tensor `a`", |w| {
            Header::new(3, 2, 0).tensor("a", &[12], 0, 0).tensor("b", &[4], 0, 32).write(w)
        })
        .tensor("b"),
        row("a tensor beyond the end", 65, FILE, "past the end", |w| Header::new(3, 1, 0).tensor("a", &[64], 0, 0).write(w))
            .tensor("a"),
        row("an offset beyond any file", 65, FILE, "past the end", |w| {
            Header::new(3, 1, 0).tensor("a", &[4], 0, u64::MAX - 31).write(w)
        })
        .tensor("a"),
        row("a shape that overflows", 65, FILE, "more weights", |w| {
            Header::new(3, 1, 0).tensor("a", &[1 << 40, 1 << 40], 0, 0).write(w)
        })
        .tensor("a"),
        row("99 dimensions", 65, FILE, "99 dimensions", |w| Header::new(3, 1, 0).tensor("a", &[1; 99], 0, 0).write(w))
            .tensor("a"),
        row("a row that is no whole block", 65, FILE, "", |w| Header::new(3, 1, 0).tensor("a", &[31], 8, 0).write(w)).tensor("a"),
        row("a set without its second part", 66, "m-00002-of-00003.gguf", "missing", |w| {
            let header = Header::new(3, 0, 2).text(b"split.count").u32(2).u16(3).text(b"split.no").u32(2).u16(0);
            w.write("m-00001-of-00003.gguf", header.padded());
            "inspect m-00001-of-00003.gguf".into()
        }),
        row("a model that is cut off", 65, FILE, "past the end", |w| model(w, GENERATE, |b| b.truncate(b.len() - 1000))),
        row("a model of four thousand million layers", 65, FILE, "layers", |w| {
            model(w, GENERATE, |b| set_u32(b, "llama.block_count", u32::MAX))
        }),
        row("a model of more layers than it has", 66, FILE, "", |w| model(w, GENERATE, |b| set_u32(b, "llama.block_count", 7))),
        row("a scale that is not a number", 65, FILE, "NaN in row 0", move |w| {
            model(w, "verify m.gguf", |b| {
                let at = data_of(b, q);
                b[at..at + 2].copy_from_slice(&0x7e00u16.to_le_bytes());
            })
        })
        .tensor(q),
        row("a scale that is infinite", 65, FILE, "inf", move |w| {
            model(w, "convert m.gguf --to hf:f32 -o d", |b| {
                let at = data_of(b, q);
                b[at..at + 2].copy_from_slice(&0x7c00u16.to_le_bytes());
            })
        })
        .tensor(q),
    ]
}

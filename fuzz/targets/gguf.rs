//! GGUF: headers, tensors, the models and vocabularies that they describe.

use super::{Random, files, tree, with_file};
use bitsmith_formats::gguf::{GgufStore, Metadata, Value, parse_header, write_gguf};
use bitsmith_formats::{CodecId, EncodedTensor};
use bitsmith_runtime::tokenizer::GgufVocab;
use bitsmith_runtime::{ChatMessage, Checkpoint, Tokenizer};

/// A file.
pub fn run(data: &[u8]) {
    if let Ok(header) = parse_header(data) {
        for tensor in &header.tensors {
            assert!(tensor.range.end <= data.len(), "a tensor beyond the file");
        }
    }
    with_file("x.gguf", data, |path| {
        if let Ok(store) = GgufStore::open(path) {
            files::read_all(&store);
            let _ = Checkpoint::open(path);
        }
    });
}

/// The vocabulary of a file.
pub fn run_vocabulary(data: &[u8]) {
    let Ok(header) = parse_header(data) else { return };
    let Ok(vocab) = GgufVocab::from_metadata(&header.metadata) else { return };
    let Ok(tokenizer) = Tokenizer::from_vocab(&vocab, "x.gguf") else { return };
    if let Ok(ids) = tokenizer.encode("The lighthouse, 1999: naïve 灯台\n", true) {
        let _ = tokenizer.decode(&ids, true);
    }
    let _ = tokenizer.render_timeless(&[ChatMessage::new("user", "Hi")], true);
}

fn file(metadata: &Metadata, tensors: &[(String, EncodedTensor)]) -> Vec<u8> {
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    let path = dir.path().join("x.gguf");
    write_gguf(&path, metadata, tensors).expect("seeds can be written");
    std::fs::read(path).expect("seeds can be read")
}

fn vocabulary(model: &str) -> Metadata {
    let mut m = Metadata::new();
    let tokens: Vec<String> = ["<unk>", "<s>", "</s>", "<0x0A>", "▁", "T", "h", "e", "Th", "The", "▁The", "Ġ", "Ġt", "##e", "灯"]
        .map(String::from)
        .to_vec();
    let n = tokens.len();
    m.set("tokenizer.ggml.model", model);
    m.set("tokenizer.ggml.pre", "default");
    m.set("tokenizer.ggml.tokens", tokens);
    m.set("tokenizer.ggml.scores", (0..n).map(|i| -(i as f32)).collect::<Vec<f32>>());
    m.set("tokenizer.ggml.token_type", (0..n).map(|i| [2i32, 3, 3, 6, 1, 4][i.min(4)]).collect::<Vec<i32>>());
    m.set("tokenizer.ggml.merges", ["T h", "Th e", "Ġ t"].map(String::from).to_vec());
    m.set("tokenizer.ggml.bos_token_id", 1u32);
    m.set("tokenizer.ggml.eos_token_id", 2u32);
    m.set("tokenizer.ggml.unknown_token_id", 0u32);
    m.set("tokenizer.ggml.add_bos_token", true);
    m.set("tokenizer.chat_template", "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}");
    m
}

/// Vocabularies of all models.
pub fn vocabulary_seeds() -> Vec<Vec<u8>> {
    ["gpt2", "llama", "bert"].map(|model| file(&vocabulary(model), &[])).to_vec()
}

/// A tiny model, all types of metadata, and vocabularies.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut m = Metadata::new();
    m.set("general.architecture", "llama");
    for (key, value) in [
        ("block_count", 1u32),
        ("embedding_length", 32),
        ("feed_forward_length", 32),
        ("attention.head_count", 2),
        ("attention.head_count_kv", 1),
        ("context_length", 64),
    ] {
        m.set(format!("llama.{key}"), value);
    }
    m.set("llama.attention.layer_norm_rms_epsilon", 1e-5f32);
    let tensor = |codec, shape: &[usize]| {
        let weights: Vec<f32> = (0..shape.iter().product()).map(|i| (i % 7) as f32 - 3.0).collect();
        EncodedTensor::encode(codec, shape, &weights, None).expect("seeds can be encoded")
    };
    let mut tensors = vec![
        ("token_embd.weight".to_string(), tensor(CodecId::Q8_0, &[15, 32])),
        ("output_norm.weight".to_string(), tensor(CodecId::F32, &[32])),
    ];
    for (name, codec, shape) in [
        ("attn_norm", CodecId::F32, &[32][..]),
        ("attn_q", CodecId::Q4_0, &[32, 32]),
        ("attn_k", CodecId::F16, &[16, 32]),
        ("attn_v", CodecId::BF16, &[16, 32]),
        ("attn_output", CodecId::Q5_1, &[32, 32]),
        ("ffn_norm", CodecId::F32, &[32]),
        ("ffn_gate", CodecId::Q4_1, &[32, 32]),
        ("ffn_up", CodecId::Q5_0, &[32, 32]),
        ("ffn_down", CodecId::Q8_0, &[32, 32]),
    ] {
        tensors.push((format!("blk.0.{name}.weight"), tensor(codec, shape)));
    }
    let mut all = Metadata::new();
    all.set("general.alignment", 32u32);
    all.set("split.count", 1u16);
    for (i, value) in
        [Value::U8(1), Value::I8(-1), Value::I16(-2), Value::U64(1 << 40), Value::I64(-1), Value::F64(0.5), Value::Bool(true)]
            .into_iter()
            .enumerate()
    {
        all.set(format!("x.{i}"), value);
    }
    all.set("x.floats", vec![1.0f32, f32::NAN]);
    all.set("x.strings", vec![String::new(), "é".to_string()]);
    let mut seeds = vec![file(&m, &tensors), file(&all, &[("t".into(), tensor(CodecId::Q6K, &[2, 256]))]), b"GGUF".to_vec()];
    seeds.extend(vocabulary_seeds());
    // Files in the wild, if this is the source tree.
    seeds.extend(std::fs::read(tree("tests/golden/tiny.gguf")));
    seeds
}

/// Where the numbers of a header stand and how wide they are, as far as it can be followed.
fn numbers(bytes: &[u8]) -> Vec<(usize, usize)> {
    struct Walk<'a> {
        bytes: &'a [u8],
        at: usize,
        found: Vec<(usize, usize)>,
    }
    impl Walk<'_> {
        fn number(&mut self, width: usize) -> Option<u64> {
            let mut value = [0; 8];
            value[..width].copy_from_slice(self.bytes.get(self.at..self.at + width)?);
            self.found.push((self.at, width));
            self.at += width;
            Some(u64::from_le_bytes(value))
        }
        fn skip(&mut self, n: u64) -> Option<()> {
            let end = self.at.checked_add(usize::try_from(n).ok()?)?;
            self.at = Some(end).filter(|end| *end <= self.bytes.len())?;
            Some(())
        }
        fn text(&mut self) -> Option<()> {
            let n = self.number(8)?;
            self.skip(n)
        }
        fn value(&mut self, ty: u64, depth: usize) -> Option<()> {
            match ty {
                0 | 1 | 7 => self.number(1).map(drop),
                2 | 3 => self.number(2).map(drop),
                4..=6 => self.number(4).map(drop),
                10..=12 => self.number(8).map(drop),
                8 => self.text(),
                9 if depth < 4 => {
                    let (ty, n) = (self.number(4)?, self.number(8)?);
                    // Numbers in arrays are not what decides.
                    let width = [1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8].get(ty as usize).copied()?;
                    if width > 0 {
                        return self.skip(n.checked_mul(width)?);
                    }
                    (0..n.min(64)).try_for_each(|_| self.value(ty, depth + 1))
                }
                _ => None,
            }
        }
        fn all(&mut self) -> Option<()> {
            self.skip(4)?;
            let (_, tensors, pairs) = (self.number(4)?, self.number(8)?, self.number(8)?);
            for _ in 0..pairs.min(256) {
                self.text()?;
                let ty = self.number(4)?;
                self.value(ty, 0)?;
            }
            for _ in 0..tensors.min(256) {
                self.text()?;
                for _ in 0..self.number(4)?.min(8) {
                    self.number(8)?;
                }
                self.number(4)?;
                self.number(8)?;
            }
            Some(())
        }
    }
    let mut walk = Walk { bytes, at: 0, found: Vec::new() };
    walk.all();
    walk.found
}

/// Another value for a number of the header: counts, lengths, types, dimensions, offsets.
pub fn mutate(data: &mut [u8], size: usize, _max_size: usize, seed: u32) -> usize {
    let mut random = Random(seed | 1);
    let found = numbers(&data[..size]);
    if found.is_empty() {
        return size;
    }
    for _ in 0..1 + random.below(3) {
        let (at, width) = found[random.below(found.len())];
        let read = |(at, width): (usize, usize)| {
            let mut value = [0; 8];
            value[..width].copy_from_slice(&data[at..at + width]);
            u64::from_le_bytes(value)
        };
        let (old, other) = (read((at, width)), read(found[random.below(found.len())]));
        let value = match random.below(14) {
            0 => 0,
            1 => 1,
            2 => u64::MAX,
            3 => u64::MAX >> 1,
            4 => u64::from(u32::MAX),
            5 => 1 << 31,
            6 => 1 << (random.next() % 64),
            7 => size as u64,
            8 => (size - at) as u64,
            9 => old.wrapping_add(1),
            10 => old.wrapping_sub(1),
            11 => old.wrapping_mul(2),
            12 => u64::from(random.next() % 48),
            _ => other,
        };
        data[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
    }
    size
}

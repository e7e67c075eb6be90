//! The projector file of a model with a vision tower: a second GGUF beside that of the text model, by which llama.cpp turns images into
//! its embeddings.

use crate::about::ModelAbout;
use crate::gguf::{file_type, general};
use crate::names;
use crate::tower::encode;
use bitsmith_formats::gguf::{GgufStore, GgufWriter, Metadata, TensorPlan};
use bitsmith_formats::{CodecId, EncodedTensor, Error, Float, Result, TensorStore};
use bitsmith_runtime::arch::vision::{Piece, Tower, TowerTensor};
use bitsmith_runtime::{Checkpoint, WeightSource};
use std::path::{Path, PathBuf};

/// A projector file to be written.
pub struct MmprojPlan<'a> {
    source: &'a Checkpoint,
    metadata: Metadata,
    tensors: Vec<Planned<'a>>,
    left_out: Vec<String>,
    float: Float,
}

struct Planned<'a> {
    from: &'a TowerTensor,
    piece: Piece,
    name: String,
    shape: Vec<usize>,
    codec: CodecId,
}

impl<'a> MmprojPlan<'a> {
    /// Plans the file for a checkpoint; `None` if it has no tower. An error says what llama.cpp has no form for.
    pub fn new(source: &'a Checkpoint, about: &ModelAbout) -> Result<Option<Self>> {
        let (Some(tower), Some(config)) = (source.tower(), source.config()) else { return Ok(None) };
        let at = |e: Error| e.file(source.folder().join("config.json"));
        let float = source.tower_type()?;
        let Tower { wrapper, tensors } = tower;
        let layers = wrapper.projector_layers(config).map_err(at)?;
        let (mut planned, mut left_out) = (Vec::new(), Vec::new());
        for from in tensors {
            let unused = from.gguf().next().is_none()
                || from.layer().is_some_and(|l| l >= layers)
                || !wrapper.final_norm && from.is_final_norm();
            if unused {
                left_out.push(from.name.clone());
                continue;
            }
            let shape = source.tower_info(from)?.shape;
            for (name, piece) in from.gguf() {
                let shape = piece.shape(&shape).map_err(|e| e.file(source.store().file_of(&from.name)).tensor(&from.name))?;
                let codec = codec(&name, &shape, float);
                planned.push(Planned { from, piece, name, shape, codec });
            }
        }
        let mut metadata = Metadata::new();
        let n_weights = planned.iter().map(|t| t.shape.iter().product::<usize>()).sum();
        general(&mut metadata, ("clip", "mmproj"), about, n_weights);
        let processor = source.processor_config()?;
        let keys = wrapper.projector_metadata(config, &processor, source.spec().hidden_size).map_err(at)?;
        keys.into_iter().for_each(|(key, value)| metadata.set(key, value));
        metadata.set("general.file_type", file_type(&float.codec().to_string()).unwrap_or(0));
        metadata.set("general.quantization_version", 2u32);
        Ok(Some(MmprojPlan { source, metadata, tensors: planned, left_out, float }))
    }

    /// The name of the file that belongs to the model of this name, by which llama.cpp, LM Studio and Ollama tell it from models.
    pub fn file_name(&self, model: &str) -> String {
        names::mmproj_file(model, &self.float.codec().to_string())
    }

    /// Tensors that the file does without.
    pub fn left_out(&self) -> &[String] {
        &self.left_out
    }

    /// Bytes of all tensors.
    pub fn bytes(&self) -> Result<u64> {
        Ok(self.plans()?.iter().map(|t| t.n_bytes() as u64).sum())
    }

    fn plans(&self) -> Result<Vec<TensorPlan>> {
        self.tensors.iter().map(|t| TensorPlan::new(&t.name, t.codec, &t.shape)).collect()
    }

    /// Writes the file, which appears under its name when it is whole, and reads its header back.
    pub fn write(&self, path: &Path) -> Result<PathBuf> {
        let writer = GgufWriter::create(path, &self.metadata, self.plans()?)?;
        for t in &self.tensors {
            let tensor = self.source.read_tower(t.from)?;
            let (shape, values) = t.piece.cut(&tensor.shape, &tensor.data)?;
            let encoded: EncodedTensor = encode(t.codec, &shape, &values).map_err(|e| e.file(path).tensor(&t.name))?;
            writer.write_tensor(&t.name, &encoded)?;
        }
        writer.finish()?;
        let found = GgufStore::open(path)?;
        if *found.metadata() != self.metadata || found.tensors().len() != self.tensors.len() {
            drop(std::fs::remove_file(path));
            return Err(Error::corrupt("read back after writing: the header differs").file(path));
        }
        Ok(path.to_path_buf())
    }
}

/// llama.cpp's types for tensors of towers: vectors, positions and convolutions over patches in F32, matrices in 16 bits.
fn codec(name: &str, shape: &[usize], float: Float) -> CodecId {
    match name {
        // Its product overflows nowhere and is faster so.
        "mm.input_projection.weight" => CodecId::F16,
        "v.patch_embd.weight" if float == Float::F16 => CodecId::F16,
        _ if shape.len() < 2 || name.contains(".patch_embd.weight") || name == "v.position_embd.weight" => CodecId::F32,
        _ => float.codec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_llama_cpps() {
        let bf16 = |name, shape: &[usize]| codec(name, shape, Float::BF16);
        assert_eq!(bf16("v.blk.0.attn_q.weight", &[4, 4]), CodecId::BF16);
        assert_eq!(bf16("v.blk.0.attn_q.bias", &[4]), CodecId::F32);
        assert_eq!(bf16("v.patch_embd.weight.1", &[4, 3, 2, 2]), CodecId::F32);
        assert_eq!(bf16("v.position_embd.weight", &[4, 4]), CodecId::F32);
        assert_eq!(bf16("mm.input_projection.weight", &[4, 4]), CodecId::F16);
        assert_eq!(codec("v.patch_embd.weight", &[4, 3, 2, 2], Float::F16), CodecId::F16);
    }
}

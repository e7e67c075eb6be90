//! Writing checkpoints with packed weights: safetensors shards in which each quantized tensor is several planes.

use super::awq;
use super::gptq::{self, ZeroPoints};
use super::{compressed_write, modelopt};
use crate::codec::{CodecId, EncodedTensor};
use crate::error::{Error, Result};
use crate::safetensors::{ShardedWriter, TensorPlan, plan_shards};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// A layout that can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PackedFormat {
    /// GPTQ: [`CodecId::IntGroup`] of any width; columns stay in their order.
    Gptq(ZeroPoints),
    /// AWQ's `gemm` version: [`CodecId::IntGroup`] of 4 bits.
    Awq,
    /// compressed-tensors: [`CodecId::IntGroup`], [`CodecId::Fp8Group`] and [`CodecId::Micro`], also mixed.
    CompressedTensors,
    /// ModelOpt's NVFP4.
    ModelOpt,
}

impl PackedFormat {
    /// `quant_method` in `config.json`.
    pub fn method(self) -> &'static str {
        match self {
            PackedFormat::Gptq(_) => "gptq",
            PackedFormat::Awq => "awq",
            PackedFormat::CompressedTensors => "compressed-tensors",
            PackedFormat::ModelOpt => "modelopt",
        }
    }

    /// Whether a matrix of this shape fills the layout's words; groups aside.
    pub fn fits(self, rows: usize, columns: usize) -> bool {
        match self {
            PackedFormat::Gptq(_) => gptq::fits(rows, columns),
            PackedFormat::Awq => awq::fits(rows, columns),
            // Codes of 4 bits or more.
            PackedFormat::CompressedTensors => columns.is_multiple_of(8),
            PackedFormat::ModelOpt => columns.is_multiple_of(16),
        }
    }

    /// The safetensors tensors that hold a tensor of this codec and logical shape: planes, or one for floats.
    pub fn plan_planes(self, name: &str, codec: CodecId, shape: &[usize]) -> Result<Vec<TensorPlan>> {
        match self {
            _ if codec.float().is_some() => Ok(vec![TensorPlan::float(name, codec, shape)?]),
            PackedFormat::Gptq(_) => gptq::plan_planes(name, codec, shape),
            PackedFormat::Awq => awq::plan_planes(name, codec, shape),
            PackedFormat::CompressedTensors => compressed_write::plan_planes(name, codec, shape),
            PackedFormat::ModelOpt => modelopt::plan_planes(name, codec, shape),
        }
    }

    /// Separates a tensor into names and bytes of the safetensors tensors that [`PackedFormat::plan_planes`] lists.
    pub fn split_planes<'a>(self, name: &str, tensor: &'a EncodedTensor) -> Result<Vec<(String, Cow<'a, [u8]>)>> {
        match self {
            _ if tensor.codec.float().is_some() => Ok(vec![(name.to_string(), Cow::Borrowed(&tensor.bytes))]),
            PackedFormat::Gptq(zeros) => gptq::split_planes(name, tensor, zeros),
            PackedFormat::Awq => awq::split_planes(name, tensor),
            PackedFormat::CompressedTensors => compressed_write::split_planes(name, tensor),
            PackedFormat::ModelOpt => modelopt::split_planes(name, tensor),
        }
    }
}

/// Writes the tensors of a folder with packed weights: safetensors shards with their index. `config.json` and the other files are
/// the caller's.
#[derive(Debug)]
pub struct PackedWriter {
    inner: ShardedWriter,
    format: PackedFormat,
    plans: HashMap<String, (CodecId, Vec<usize>)>,
    folder: PathBuf,
}

impl PackedWriter {
    /// Plans shards of at most `max_shard_bytes` and claims their disk space in `folder`, which must exist. Each tensor is given
    /// as name, codec and logical shape (outermost first).
    pub fn create(
        folder: impl AsRef<Path>,
        format: PackedFormat,
        tensors: &[(String, CodecId, Vec<usize>)],
        max_shard_bytes: u64,
    ) -> Result<Self> {
        let folder = folder.as_ref();
        let mut planes = Vec::new();
        for (name, codec, shape) in tensors {
            planes.extend(format.plan_planes(name, *codec, shape)?);
        }
        let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
        let shards = plan_shards(planes, max_shard_bytes, &metadata, None, false)?;
        let inner = ShardedWriter::create(folder, shards)?;
        let plans = tensors.iter().map(|(name, codec, shape)| (name.clone(), (*codec, shape.clone()))).collect();
        Ok(PackedWriter { inner, format, plans, folder: folder.to_path_buf() })
    }

    /// Writes one planned tensor, exactly once.
    pub fn write(&self, name: &str, tensor: &EncodedTensor) -> Result<()> {
        let fail = |message: String| Err(Error::failed(message).file(&self.folder).tensor(name));
        match self.plans.get(name) {
            None => return fail("is not in the plan".into()),
            Some((codec, shape)) if (*codec, shape) != (tensor.codec, &tensor.shape) => {
                return fail(format!("is {} of {:?}, but the plan says {codec} of {shape:?}", tensor.codec, tensor.shape));
            }
            Some(_) => {}
        }
        for (plane, bytes) in self.format.split_planes(name, tensor)? {
            self.inner.write(&plane, &bytes)?;
        }
        Ok(())
    }

    /// Checks that all tensors were written and gives the files their names, the index last.
    pub fn finish(self) -> Result<()> {
        self.inner.finish()
    }
}

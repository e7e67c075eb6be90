//! Writing checkpoints with packed weights: safetensors shards in which each quantized tensor is several planes.

use super::awq;
use super::gptq::{self, ZeroPoints};
use super::{compressed_write, modelopt};
use crate::codec::{CodecId, EncodedTensor};
use crate::error::{Error, Result};
use crate::safetensors::{ShardedWriter, TensorPlan, plan_shards};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
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

    /// Whether a matrix of this codec and shape, whose rows are whole blocks, fills the layout's words.
    pub fn fits(self, codec: CodecId, rows: usize, columns: usize) -> bool {
        match self {
            PackedFormat::Gptq(_) => gptq::fits(rows, columns),
            PackedFormat::Awq => awq::fits(rows, columns),
            PackedFormat::CompressedTensors => compressed_write::plan_planes(".weight", codec, &[rows, columns]).is_ok(),
            PackedFormat::ModelOpt => modelopt::plan_planes(".weight", codec, &[rows, columns]).is_ok(),
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
    /// as name, codec and logical shape (outermost first). Those that `apart` names go to a file of their own of that name.
    pub fn create(
        folder: impl AsRef<Path>,
        format: PackedFormat,
        tensors: &[(String, CodecId, Vec<usize>)],
        max_shard_bytes: u64,
        apart: Option<(&str, &HashSet<String>)>,
    ) -> Result<Self> {
        let folder = folder.as_ref();
        let (mut planes, mut planes_apart) = (Vec::new(), Vec::new());
        for (name, codec, shape) in tensors {
            let to = if apart.is_some_and(|(_, names)| names.contains(name)) { &mut planes_apart } else { &mut planes };
            to.extend(format.plan_planes(name, *codec, shape)?);
        }
        let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
        let mut shards = plan_shards(planes, max_shard_bytes, &metadata, None, false)?;
        if let Some((file, _)) = apart.filter(|_| !planes_apart.is_empty()) {
            shards = shards.with_file(file, planes_apart, &metadata)?;
        }
        let inner = ShardedWriter::create(folder, shards)?;
        let plans = tensors.iter().map(|(name, codec, shape)| (name.clone(), (*codec, shape.clone()))).collect();
        Ok(PackedWriter { inner, format, plans, folder: folder.to_path_buf() })
    }

    /// Writes consecutive rows of one planned tensor from row `first_row` on (all dimensions but the last make rows), each row
    /// exactly once. The planes mix rows, so that packed tensors come whole.
    pub fn write_rows(&self, name: &str, first_row: usize, rows: &EncodedTensor) -> Result<()> {
        let fail = |message: String| Err(Error::failed(message).file(&self.folder).tensor(name));
        let Some((codec, shape)) = self.plans.get(name) else { return fail("is not in the plan".into()) };
        let n = rows.shape.split_last().map_or(1, |(_, outer)| outer.iter().product::<usize>());
        if (*codec, shape.last()) != (rows.codec, rows.shape.last()) || n == 0 {
            return fail(format!("rows are {} of {:?}, but the plan says {codec} of {shape:?}", rows.codec, rows.shape));
        }
        if codec.float().is_some() {
            return self.inner.write_at(name, (first_row as u64).saturating_mul((rows.bytes.len() / n) as u64), &rows.bytes);
        }
        if first_row != 0 || rows.shape != *shape {
            return fail(format!("{:?} from row {first_row} is not the whole tensor of {shape:?}", rows.shape));
        }
        for (plane, bytes) in self.format.split_planes(name, rows)? {
            self.inner.write(&plane, &bytes)?;
        }
        Ok(())
    }

    /// Checks that all tensors were written and gives the files their names, the index last.
    pub fn finish(self) -> Result<()> {
        self.inner.finish()
    }
}

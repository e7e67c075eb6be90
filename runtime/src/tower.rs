//! Reading tower and projector of a checkpoint, which are carried and not run.

use crate::arch::vision::TowerTensor;
use crate::checkpoint::{Checkpoint, HostTensor};
use bitsmith_formats::{Encoding, Error, Float, Result, TensorInfo};
use serde_json::Value;
use std::path::Path;

impl Checkpoint {
    /// The header's entry of a tensor of tower or projector, with the shape that it has in Hugging Face's folders.
    pub fn tower_info(&self, tensor: &TowerTensor) -> Result<TensorInfo> {
        let name = &tensor.name;
        let missing = || Error::missing("no such tensor").file(self.path()).tensor(name);
        let mut info = self.store().find(name).ok_or_else(missing)?.clone();
        if self.is_turned(tensor, &info.shape) {
            let inputs = info.shape.pop();
            info.shape.splice(1..1, inputs);
        }
        Ok(info)
    }

    /// The tensor decoded to f32, in the shape that it has in Hugging Face's folders: convolutions are `(out, in, …)`.
    pub fn read_tower(&self, tensor: &TowerTensor) -> Result<HostTensor> {
        let info = self.tower_info(tensor)?;
        if let Encoding::Opaque(kind) = &info.encoding {
            return Err(Error::unsupported(format!("tensors of type {kind} cannot be decoded"))
                .file(self.store().file_of(&info.name))
                .tensor(&info.name));
        }
        let (stored, data) = self.store().read_f32(&info.name)?;
        let data = if stored == info.shape { data } else { inputs_second(&stored, &data) };
        Ok(HostTensor { shape: info.shape, data })
    }

    /// The 16-bit type of tower and projector: their own where it is one, and BF16 in place of F32.
    pub fn tower_type(&self) -> Result<Float> {
        for tensor in self.tower().into_iter().flat_map(|t| &t.tensors) {
            if tensor.is_linear() {
                let encoding = self.tower_info(tensor)?.encoding;
                let float = if let Encoding::Codec(codec) = encoding { codec.float() } else { None };
                return Ok(if float == Some(Float::F16) { Float::F16 } else { Float::BF16 });
            }
        }
        Ok(Float::BF16)
    }

    /// `preprocessor_config.json` and `processor_config.json` in one object: how images become patches. Keys of the nested
    /// `image_processor` count as their own. Empty if there are none.
    pub fn processor_config(&self) -> Result<Value> {
        let mut all = serde_json::Map::new();
        for name in ["preprocessor_config.json", "processor_config.json"] {
            let Some(Value::Object(config)) = read_json(&self.folder().join(name))? else { continue };
            let nested = config.get("image_processor").and_then(Value::as_object).cloned();
            all.extend(config);
            all.extend(nested.into_iter().flatten());
        }
        Ok(all.into())
    }

    /// Whether a convolution has its inputs last, as MLX has it: told by their number, since folders of plain numbers look alike.
    fn is_turned(&self, tensor: &TowerTensor, shape: &[usize]) -> bool {
        if !tensor.is_turned_in_mlx() || shape.len() < 4 {
            return false;
        }
        let tower = self.config().and_then(|c| c.get("vision_config"));
        let channels = ["num_channels", "in_channels", "in_chans"].iter().find_map(|key| tower?.get(key)?.as_u64());
        let channels = channels.unwrap_or(3) as usize;
        shape[1] != channels && shape[shape.len() - 1] == channels
    }
}

/// `(out, …, in)` as `(out, in, …)`.
fn inputs_second(shape: &[usize], data: &[f32]) -> Vec<f32> {
    let inputs = *shape.last().unwrap_or(&1);
    let each = data.len() / shape.first().copied().unwrap_or(1).max(1);
    let turned = data.chunks_exact(each.max(1)).flat_map(|out| (0..inputs).flat_map(|i| out.iter().skip(i).step_by(inputs)));
    turned.copied().collect()
}

fn read_json(path: &Path) -> Result<Option<Value>> {
    match std::fs::read(path) {
        Ok(text) => {
            serde_json::from_slice(&text).map(Some).map_err(|e| Error::corrupt(format!("not valid JSON: {e}")).file(path))
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::read(path, e)),
    }
}

//! Opens whatever container lies at a path.

use crate::container::TensorStore;
use crate::error::{Error, Result};
use crate::gguf::{self, GgufStore};
use crate::links;
use crate::mlx::{self, MlxStore};
use crate::packed::{self, PackedStore};
use crate::safetensors::SafetensorsStore;
use crate::torch::{self, TorchStore};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// A kind of container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Container {
    /// A GGUF file, perhaps the first of a split set.
    Gguf,
    /// A folder in MLX's layout with quantized tensors.
    Mlx,
    /// A Hugging Face folder whose `quantization_config` names a layout of [`crate::packed`].
    Packed,
    /// A safetensors file, an index, or a Hugging Face folder.
    Safetensors,
    /// A PyTorch checkpoint: a file, an index, or a folder without safetensors.
    Torch,
}

impl Container {
    /// The name used on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Container::Gguf => "gguf",
            Container::Mlx => "mlx",
            Container::Packed => "packed",
            Container::Safetensors => "safetensors",
            Container::Torch => "torch",
        }
    }

    /// What lies at `path`: by the first bytes of a file, by `config.json` of a folder.
    pub fn detect(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let meta = std::fs::metadata(path).map_err(|e| Error::read(path, e))?;
        if meta.is_dir() {
            links::check(path)?;
            let dense = if torch::only_torch(path) { Container::Torch } else { Container::Safetensors };
            if !path.join(mlx::CONFIG_FILE).is_file() {
                return Ok(dense);
            }
            let (_, config) = packed::config_of(path)?;
            let quantized = config.get("quantization").is_some_and(|q| q.get("bits").is_some());
            return Ok(match quantized {
                true => Container::Mlx,
                false if packed::layout_of(&config).map_err(|e| e.file(path.join(mlx::CONFIG_FILE)))?.is_some() => {
                    Container::Packed
                }
                false => dense,
            });
        }
        if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")) || starts_with_magic(path)? {
            return Ok(Container::Gguf);
        }
        let name = path.file_name().map(|n| n.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
        if torch::is_weights(&name) || name.ends_with(".bin.index.json") {
            return Ok(Container::Torch);
        }
        if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("safetensors") || e.eq_ignore_ascii_case("json")) {
            return Ok(Container::Safetensors);
        }
        Err(Error::unsupported("neither GGUF nor safetensors nor a PyTorch checkpoint").file(path))
    }
}

fn starts_with_magic(path: &Path) -> Result<bool> {
    let mut magic = Vec::with_capacity(gguf::MAGIC.len());
    let file = File::open(path).map_err(|e| Error::read(path, e))?;
    file.take(gguf::MAGIC.len() as u64).read_to_end(&mut magic).map_err(|e| Error::read(path, e))?;
    Ok(magic == gguf::MAGIC)
}

/// Opens a GGUF file or split set, an MLX folder, a Hugging Face folder, or a safetensors or PyTorch file or index.
pub fn open_store(path: impl AsRef<Path>) -> Result<Box<dyn TensorStore>> {
    let path = path.as_ref();
    Ok(match Container::detect(path)? {
        Container::Gguf => Box::new(GgufStore::open(path)?),
        Container::Mlx => Box::new(MlxStore::open(path)?),
        Container::Packed => Box::new(PackedStore::open(path)?),
        Container::Safetensors => Box::new(SafetensorsStore::open(path)?),
        Container::Torch => Box::new(TorchStore::open(path)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use std::fs;

    #[test]
    fn containers_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            fs::write(&path, bytes).unwrap();
            Container::detect(path)
        };
        assert_eq!(file("blob", b"GGUF\x03\0\0\0").unwrap(), Container::Gguf);
        assert_eq!(file("x.gguf", b"").unwrap(), Container::Gguf);
        assert_eq!(file("x.safetensors", b"").unwrap(), Container::Safetensors);
        assert_eq!(file("x.txt", b"some text").unwrap_err().kind, ErrorKind::Unsupported);
        assert_eq!(Container::detect(dir.path()).unwrap(), Container::Safetensors);
        for (config, expected) in [
            (r#"{"quantization":{"bits":4,"group_size":64}}"#, Container::Mlx),
            (r#"{"quantization_config":{"bits":4,"quant_method":"gptq"}}"#, Container::Packed),
            (r#"{"quantization_config":{"bits":4,"quant_method":"unheard of"}}"#, Container::Safetensors),
            (r#"{"model_type":"llama"}"#, Container::Safetensors),
        ] {
            fs::write(dir.path().join("config.json"), config).unwrap();
            assert_eq!(Container::detect(dir.path()).unwrap(), expected);
        }
        fs::remove_file(dir.path().join("x.safetensors")).unwrap();
        fs::write(dir.path().join("training_args.bin"), b"").unwrap();
        assert_eq!(Container::detect(dir.path()).unwrap(), Container::Safetensors);
        assert_eq!(file("pytorch_model.bin", b"PK").unwrap(), Container::Torch);
        assert_eq!(Container::detect(dir.path()).unwrap(), Container::Torch);
        fs::write(dir.path().join("model.safetensors"), b"").unwrap();
        assert_eq!(Container::detect(dir.path()).unwrap(), Container::Safetensors);
        fs::remove_file(dir.path().join("model.safetensors")).unwrap();
        fs::remove_file(dir.path().join("pytorch_model.bin")).unwrap();
        assert_eq!(Container::detect(dir.path().join("none")).unwrap_err().kind, ErrorKind::Missing);
        assert_eq!(open_store(dir.path()).err().unwrap().kind, ErrorKind::Missing);
    }

    #[test]
    fn a_damaged_gguf_is_corrupt() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.gguf");
        fs::write(&path, b"GGUF\x03\0\0").unwrap();
        let error = open_store(&path).err().unwrap();
        assert_eq!((error.kind, error.file), (ErrorKind::Corrupt, Some(path)));
    }
}

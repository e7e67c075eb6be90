//! Encoded tensors between solving and writing, on disk, so that memory follows one layer and a killed run can go on.
//!
//! The folder carries the key of the job that filled it: another job's tensors are never mixed in. Each file appears under
//! its name only when whole.

use crate::manifest::list_files;
use bitsmith_formats::{CodecId, EncodedTensor, Error, Result};
use bitsmith_runtime::Role;
use sha2::{Digest, Sha256};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

/// A folder of encoded tensors.
pub struct Spool {
    dir: PathBuf,
}

const KEY: &str = "key";
const DIGEST: usize = 32;
/// Digest, then the tensor's scale as f32, then its blocks.
const HEAD: usize = DIGEST + 4;

impl Spool {
    /// Opens the spool of the job with this key, keeping what an interrupted run of the same job left, and emptying it otherwise.
    pub fn open(dir: &Path, key: &str) -> Result<Spool> {
        if fs::read_to_string(dir.join(KEY)).ok().as_deref() != Some(key) {
            if dir.exists() {
                fs::remove_dir_all(dir).map_err(|e| Error::write(dir, e))?;
            }
            fs::create_dir_all(dir).map_err(|e| Error::write(dir, e))?;
            write_whole(&dir.join(KEY), &[key.as_bytes()])?;
        }
        Ok(Spool { dir: dir.to_path_buf() })
    }

    /// Whether a folder is a spool.
    pub fn is_at(dir: &Path) -> bool {
        dir.join(KEY).is_file()
    }

    /// Keeps a tensor.
    pub fn put(&self, role: Role, tensor: &EncodedTensor) -> Result<()> {
        let scale = tensor.scale.to_le_bytes();
        let digest = Sha256::new().chain_update(scale).chain_update(&tensor.bytes).finalize();
        write_whole(&self.path(role), &[&digest[..], &scale, &tensor.bytes])
    }

    /// A tensor kept earlier, if it is whole.
    pub fn get(&self, role: Role, codec: CodecId, shape: &[usize]) -> Result<Option<EncodedTensor>> {
        let path = self.path(role);
        let mut bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::read(path, e)),
        };
        let row = shape.last().copied().unwrap_or(1);
        let rows: usize = shape[..shape.len().saturating_sub(1)].iter().product();
        if bytes.len() != HEAD + codec.row_bytes(row)? * rows || Sha256::digest(&bytes[DIGEST..])[..] != bytes[..DIGEST] {
            return Ok(None);
        }
        let scale = f32::from_le_bytes([bytes[DIGEST], bytes[DIGEST + 1], bytes[DIGEST + 2], bytes[DIGEST + 3]]);
        bytes.drain(..HEAD);
        Ok(Some(EncodedTensor { scale, ..EncodedTensor::new(shape, codec, bytes) }))
    }

    /// Whether a tensor is there.
    pub fn has(&self, role: Role) -> bool {
        self.path(role).exists()
    }

    /// Moves in what another spool of the same tensors has.
    pub fn adopt(&self, from: &Path) -> Result<()> {
        for name in list_files(from)?.iter().filter(|n| *n != KEY) {
            let to = self.dir.join(name);
            fs::rename(from.join(name), &to).map_err(|e| Error::write(to, e))?;
        }
        Ok(())
    }

    /// The names of its tensors' files.
    pub fn names(&self) -> Result<Vec<String>> {
        Ok(list_files(&self.dir)?.into_iter().filter(|n| n != KEY && !n.ends_with(".partial")).collect())
    }

    /// Removes the spool: its tensors are in the artifact.
    pub fn remove(self) -> Result<()> {
        fs::remove_dir_all(&self.dir).map_err(|e| Error::write(&self.dir, e))
    }

    /// Removes what a run of this job left that was killed when the artifact was whole. Another job's tensors stay.
    pub fn remove_left(dir: &Path, key: &str) -> Result<()> {
        let of_another = fs::read_to_string(dir.join(KEY)).is_ok_and(|k| k != key);
        if !dir.is_dir() || of_another {
            return Ok(());
        }
        fs::remove_dir_all(dir).map_err(|e| Error::write(dir, e))
    }

    fn path(&self, role: Role) -> PathBuf {
        self.dir.join(role.to_string())
    }
}

fn write_whole(path: &Path, parts: &[&[u8]]) -> Result<()> {
    let partial = path.with_extension("partial");
    let write = || -> std::io::Result<()> {
        let mut file = fs::File::create(&partial)?;
        for part in parts {
            file.write_all(part)?;
        }
        drop(file);
        fs::rename(&partial, path)
    };
    write().map_err(|e| {
        // The disk may be full: what is of no use shall not fill it. If this fails too, the next run overwrites it.
        let _ = fs::remove_file(&partial);
        Error::write(path, e)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitsmith_runtime::Part;

    #[test]
    fn tensors_survive_reopening_by_the_same_job_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("spool");
        let role = Role::layer(2, Part::AttnQ);
        let mut tensor = EncodedTensor::encode(CodecId::F32, &[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], None).unwrap();
        tensor.scale = 0.25;
        Spool::open(&path, "a").unwrap().put(role, &tensor).unwrap();
        let again = Spool::open(&path, "a").unwrap();
        assert_eq!(again.get(role, CodecId::F32, &[2, 3]).unwrap().unwrap(), tensor);
        assert!(again.get(role, CodecId::F32, &[2, 4]).unwrap().is_none());
        assert!(!Spool::open(&path, "b").unwrap().has(role));
    }

    #[test]
    fn only_what_the_same_job_left_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("spool");
        Spool::remove_left(&path, "a").unwrap();
        Spool::open(&path, "a").unwrap();
        Spool::remove_left(&path, "b").unwrap();
        assert!(Spool::is_at(&path));
        Spool::remove_left(&path, "a").unwrap();
        assert!(!path.exists());
        // Killed while it was removed, when the key was gone already.
        fs::create_dir(&path).unwrap();
        Spool::remove_left(&path, "a").unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn damaged_tensors_are_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(&dir.path().join("spool"), "a").unwrap();
        let role = Role::global(Part::OutputNorm);
        spool.put(role, &EncodedTensor::encode(CodecId::F32, &[4], &[1.0; 4], None).unwrap()).unwrap();
        let file = spool.path(role);
        let mut bytes = fs::read(&file).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&file, bytes).unwrap();
        assert!(spool.get(role, CodecId::F32, &[4]).unwrap().is_none());
    }
}

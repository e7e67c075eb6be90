//! The demo model in the binary: a small Llama-architecture checkpoint, trained by `datasets/scripts/train_demo.py`.

use bitsmith_formats::atomic::AtomicDir;
use bitsmith_formats::{Error, ErrorKind, Result, sha256_bytes};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The demo model's name.
pub const NAME: &str = "bitsmith-demo";

macro_rules! files {
    ($($name:literal),* $(,)?) => { &[$(($name, include_bytes!(concat!("../demo/", $name)) as &[u8])),*] };
}

/// The files of the checkpoint folder: names and contents.
pub const FILES: &[(&str, &[u8])] =
    files!["README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",];

/// SHA-256 of the files' names and digests.
pub fn sha256() -> String {
    let line = |(name, bytes): &(&str, &[u8])| format!("{} {name}\n", sha256_bytes(bytes));
    sha256_bytes(FILES.iter().map(line).collect::<String>().as_bytes())
}

/// Writes the demo model as a Hugging Face folder `dir`, unless it is there already, and returns the folder. The folder
/// appears whole or not at all; an older demo model in its place is replaced, a folder with other files is refused.
pub fn materialise(dir: impl AsRef<Path>) -> Result<PathBuf> {
    let dir = dir.as_ref();
    if is_current(dir) {
        return Ok(dir.to_path_buf());
    }
    refuse_strangers(dir)?;
    if let Some(parent) = dir.parent() {
        std::fs::create_dir_all(parent).map_err(|e| Error::write(parent, e))?;
    }
    let Some(out) = start(dir)? else { return Ok(dir.to_path_buf()) };
    for (name, bytes) in FILES {
        let path = out.path().join(name);
        std::fs::write(&path, bytes).map_err(|e| Error::write(&path, e))?;
    }
    out.commit()?;
    Ok(dir.to_path_buf())
}

/// Starts the folder. If another process is writing it, waits for that process to finish; `None` if its result is current.
fn start(dir: &Path) -> Result<Option<AtomicDir>> {
    let mut partial = dir.as_os_str().to_os_string();
    partial.push(".partial");
    for _ in 0..200 {
        match AtomicDir::create(dir) {
            // Another process may have finished between our look and our lock.
            Ok(_) | Err(_) if is_current(dir) => return Ok(None),
            Ok(out) => return Ok(Some(out)),
            Err(e) if e.kind == ErrorKind::CannotWrite && Path::new(&partial).exists() => {
                std::thread::sleep(Duration::from_millis(50));
            }
            Err(e) => return Err(e),
        }
    }
    AtomicDir::create(dir).map(Some)
}

fn is_current(dir: &Path) -> bool {
    let same = |(name, bytes): &(&str, &[u8])| {
        let path = dir.join(name);
        std::fs::metadata(&path).is_ok_and(|m| m.len() == bytes.len() as u64) && std::fs::read(&path).is_ok_and(|b| b == *bytes)
    };
    FILES.iter().all(same)
}

/// Replacing a folder removes everything in it: only do that to a demo model.
fn refuse_strangers(dir: &Path) -> Result<()> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::write(dir, e)),
    };
    for entry in entries {
        let name = entry.map_err(|e| Error::read(dir, e))?.file_name();
        if !FILES.iter().any(|(n, _)| name == *n) {
            let message = format!("the folder holds `{}`, which is not part of the demo model", name.to_string_lossy());
            return Err(Error::new(ErrorKind::CannotWrite, message).file(dir).hint("choose another folder"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_once_and_repaired() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("a/demo");
        assert_eq!(materialise(&dir).unwrap(), dir);
        let model = dir.join("model.safetensors");
        let written = std::fs::metadata(&model).unwrap().modified().unwrap();
        materialise(&dir).unwrap();
        assert_eq!(std::fs::metadata(&model).unwrap().modified().unwrap(), written);
        std::fs::write(&model, b"damaged").unwrap();
        materialise(&dir).unwrap();
        assert!(is_current(&dir));
        assert!(std::fs::metadata(&model).unwrap().len() <= 8 << 20);
    }

    #[test]
    fn a_folder_of_other_files_is_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("mine");
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("thesis.txt"), b"precious").unwrap();
        assert_eq!(materialise(&dir).unwrap_err().kind, ErrorKind::CannotWrite);
        assert_eq!(std::fs::read(dir.join("thesis.txt")).unwrap(), b"precious");
    }

    #[test]
    fn several_writers_at_once_agree() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("demo");
        std::thread::scope(|s| {
            let all: Vec<_> = (0..4).map(|_| s.spawn(|| materialise(&dir))).collect();
            for one in all {
                one.join().unwrap().unwrap();
            }
        });
        assert!(is_current(&dir));
    }
}

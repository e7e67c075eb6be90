//! Symbolic links in folders that strangers made: a name that looks like a model's file may lead to anything on the machine, and what it
//! leads to would be copied into artifacts and published.

use crate::error::{Error, ErrorKind, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// Folders below the model's that have files of it.
const DEPTH: usize = 1;

/// Whether a name from a list stays in the list's folder: relative, and never upwards.
pub fn is_inside(name: &str) -> bool {
    let parts = name.split(['/', '\\']);
    !name.is_empty() && !name.contains(['\0', ':']) && parts.into_iter().all(|part| !part.is_empty() && part != "..")
}

/// Refuses a model's folder if a symbolic link in it leads out of it. Links of the hub's cache are what that cache is made of: from
/// `snapshots/REVISION` to `blobs`, in the folder of a model.
pub fn check(folder: &Path) -> Result<()> {
    let Ok(root) = fs::canonicalize(folder) else { return Ok(()) };
    check_below(folder, &root, DEPTH)
}

fn check_below(folder: &Path, root: &Path, depth: usize) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(|e| Error::read(folder, e))? {
        let entry = entry.map_err(|e| Error::read(folder, e))?;
        let path = entry.path();
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() && depth > 0 {
            check_below(&path, root, depth - 1)?;
        }
        // A link to nothing is a missing file, and is reported as such by those who need it.
        let Some(target) = kind.is_symlink().then(|| fs::canonicalize(&path).ok()).flatten() else { continue };
        if !target.starts_with(root) && !is_blob(&target) {
            let message = format!("this is a link that leads out of the folder, to {}", target.display());
            return Err(Error::new(ErrorKind::Corrupt, message)
                .file(path)
                .hint("if you trust it, put a copy of the file there, or name the folder where it lies"));
        }
    }
    Ok(())
}

/// Whether this is a file of the hub's cache: `models--ORG--NAME/blobs/HASH`.
fn is_blob(target: &Path) -> bool {
    let folder = |path: Option<&Path>| path.and_then(Path::file_name).map(PathBuf::from);
    let (blobs, model) = (target.parent(), target.parent().and_then(Path::parent));
    let name = folder(model).map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    folder(blobs).is_some_and(|n| n == Path::new("blobs")) && ["models--", "datasets--"].iter().any(|p| name.starts_with(p))
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn names_stay_in_their_folder() {
        for name in ["a", "a/b.json", ".eval_results/x.yaml", "a..b"] {
            assert!(is_inside(name), "{name}");
        }
        for name in ["", "/etc/passwd", "../a", "a/../../b", "a\\..\\b", "C:x", "a//b", "a/"] {
            assert!(!is_inside(name), "{name}");
        }
    }

    #[test]
    fn links_stay_in_the_folder_or_in_the_hubs_cache() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("model/sub")).unwrap();
        fs::create_dir_all(at("models--a--b/blobs")).unwrap();
        fs::create_dir_all(at("models--a--b/snapshots/1")).unwrap();
        fs::write(at("models--a--b/blobs/0"), "x").unwrap();
        fs::write(at("model/real"), "x").unwrap();
        symlink("real", at("model/inside")).unwrap();
        symlink("nowhere", at("model/dangling")).unwrap();
        symlink("../../blobs/0", at("models--a--b/snapshots/1/config.json")).unwrap();
        symlink(at("models--a--b/blobs/0"), at("model/from-cache")).unwrap();
        check(&at("model")).unwrap();
        check(&at("models--a--b/snapshots/1")).unwrap();
        // The folder itself may be reached by a link.
        symlink("model", at("alias")).unwrap();
        check(&at("alias")).unwrap();
        fs::write(at("secret"), "x").unwrap();
        for name in ["model/tokenizer.json", "model/sub/x"] {
            symlink(at("secret"), at(name)).unwrap();
            let e = check(&at("model")).unwrap_err();
            assert_eq!((e.kind, e.file), (ErrorKind::Corrupt, Some(at(name))));
            fs::remove_file(at(name)).unwrap();
        }
    }
}

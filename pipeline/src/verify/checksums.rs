//! Files against the hashes that were written beside them.

use super::Verified;
use crate::manifest::{Manifest, SUMS_FILE, hash_artifact};
use bitsmith_formats::hash::sha256_file;
use bitsmith_formats::links::is_inside;
use bitsmith_formats::{Error, Result};
use std::path::Path;

const AGAIN: &str = "copy, download or make the artifact again";

/// Compares with the manifest and with `SHA256SUMS`, where there are any.
pub(super) fn verify(artifact: &Path, verified: &mut Verified) -> Result<()> {
    manifest(artifact, verified)?;
    let folder = if artifact.is_dir() { artifact } else { artifact.parent().unwrap_or(Path::new("")) };
    let sums = folder.join(SUMS_FILE);
    if sums.is_file() {
        let own = (!artifact.is_dir()).then(|| artifact.file_name().unwrap_or_default().to_string_lossy().into_owned());
        listed(&sums, folder, own.as_deref(), verified)?;
    }
    Ok(())
}

fn manifest(artifact: &Path, verified: &mut Verified) -> Result<()> {
    let path = Manifest::path(artifact);
    if !path.is_file() {
        return Ok(());
    }
    verified.checksums.push("manifest");
    let Some(manifest) = Manifest::load(artifact) else {
        verified.problems.push(Error::corrupt("the manifest cannot be read").file(path).hint(AGAIN).into());
        return Ok(());
    };
    for companion in manifest.companions.iter().filter(|c| !c.is_beside(artifact)) {
        let message = format!("the {} file that belongs to the artifact is missing or has changed", companion.kind);
        verified.problems.push(Error::corrupt(message).file(artifact.with_file_name(&companion.file)).hint(AGAIN).into());
    }
    let (sha256, bytes) = hash_artifact(artifact)?;
    if bytes != manifest.bytes {
        let message = format!("{bytes} bytes, the manifest says {}", manifest.bytes);
        verified.problems.push(Error::corrupt(message).file(artifact).hint(AGAIN).into());
    } else if sha256 != manifest.sha256 {
        let message = format!("its contents have changed: sha256 {sha256}, the manifest says {}", manifest.sha256);
        verified.problems.push(Error::corrupt(message).file(artifact).hint(AGAIN).into());
    }
    Ok(())
}

/// Checks the files of a list as `sha256sum` writes it; only `own`, if given.
fn listed(sums: &Path, folder: &Path, own: Option<&str>, verified: &mut Verified) -> Result<()> {
    verified.checksums.push(SUMS_FILE);
    let text = std::fs::read_to_string(sums).map_err(|e| Error::read(sums, e))?;
    for line in text.lines().filter(|l| !l.trim().is_empty()) {
        let entry = line.split_once(' ').map(|(hash, name)| (hash, name.strip_prefix([' ', '*']).unwrap_or(name)));
        let Some((hash, name)) = entry.filter(|(hash, _)| hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit())) else {
            let message = format!("a line that is no checksum: `{line}`");
            verified.problems.push(Error::corrupt(message).file(sums).into());
            continue;
        };
        if own.is_some_and(|own| own != name) {
            continue;
        }
        let path = folder.join(name);
        if !is_inside(name) {
            let message = format!("`{name}` is outside the folder");
            verified.problems.push(Error::corrupt(message).file(sums).hint(AGAIN).into());
            continue;
        }
        match sha256_file(&path) {
            Ok((found, _)) if found.eq_ignore_ascii_case(hash) => {}
            Ok((found, _)) => {
                let message = format!("its contents have changed: sha256 {found}, {SUMS_FILE} says {hash}");
                verified.problems.push(Error::corrupt(message).file(path).hint(AGAIN).into());
            }
            Err(e) => verified.problems.push(e.file(path).hint(AGAIN).into()),
        }
    }
    Ok(())
}

//! What every stage is given besides its inputs: where to report, what it may use, and where caches lie.

use crate::progress::{Progress, Silent};
use crate::pull::Hub;
use bitsmith_runtime::Device;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

/// The surroundings of a job.
#[derive(Clone)]
pub struct Context {
    /// Hears what stages do.
    pub progress: Arc<dyn Progress>,
    /// Threads in the global pool.
    pub threads: usize,
    /// Where models run and solvers multiply.
    pub device: Device,
    /// Most memory that a job may plan to use, in bytes.
    pub max_ram: Option<u64>,
    /// Where our own reusable files go: the unpacked demo model, stored statistics.
    pub cache_dir: PathBuf,
    /// The model hub: address, token, cache, and whether it may be asked at all.
    pub hub: Hub,
    /// Seed of everything random.
    pub seed: u64,
    /// The commit that the program was built from, if it is known.
    pub commit: Option<String>,
}

impl Context {
    /// Surroundings as the environment sets them: silent, all threads, the CPU, no limit on memory.
    pub fn from_env() -> Self {
        Context {
            progress: Arc::new(Silent),
            threads: rayon::current_num_threads(),
            device: Device::Cpu,
            max_ram: None,
            cache_dir: default_cache_dir(),
            hub: Hub::from_env(),
            seed: 0,
            commit: None,
        }
    }

    /// Moves our own cache and the hub's to `dir`.
    pub fn set_cache_dir(&mut self, dir: PathBuf) {
        self.cache_dir = dir.join("bitsmith");
        self.hub.cache_dir = dir;
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("threads", &self.threads)
            .field("device", &self.device.location())
            .field("max_ram", &self.max_ram)
            .field("cache_dir", &self.cache_dir)
            .field("hub", &self.hub)
            .field("seed", &self.seed)
            .finish_non_exhaustive()
    }
}

/// `$XDG_CACHE_HOME/bitsmith`, or `~/.cache/bitsmith`; without a home, a folder among the temporary files.
fn default_cache_dir() -> PathBuf {
    crate::pull::user_cache().map_or_else(|| std::env::temp_dir().join("bitsmith-cache"), |dir| dir.join("bitsmith"))
}

/// Parses a size in bytes: `4GiB`, `500 MB`, `1.5g`, `1000000`. A bare letter counts in powers of 1024.
pub fn parse_size(text: &str) -> bitsmith_formats::Result<u64> {
    let text = text.trim();
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = (&text[..at], text[at..].trim().to_ascii_lowercase());
    let factor = match unit.as_str() {
        "" | "b" => Some(1u64),
        "k" | "kib" => Some(1 << 10),
        "m" | "mib" => Some(1 << 20),
        "g" | "gib" => Some(1 << 30),
        "t" | "tib" => Some(1 << 40),
        "kb" => Some(1_000),
        "mb" => Some(1_000_000),
        "gb" => Some(1_000_000_000),
        "tb" => Some(1_000_000_000_000),
        _ => None,
    };
    let value: Option<f64> = number.parse().ok();
    match (value, factor) {
        (Some(value), Some(factor)) if value * (factor as f64) < u64::MAX as f64 => Ok((value * factor as f64).round() as u64),
        _ => {
            Err(bitsmith_formats::Error::usage(format!("`{text}` is not a size")).hint("write sizes like 4GiB, 500MB or 1000000"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in
            [("4GiB", 4u64 << 30), ("500 MB", 500_000_000), ("1.5g", 3 << 29), ("1000", 1000), ("0", 0), ("2k", 2048)]
        {
            assert_eq!(parse_size(text).unwrap(), bytes, "{text}");
        }
        for bad in ["", "GiB", "4 apples", "-1", "1.2.3M", "99999999999T"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }
}

//! Where the hub is, what we may tell it, and how a model on it is named.

use bitsmith_formats::{Error, Result};
use hf_hub::RepoType;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// The public hub.
pub const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// How to reach the model hub, and where its cache lies.
#[derive(Clone)]
pub struct Hub {
    /// Address, without a slash at the end.
    pub endpoint: String,
    /// Access token. Sent to `endpoint` alone.
    pub token: Option<String>,
    /// Root of the cache in the hub's standard layout.
    pub cache_dir: PathBuf,
    /// Whether to use the cache only.
    pub offline: bool,
    /// How often a request is tried before its failure counts, without any progress in between.
    pub attempts: u32,
    /// Wait before the second attempt; it doubles from one to the next.
    pub backoff: Duration,
    /// Bytes of a part: files of at least two come over several connections.
    pub part: u64,
}

impl Hub {
    /// The settings that the hub's own tools use: `HF_ENDPOINT`; `HF_TOKEN`, `HUGGING_FACE_HUB_TOKEN` or the token file
    /// (`HF_TOKEN_PATH`, `$HF_HOME/token`); `HF_HUB_CACHE`, `HUGGINGFACE_HUB_CACHE` or `$HF_HOME/hub`; `HF_HUB_OFFLINE`.
    pub fn from_env() -> Self {
        Self::from_lookup(|name| std::env::var(name).ok())
    }

    fn from_lookup(var: impl Fn(&str) -> Option<String>) -> Self {
        let set = |name: &str| var(name).map(|v| v.trim().to_string()).filter(|v| !v.is_empty());
        let home = set("HF_HOME").map(PathBuf::from).unwrap_or_else(|| {
            let cache = set("XDG_CACHE_HOME").map(PathBuf::from).or_else(user_cache);
            cache.unwrap_or_else(std::env::temp_dir).join("huggingface")
        });
        let token_file = set("HF_TOKEN_PATH").map_or_else(|| home.join("token"), PathBuf::from);
        let token = set("HF_TOKEN").or_else(|| set("HUGGING_FACE_HUB_TOKEN")).or_else(|| {
            // No token file is the common case, and an unreadable one is like none: the hub says if it wants one.
            std::fs::read_to_string(token_file).ok().map(|t| t.trim().to_string()).filter(|t| !t.is_empty())
        });
        let cache_dir =
            set("HF_HUB_CACHE").or_else(|| set("HUGGINGFACE_HUB_CACHE")).map_or_else(|| home.join("hub"), PathBuf::from);
        let offline =
            set("HF_HUB_OFFLINE").is_some_and(|v| matches!(v.to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on"));
        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| DEFAULT_ENDPOINT.to_string());
        Hub {
            endpoint: endpoint.trim_end_matches('/').to_string(),
            token,
            cache_dir,
            offline,
            attempts: 5,
            backoff: Duration::from_millis(500),
            part: 8 << 20,
        }
    }
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub")
            .field("endpoint", &self.endpoint)
            .field("token", &self.token.as_ref().map(|_| "…"))
            .field("cache_dir", &self.cache_dir)
            .field("offline", &self.offline)
            .finish_non_exhaustive()
    }
}

/// `$XDG_CACHE_HOME`, or `~/.cache`.
pub(crate) fn user_cache() -> Option<PathBuf> {
    let xdg = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|p| p.is_absolute());
    xdg.or_else(|| std::env::home_dir().map(|home| home.join(".cache")))
}

/// A model on the hub: `org/name`, perhaps with `@revision`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubId {
    /// `org/name`.
    pub repo: String,
    /// Branch, tag, pull request (`refs/pr/1`) or commit.
    pub revision: Option<String>,
    /// Whether it is a dataset, not a model.
    pub dataset: bool,
}

impl HubId {
    /// The hub's kind of repository.
    pub(super) fn kind(&self) -> RepoType {
        if self.dataset { RepoType::Dataset } else { RepoType::Model }
    }
}

impl FromStr for HubId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (repo, revision) = match text.split_once('@') {
            Some((repo, revision)) => (repo, Some(revision.to_string())),
            None => (text, None),
        };
        let well_formed = |part: &str| {
            let plain = part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
            let edges = part.starts_with(['-', '.']) || part.ends_with(['-', '.']);
            (1..=96).contains(&part.len()) && plain && !edges && !part.contains("--") && !part.contains("..")
        };
        match repo.split_once('/') {
            Some((org, name)) if well_formed(org) && well_formed(name) => {}
            _ => return Err(Error::usage(format!("`{text}` is not a hub id of the form org/name[@revision]"))),
        }
        if let Some(revision) = &revision {
            check_revision(revision)?;
        }
        Ok(HubId { repo: repo.to_string(), revision, dataset: false })
    }
}

impl fmt::Display for HubId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repo)?;
        self.revision.as_ref().map_or(Ok(()), |r| write!(f, "@{r}"))
    }
}

/// Refuses what git does not allow as a reference name. A revision becomes part of a path in the cache.
pub(crate) fn check_revision(revision: &str) -> Result<()> {
    let bad_char = |c: char| c.is_control() || c.is_whitespace() || "~^:?*[\\".contains(c);
    let bad_part = |part: &str| part.is_empty() || part.starts_with('.') || part.ends_with(".lock");
    if revision.is_empty() || revision.contains("..") || revision.contains(bad_char) || revision.split('/').any(bad_part) {
        return Err(Error::usage(format!("`{revision}` is not a revision")).hint("give a branch, a tag or a commit hash"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids() {
        let id: HubId = "Qwen/Qwen2.5-0.5B@refs/pr/3".parse().unwrap();
        assert_eq!((id.repo.as_str(), id.revision.as_deref()), ("Qwen/Qwen2.5-0.5B", Some("refs/pr/3")));
        assert_eq!(id.to_string(), "Qwen/Qwen2.5-0.5B@refs/pr/3");
        for bad in
            ["", "name", "a/b/c", "../b", "a/..", "a/b c", "a/b@", "a/b@../x", "a/b@x/../y", "/a/b", "a/b@/x", "./model", "a/-b"]
        {
            assert!(bad.parse::<HubId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn environment() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("token"), "from-file\n").unwrap();
        let home = dir.path().to_str().unwrap().to_string();
        let hub = Hub::from_lookup(|n| (n == "HF_HOME").then(|| home.clone()));
        assert_eq!(hub.token.as_deref(), Some("from-file"));
        assert_eq!(hub.cache_dir, dir.path().join("hub"));
        assert_eq!((hub.endpoint.as_str(), hub.offline), (DEFAULT_ENDPOINT, false));
        assert!(!format!("{hub:?}").contains("from-file"));

        let hub = Hub::from_lookup(|n| match n {
            "HF_HOME" => Some(home.clone()),
            "HUGGING_FACE_HUB_TOKEN" => Some("older".into()),
            "HF_HUB_CACHE" => Some("/c".into()),
            "HF_HUB_OFFLINE" => Some("True".into()),
            "HF_ENDPOINT" => Some("http://mirror/".into()),
            _ => None,
        });
        assert_eq!((hub.token.as_deref(), hub.cache_dir.to_str(), hub.offline), (Some("older"), Some("/c"), true));
        assert_eq!(hub.endpoint, "http://mirror");
    }
}

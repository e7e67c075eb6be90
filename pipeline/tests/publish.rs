//! Uploads to a hub that breaks in all the ways that hubs break.

#[expect(dead_code, reason = "downloads use the rest of it")]
mod hub;

use bitsmith_formats::{ErrorKind, Result, sha256_bytes};
use bitsmith_pipeline::progress::Silent;
use bitsmith_pipeline::publish::{PublishOptions, Published, publish};
use bitsmith_pipeline::pull::Hub as Settings;
use hub::{COMMIT, Fault, Hub, Request, State};
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

const WEIGHTS: &str = "tiny-Q4_K_M.gguf";
const TOKEN: &str = "hf_secret";

fn weights() -> Vec<u8> {
    (0..250_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 11) as u8).collect()
}

struct Test {
    hub: Hub,
    release: TempDir,
    options: PublishOptions,
}

impl Test {
    fn new(state: State) -> Self {
        let hub = Hub::start(State { blobs: true, token: Some(TOKEN.into()), ..state });
        let release = tempfile::tempdir().unwrap();
        let options = PublishOptions {
            hub: Settings {
                endpoint: hub.endpoint.clone(),
                token: Some(TOKEN.into()),
                cache_dir: release.path().join("cache"),
                offline: false,
                attempts: 3,
                backoff: Duration::from_millis(5),
                part: 8 << 20,
            },
            repo: "org/tiny".into(),
            private: true,
            dry_run: false,
            progress: Arc::new(Silent),
        };
        let test = Test { hub, release, options };
        test.write("README.md", b"---\nlicense: mit\n---\n# Tiny\n");
        test.write(WEIGHTS, &weights());
        test.write(".eval_results/a.yaml", b"[]\n");
        test.write("cache.ignored", b"x");
        test.sums(&["README.md", WEIGHTS, ".eval_results/a.yaml", "cache.ignored"]);
        test
    }
    fn path(&self, name: &str) -> PathBuf {
        self.release.path().join(name)
    }
    fn write(&self, name: &str, contents: &[u8]) {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::write(self.path(name), contents).unwrap();
    }
    fn sums(&self, names: &[&str]) {
        let line = |name: &&str| format!("{}  {name}\n", sha256_bytes(&fs::read(self.path(name)).unwrap()));
        self.write("SHA256SUMS", names.iter().map(line).collect::<String>().as_bytes());
    }
    fn publish(&self) -> Result<Published> {
        publish(self.release.path(), &self.options)
    }
    fn requests(&self, part: &str) -> Vec<Request> {
        self.hub.requests().into_iter().filter(|r| r.path.contains(part)).collect()
    }
    /// Whether the repository is the release.
    fn is_published(&self) -> bool {
        let state = self.hub.state.lock().unwrap();
        let same = |name: &str| state.files.get(name) == Some(&fs::read(self.path(name)).unwrap());
        ["README.md", "SHA256SUMS", WEIGHTS, ".eval_results/a.yaml"].into_iter().all(same) && state.large == [WEIGHTS]
    }
}

#[test]
fn a_release_is_one_commit_and_goes_up_once() {
    for part_size in [None, Some(100_000)] {
        let test = Test::new(State { part_size, ..State::default() });
        let published = test.publish().unwrap();
        assert_eq!((published.commit.as_deref(), published.repo.as_str()), (Some(COMMIT), "org/tiny"));
        assert!(test.is_published());
        assert!(published.uploaded_bytes > 250_000 && published.files.iter().all(|f| !f.unchanged));
        let created: serde_json::Value = serde_json::from_slice(&test.requests("/create")[0].body).unwrap();
        assert_eq!(created, serde_json::json!({"type": "model", "organization": "org", "name": "tiny", "private": true}));
        assert_eq!(test.requests("/upload/").len(), part_size.map_or(1, |_| 4));

        test.hub.forget();
        let again = test.publish().unwrap();
        assert_eq!((again.commit, again.uploaded_bytes), (None, 0));
        assert!(test.requests("/upload/").is_empty() && test.requests("/commit/").is_empty());

        // A new card is a commit without the weights.
        test.write("README.md", b"---\nlicense: mit\n---\n# Tinier\n");
        test.sums(&["README.md", WEIGHTS, ".eval_results/a.yaml", "cache.ignored"]);
        assert!(test.publish().unwrap().uploaded_bytes < 1000);
        assert!(test.is_published() && test.requests("/upload/").is_empty());
        assert_eq!(test.hub.state.lock().unwrap().commits, 2);
    }
}

#[test]
fn passing_failures_are_tried_again() {
    let broken = Fault::BreakAfter(0);
    for part_size in [None, Some(100_000)] {
        let mut test = Test::new(State { part_size, ..State::default() });
        // One file meets several of these one after the other.
        test.options.hub.attempts = 10;
        for route in ["create", "preupload", "batch", "verify", "commit"] {
            test.hub.fault(route, &[Fault::Status(429), broken]);
        }
        test.hub.fault("put", &[Fault::Status(503), broken]);
        test.hub.fault("complete", &[Fault::Status(500)]);
        test.publish().unwrap();
        assert!(test.is_published());
        assert_eq!(test.hub.state.lock().unwrap().commits, 1);
    }
    // For good.
    let test = Test::new(State::default());
    test.hub.fault("commit", &[Fault::Status(502); 3]);
    assert_eq!(test.publish().unwrap_err().kind, ErrorKind::Transient);
    // The weights are there; the next call goes on with the commit.
    test.hub.forget();
    test.publish().unwrap();
    assert!(test.is_published() && test.requests("/upload/").is_empty());
}

#[test]
fn storage_addresses_that_expired_are_asked_for_anew() {
    let storage = Hub::start(State::default());
    let test = Test::new(State { storage: Some(storage.endpoint.clone()), ..State::default() });
    storage.fault("put", &[Fault::Status(403)]);
    // The other host keeps what it gets: the hub's own list of contents stays empty, and says so when asked to verify.
    assert_eq!(test.publish().unwrap_err().kind, ErrorKind::Failed);
    assert_eq!(test.requests("/batch").len(), 2);
    let sent = storage.requests();
    assert_eq!(sent.len(), 2);
    assert!(sent.iter().all(|r| r.authorization.is_none() && r.method == "PUT"), "{sent:?}");
}

#[test]
fn a_token_that_expires_ends_the_work_and_goes_nowhere_else() {
    let test = Test::new(State::default());
    test.hub.fault("commit", &[Fault::Status(401)]);
    let e = test.publish().unwrap_err();
    assert_eq!(e.kind, ErrorKind::NotAuthorised);
    assert!(e.hint.as_ref().unwrap().contains("HF_TOKEN") && !format!("{e:?}").contains(TOKEN), "{e:?}");
    assert_eq!(test.requests("/commit/").len(), 1);
    let test = Test::new(State::default());
    test.hub.fault("create", &[Fault::Status(403)]);
    assert_eq!(test.publish().unwrap_err().kind, ErrorKind::NotAuthorised);

    let other = Hub::start(State { token: Some(TOKEN.into()), ..State::default() });
    let test = Test::new(State { elsewhere: Some(other.endpoint.clone()), ..State::default() });
    assert_eq!(test.publish().unwrap_err().kind, ErrorKind::NotAuthorised);
    let seen = other.requests();
    assert!(seen.len() == 1 && seen[0].method == "POST" && seen[0].authorization.is_none(), "{seen:?}");
}

#[test]
fn what_is_no_release_is_not_sent() {
    let test = Test::new(State::default());
    let refused = |test: &Test, kind| {
        let e = test.publish().unwrap_err();
        assert_eq!(e.kind, kind, "{e}");
        assert!(test.hub.requests().is_empty());
    };
    test.write("README.md", b"changed");
    refused(&test, ErrorKind::Corrupt);
    test.sums(&["README.md", WEIGHTS]);
    // No licence.
    refused(&test, ErrorKind::Usage);
    test.write("SHA256SUMS", format!("{}  ../up\n", "0".repeat(64)).as_bytes());
    refused(&test, ErrorKind::Corrupt);
    fs::remove_file(test.path("SHA256SUMS")).unwrap();
    refused(&test, ErrorKind::Missing);
    let mut test = Test::new(State::default());
    test.options.dry_run = true;
    let published = test.publish().unwrap();
    assert!(published.commit.is_none() && published.files.len() == 5 && test.hub.requests().is_empty());
}

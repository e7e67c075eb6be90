//! Downloads from a hub that breaks in all the ways that hubs break.

mod hub;

use bitsmith_formats::{ErrorKind, Result};
use bitsmith_pipeline::pull::{Hub as Settings, PullOptions, Pulled, Selection, pull};
use hub::{COMMIT, Fault, Hub, State};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

const WEIGHTS: &str = "model.safetensors";
const CONFIG: &str = r#"{"model_type":"llama","hidden_size":8}"#;

fn weights() -> Vec<u8> {
    (0..300_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

fn repository() -> State {
    let mut state = State { blobs: true, large: vec![WEIGHTS.into()], ..State::default() };
    let files: [(&str, Vec<u8>); 7] = [
        (WEIGHTS, weights()),
        ("config.json", CONFIG.into()),
        ("tokenizer.json", b"{}".to_vec()),
        ("README.md", b"# tiny".to_vec()),
        ("additional_chat_templates/tool use.jinja", b"{{ x }}".to_vec()),
        ("pytorch_model.bin", vec![7; 100]),
        ("empty.json", Vec::new()),
    ];
    state.files.extend(files.map(|(n, d)| (n.to_string(), d)));
    state
}

struct Test {
    hub: Hub,
    cache: TempDir,
    options: PullOptions,
}

impl Test {
    fn new(state: State) -> Self {
        let hub = Hub::start(state);
        let cache = tempfile::tempdir().unwrap();
        let options = PullOptions::new(Settings {
            endpoint: hub.endpoint.clone(),
            token: None,
            cache_dir: cache.path().to_path_buf(),
            offline: false,
            attempts: 3,
            backoff: Duration::from_millis(5),
            part: 8 << 20,
        });
        Test { hub, cache, options }
    }
    fn pull(&self) -> Result<Pulled> {
        pull("org/tiny", &self.options)
    }
    fn repo(&self) -> PathBuf {
        self.cache.path().join("models--org--tiny")
    }
    /// Names of unfinished downloads.
    fn partials(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.repo().join("blobs")) else { return Vec::new() };
        let names = entries.map(|e| e.unwrap().file_name().into_string().unwrap());
        names.filter(|n| n.ends_with(".incomplete")).collect()
    }
    fn partial(&self) -> PathBuf {
        self.repo().join("blobs").join(format!("{}.incomplete", bitsmith_formats::sha256_bytes(&weights())))
    }
}

fn has_weights(folder: &Path) -> bool {
    fs::read(folder.join(WEIGHTS)).is_ok_and(|b| b == weights())
}

#[test]
fn a_complete_pull_and_a_second_that_downloads_nothing() {
    for blobs in [true, false] {
        let test = Test::new(State { blobs, ..repository() });
        let pulled = test.pull().unwrap();
        assert_eq!((pulled.commit.as_str(), pulled.revision.as_str()), (COMMIT, "main"));
        assert_eq!(pulled.path, test.repo().join("snapshots").join(COMMIT));
        assert!(has_weights(&pulled.path));
        assert_eq!(fs::read_to_string(pulled.path.join("config.json")).unwrap(), CONFIG);
        assert!(pulled.path.join("additional_chat_templates/tool use.jinja").is_file());
        assert_eq!(fs::metadata(pulled.path.join("empty.json")).unwrap().len(), 0);
        assert!(!pulled.path.join("pytorch_model.bin").exists());
        assert_eq!(fs::read_to_string(test.repo().join("refs/main")).unwrap(), COMMIT);
        assert!(test.partials().is_empty());
        let names: Vec<&str> = pulled.files.iter().map(|f| f.name.as_str()).collect();
        assert_eq!(
            names,
            ["README.md", "additional_chat_templates/tool use.jinja", "config.json", "empty.json", WEIGHTS, "tokenizer.json"]
        );
        assert_eq!(pulled.files[4].sha256, Some(bitsmith_formats::sha256_bytes(&weights())));
        assert_eq!(pulled.downloaded_bytes, pulled.files.iter().map(|f| f.bytes).sum::<u64>());
        // The configuration came first.
        assert!(
            test.hub
                .requests()
                .iter()
                .find(|r| r.method == "GET" && r.path.contains("/resolve/"))
                .unwrap()
                .path
                .ends_with("/config.json")
        );

        test.hub.forget();
        let again = test.pull().unwrap();
        assert_eq!((again.downloaded_bytes, again.path), (0, pulled.path));
        assert!(again.files.iter().all(|f| f.cached));
        assert!(test.hub.requests().iter().all(|r| r.method == "HEAD" || r.path.starts_with("/api/")));
    }
}

#[test]
fn a_full_disk_is_noticed_before_the_download() {
    let test = Test::new(State { claimed: Some(1 << 52), ..repository() });
    let e = test.pull().unwrap_err();
    assert!(e.kind == ErrorKind::Io && e.message.contains("the disk has"), "{e}");
    assert!(test.hub.gets(WEIGHTS).is_empty() && test.partials().is_empty());
}

#[test]
fn a_broken_connection_is_resumed_where_it_broke() {
    let test = Test::new(repository());
    test.hub.fault(WEIGHTS, &[Fault::BreakAfter(100_000)]);
    assert!(has_weights(&test.pull().unwrap().path));
    let ranges: Vec<_> = test.hub.gets(WEIGHTS).into_iter().map(|r| r.range).collect();
    assert_eq!(ranges, [None, Some("bytes=100000-".to_string())]);
}

#[test]
fn progress_resets_the_count_of_attempts() {
    let test = Test::new(repository());
    test.hub.fault(WEIGHTS, &[Fault::BreakAfter(1000); 8]);
    assert!(has_weights(&test.pull().unwrap().path));
    assert_eq!(test.hub.gets(WEIGHTS).len(), 9);
}

#[test]
fn a_later_run_resumes_what_an_earlier_one_left() {
    let mut test = Test::new(repository());
    test.options.hub.attempts = 1;
    test.hub.fault(WEIGHTS, &[Fault::BreakAfter(200_000)]);
    let error = test.pull().unwrap_err();
    assert_eq!(error.kind, ErrorKind::Transient, "{error}");
    assert_eq!(fs::metadata(test.partial()).unwrap().len(), 200_000);
    assert!(!test.repo().join("refs/main").exists());

    test.hub.forget();
    let pulled = test.pull().unwrap();
    assert!(has_weights(&pulled.path) && pulled.downloaded_bytes == 100_000);
    assert_eq!(test.hub.gets(WEIGHTS)[0].range.as_deref(), Some("bytes=200000-"));
}

#[test]
fn a_partial_file_of_other_contents_is_noticed_and_replaced() {
    for bad in [vec![9u8; 1000], vec![9u8; 300_000], vec![9u8; 400_000]] {
        let test = Test::new(repository());
        fs::create_dir_all(test.repo().join("blobs")).unwrap();
        fs::write(test.partial(), &bad).unwrap();
        assert!(has_weights(&test.pull().unwrap().path), "{}", bad.len());
    }
}

#[test]
fn a_server_that_does_not_resume_sends_everything() {
    let test = Test::new(repository());
    test.hub.fault(WEIGHTS, &[Fault::BreakAfter(5000), Fault::NoRange]);
    assert!(has_weights(&test.pull().unwrap().path));
}

#[test]
fn large_files_come_in_parts() {
    let asked = |test: &Test| {
        let stored = test.hub.requests().into_iter().filter(|r| r.path.starts_with("/storage/"));
        let mut ranges: Vec<String> = stored.filter_map(|r| r.range).collect();
        ranges.sort();
        ranges
    };
    let test = || {
        let mut test = Test::new(repository());
        test.options.hub.part = 40_000;
        test
    };
    let whole = test();
    assert_eq!(whole.pull().map(|p| (has_weights(&p.path), p.downloaded_bytes > 300_000)).unwrap(), (true, true));
    let mut parts: Vec<String> = (0..8).map(|i| format!("bytes={}-{}", i * 40_000, 299_999.min(i * 40_000 + 39_999))).collect();
    parts.sort();
    assert_eq!(asked(&whole), parts);
    // Only the first parts' way is asked of the hub: the others go to where the file is stored.
    let on_the_hub = whole.hub.gets(WEIGHTS).len();
    assert!((1..=4).contains(&on_the_hub), "{on_the_hub}");

    // What came before a broken connection is not asked for again.
    let broken = test();
    broken.hub.fault(WEIGHTS, &[Fault::BreakAfter(30_000), Fault::Status(503), Fault::BreakAfter(0)]);
    assert!(has_weights(&broken.pull().unwrap().path));
    let mut later = test();
    later.options.hub.attempts = 1;
    fs::create_dir_all(later.repo().join("blobs")).unwrap();
    fs::write(later.partial(), &weights()[..123_456]).unwrap();
    assert!(has_weights(&later.pull().unwrap().path));
    assert!(asked(&later).iter().any(|r| r == "bytes=123456-163455") && asked(&later).len() == 5, "{:?}", asked(&later));

    let without = test();
    without.hub.fault(WEIGHTS, &[Fault::NoRange; 9]);
    assert!(has_weights(&without.pull().unwrap().path));
    let wrong = test();
    wrong.hub.fault(WEIGHTS, &[Fault::WrongBytes; 99]);
    assert_eq!(wrong.pull().unwrap_err().kind, ErrorKind::Corrupt);
}

#[test]
fn wrong_contents_are_refused() {
    for name in [WEIGHTS, "config.json"] {
        let test = Test::new(repository());
        test.hub.fault(name, &[Fault::WrongBytes; 9]);
        let error = test.pull().unwrap_err();
        assert_eq!(error.kind, ErrorKind::Corrupt, "{error}");
        assert!(error.file.unwrap().ends_with(name));
        // Nothing of the wrong file stays; what was there of the other may be resumed.
        assert!(test.partials().iter().all(|p| name != WEIGHTS && test.partial().ends_with(p)));
        assert!(!test.repo().join("snapshots").join(COMMIT).join(name).exists());
    }
}

#[test]
fn unauthorised() {
    let mut test = Test::new(State { token: Some("hf_secret".into()), ..repository() });
    let error = test.pull().unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotAuthorised);
    assert!(error.hint.unwrap().contains("HF_TOKEN"));
    assert_eq!(test.hub.requests().len(), 1, "refusals are not retried");

    test.options.hub.token = Some("hf_secret".into());
    assert!(has_weights(&test.pull().unwrap().path));
}

#[test]
fn the_token_stays_with_the_hub() {
    // Another host, to which the hub redirects for large files.
    let storage = Hub::start(State { files: [(WEIGHTS.to_string(), weights())].into(), ..State::default() });
    let mut test = Test::new(State { token: Some("t".into()), storage: Some(storage.endpoint.clone()), ..repository() });
    test.options.hub.token = Some("t".into());
    assert!(has_weights(&test.pull().unwrap().path));
    let seen = storage.requests();
    assert!(!seen.is_empty() && seen.iter().all(|r| r.authorization.is_none()));
    assert!(test.hub.requests().iter().all(|r| r.authorization.is_some()));
}

#[test]
fn missing_repositories_revisions_and_files() {
    let test = Test::new(repository());
    assert_eq!(pull("org/other", &test.options).unwrap_err().kind, ErrorKind::Missing);
    let error = pull("org/tiny@v9", &test.options).unwrap_err();
    assert!(error.kind == ErrorKind::Missing && error.to_string().contains("v9"), "{error}");
    assert_eq!(pull("tiny", &test.options).unwrap_err().kind, ErrorKind::Usage);
    assert_eq!(pull("org/tiny@../../x", &test.options).unwrap_err().kind, ErrorKind::Usage);
    test.hub.fault(WEIGHTS, &[Fault::Status(404)]);
    assert_eq!(test.pull().unwrap_err().kind, ErrorKind::Missing);
}

#[test]
fn a_busy_server_is_asked_again() {
    let test = Test::new(repository());
    test.hub.fault(WEIGHTS, &[Fault::Status(503), Fault::Status(429)]);
    assert!(has_weights(&test.pull().unwrap().path));
    assert_eq!(test.hub.gets(WEIGHTS).len(), 3);

    let test = Test::new(repository());
    test.hub.fault("config.json", &[Fault::Status(503); 9]);
    assert_eq!(test.pull().unwrap_err().kind, ErrorKind::Transient);
    assert_eq!(test.hub.gets("config.json").len(), 3);
}

#[test]
fn offline_and_without_a_network() {
    let mut test = Test::new(repository());
    test.options.hub.offline = true;
    let error = test.pull().unwrap_err();
    assert_eq!(error.kind, ErrorKind::Missing);
    assert!(test.hub.requests().is_empty());

    test.options.hub.offline = false;
    let online = test.pull().unwrap();
    test.options.hub.offline = true;
    test.hub.forget();
    let offline = test.pull().unwrap();
    assert_eq!((&offline.path, &offline.commit), (&online.path, &online.commit));
    assert!(test.hub.requests().is_empty());
    assert_eq!(pull(&format!("org/tiny@{COMMIT}"), &test.options).unwrap().path, online.path);

    // No network, but a cache; then neither.
    test.options.hub.offline = false;
    test.options.hub.endpoint = "http://127.0.0.1:9".into();
    assert_eq!(test.pull().unwrap().path, online.path);
    fs::remove_file(online.path.join(WEIGHTS)).unwrap();
    assert_eq!(test.pull().unwrap_err().kind, ErrorKind::Transient);
    test.options.hub.offline = true;
    assert_eq!(test.pull().unwrap_err().kind, ErrorKind::Missing);
}

#[test]
fn offline_misses_a_shard_that_the_index_names() {
    let mut state = repository();
    state.files.remove(WEIGHTS);
    let index = r#"{"weight_map":{"a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors"}}"#;
    for (name, data) in [
        ("model.safetensors.index.json", index),
        ("model-00001-of-00002.safetensors", "one"),
        ("model-00002-of-00002.safetensors", "two"),
    ] {
        state.files.insert(name.into(), data.into());
    }
    let mut test = Test::new(state);
    let path = test.pull().unwrap().path;
    test.options.hub.offline = true;
    test.pull().unwrap();
    fs::remove_file(path.join("model-00002-of-00002.safetensors")).unwrap();
    let error = test.pull().unwrap_err();
    assert!(error.kind == ErrorKind::Missing && error.to_string().contains("00002-of-00002"), "{error}");
}

#[test]
fn include_and_exclude() {
    let mut test = Test::new(repository());
    test.options.selection = Selection { include: vec!["*.bin".into(), "*.json".into()], exclude: vec!["tok*".into()] };
    let names: Vec<String> = test.pull().unwrap().files.into_iter().map(|f| f.name).collect();
    assert_eq!(names, ["config.json", "empty.json", "pytorch_model.bin"]);
    test.options.selection = Selection { include: vec!["*.gguf".into()], exclude: vec![] };
    assert_eq!(test.pull().unwrap_err().kind, ErrorKind::Missing);
}

#[test]
fn a_dry_run_writes_nothing() {
    let mut test = Test::new(repository());
    test.options.dry_run = true;
    let pulled = test.pull().unwrap();
    assert_eq!(pulled.files.len(), 6);
    assert!(pulled.files.iter().all(|f| !f.cached));
    assert_eq!(fs::read_dir(test.cache.path()).unwrap().count(), 0);
}

#[test]
fn names_that_leave_the_folder_are_refused() {
    for name in ["../evil", "a/../../evil.json", "/etc/evil"] {
        let test = Test::new(State { extra_names: vec![name.into()], ..repository() });
        let error = test.pull().unwrap_err();
        assert_eq!(error.kind, ErrorKind::Corrupt, "{error}");
        assert_eq!(fs::read_dir(test.cache.path()).unwrap().count(), 0);
    }
}

#[test]
fn an_unknown_architecture_stops_before_the_weights() {
    let mut state = repository();
    state.files.insert("config.json".into(), br#"{"model_type":"mystery"}"#.to_vec());
    let mut test = Test::new(state);
    test.options.check_config = true;
    assert_eq!(test.pull().unwrap_err().kind, ErrorKind::Unsupported);
    assert!(test.hub.gets(WEIGHTS).is_empty());
    test.options.check_config = false;
    assert!(has_weights(&test.pull().unwrap().path));
}

#[test]
fn a_repository_without_safetensors() {
    let mut state = repository();
    state.files.remove(WEIGHTS);
    state.files.insert("tiny-q8_0.gguf".into(), b"GGUF".to_vec());
    // PyTorch's weights, where there are no others.
    let test = Test::new(state);
    let pulled = test.pull().unwrap();
    assert!(pulled.path.join("pytorch_model.bin").is_file() && !pulled.path.join("tiny-q8_0.gguf").exists());
    let mut state = repository();
    state.files.remove(WEIGHTS);
    state.files.remove("pytorch_model.bin");
    state.files.insert("tiny-q8_0.gguf".into(), b"GGUF".to_vec());
    let error = Test::new(state).pull().unwrap_err();
    assert_eq!(error.kind, ErrorKind::Missing);
    assert!(error.hint.unwrap().contains("tiny-q8_0.gguf"));
}

#[test]
fn two_pulls_at_once_share_one_download() {
    let test = Test::new(repository());
    std::thread::scope(|s| {
        let both = [s.spawn(|| test.pull()), s.spawn(|| test.pull())];
        both.into_iter().for_each(|t| assert!(has_weights(&t.join().unwrap().unwrap().path)));
    });
    assert_eq!(test.hub.gets(WEIGHTS).len(), 1);
}

//! Safetensors files, and indexes of several.

use super::{Random, files, with_file, with_folder};
use bitsmith_formats::safetensors::{INDEX_FILE, SafetensorsStore};

/// A file.
pub fn run(data: &[u8]) {
    with_file("model.safetensors", data, |path| {
        if let Ok(store) = SafetensorsStore::open(path) {
            let promised: usize = store.tensors_bytes();
            assert!(promised <= data.len(), "{promised} bytes of tensors in a file of {}", data.len());
            files::read_all(&store);
        }
    });
}

trait Promised {
    fn tensors_bytes(&self) -> usize;
}

impl Promised for SafetensorsStore {
    fn tensors_bytes(&self) -> usize {
        use bitsmith_formats::TensorStore;
        self.tensors().iter().map(|t| t.n_bytes).sum()
    }
}

fn with_header(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.bytes());
    bytes.resize(bytes.len() + data, 1);
    bytes
}

const ONE: &str = r#"{"__metadata__":{"format":"pt"},"a.weight":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}"#;

/// Small files of several types.
pub fn seeds() -> Vec<Vec<u8>> {
    vec![
        with_header(ONE, 16),
        with_header(
            r#"{"a":{"dtype":"BF16","shape":[3],"data_offsets":[0,6]},"b":{"dtype":"U32","shape":[1,2],"data_offsets":[6,14]},"c":{"dtype":"F8_E4M3","shape":[0,7],"data_offsets":[14,14]}}"#,
            14,
        ),
        with_header("{}", 0),
        with_header(
            r#"{"a":{"dtype":"F4","shape":[4],"data_offsets":[0,2]},"b":{"dtype":"I64","shape":[],"data_offsets":[2,10]}}"#,
            10,
        ),
    ]
}

/// Makes the length at the start say where the header ends, or nearly so; or changes one digit of it.
pub fn mutate(data: &mut [u8], size: usize, _max_size: usize, seed: u32) -> usize {
    let mut random = Random(seed | 1);
    if size < 10 {
        return size;
    }
    match random.below(3) {
        0 => {
            let end = data[8..size].iter().rposition(|b| *b == b'}').map_or(size - 8, |at| at + 1);
            let length = (end as u64).wrapping_add((random.below(3) as u64).wrapping_sub(1));
            data[..8].copy_from_slice(&length.to_le_bytes());
        }
        _ => {
            let digits: Vec<usize> = (8..size).filter(|i| data[*i].is_ascii_digit()).collect();
            if let Some(&at) = digits.get(random.below(digits.len())) {
                data[at] = b'0' + (random.next() % 10) as u8;
            }
        }
    }
    size
}

/// An index beside two shards.
pub fn run_index(data: &[u8]) {
    with_folder(|folder| {
        let folder = folder.join("index");
        if !folder.exists() {
            std::fs::create_dir(&folder).expect("a folder can be made");
            let shard =
                |name: &str| with_header(&format!(r#"{{"{name}":{{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}}}"#), 4);
            std::fs::write(folder.join("model-00001-of-00002.safetensors"), shard("a")).expect("a shard can be written");
            std::fs::write(folder.join("model-00002-of-00002.safetensors"), shard("b")).expect("a shard can be written");
        }
        std::fs::write(folder.join(INDEX_FILE), data).expect("an index can be written");
        if let Ok(store) = SafetensorsStore::open(&folder) {
            assert!(store.files().all(|f| f.starts_with(&folder)), "a file outside the folder");
        }
    });
}

/// Right and wrong indexes.
pub fn index_seeds() -> Vec<Vec<u8>> {
    [
        r#"{"metadata":{"total_size":8},"weight_map":{"a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors"}}"#,
        r#"{"weight_map":{"a":"../index/model-00001-of-00002.safetensors"}}"#,
        r#"{"weight_map":{"a":"/etc/passwd"}}"#,
        r#"{"weight_map":{}}"#,
    ]
    .map(|s| s.as_bytes().to_vec())
    .to_vec()
}

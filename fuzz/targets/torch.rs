//! PyTorch files: whole archives, and pickles alone.

use super::{files, tree, with_file};
use bitsmith_formats::torch::TorchStore;

/// A file.
pub fn run(data: &[u8]) {
    with_file("pytorch_model.bin", data, |path| {
        if let Ok(store) = TorchStore::open(path) {
            files::read_all(&store);
        }
    });
}

/// The golden files.
pub fn seeds() -> Vec<Vec<u8>> {
    ["bare.pt", "module.pt", "nested.pth", "plain.bin", "protocol4.bin", "wrapped.pt", "legacy.bin"]
        .iter()
        .filter_map(|name| std::fs::read(tree("tests/golden/torch").join(name)).ok())
        .collect()
}

/// The pickle of an archive that has a storage of 64 bytes.
pub fn run_pickle(data: &[u8]) {
    run(&archive(&[("archive/data.pkl", data), ("archive/data/0", &[0; 64])]));
}

/// Entries that are stored without compression.
fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in entries {
        let offset = out.len() as u32;
        let mut common = Vec::new();
        [20u16, 0, 0, 0, 0].iter().for_each(|n| common.extend(n.to_le_bytes()));
        [0u32, data.len() as u32, data.len() as u32].iter().for_each(|n| common.extend(n.to_le_bytes()));
        [name.len() as u16, 0].iter().for_each(|n| common.extend(n.to_le_bytes()));
        out.extend(b"PK\x03\x04");
        out.extend(&common);
        out.extend(name.bytes().chain(data.iter().copied()));
        directory.extend(b"PK\x01\x02\x14\0");
        directory.extend(&common);
        directory.extend([0; 10]);
        directory.extend(offset.to_le_bytes());
        directory.extend(name.bytes());
    }
    let (start, n) = (out.len() as u32, entries.len() as u16);
    out.extend(&directory);
    out.extend(b"PK\x05\x06\0\0\0\0");
    [n, n].iter().for_each(|n| out.extend(n.to_le_bytes()));
    [directory.len() as u32, start].iter().for_each(|n| out.extend(n.to_le_bytes()));
    out.extend([0, 0]);
    out
}

/// The pickles of the golden files, as far as they stand at the start of an archive, and one by hand.
pub fn pickle_seeds() -> Vec<Vec<u8>> {
    let mut seeds = vec![
        b"\x80\x02}q\0X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x10tQK\0(K\x04K\x04t(K\x04K\x01t\x89ccollections\nOrderedDict\n)RtRs.".to_vec(),
        b"\x80\x04\x95\x10\0\0\0\0\0\0\0}\x94\x8c\x01a\x94K\x01s.".to_vec(),
    ];
    for archive in self::seeds() {
        let start = archive.windows(2).position(|w| w == b"\x80\x02");
        let end = start.and_then(|s| archive[s..].windows(2).position(|w| w == b"PK").map(|n| s + n));
        seeds.extend(start.zip(end).map(|(s, e)| archive[s..e].to_vec()));
    }
    seeds
}

//! PyTorch files: zip archives with pickles, of which nothing may ever be run.

use super::{Row, row};
use crate::support::Work;
use crate::tiny::LLAMA;
use std::fs;

const FILE: &str = "pytorch_model.bin";

/// An archive of entries that are stored plainly, whatever `method` says.
fn zip(entries: &[(&str, &[u8])], method: u16) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in entries {
        let offset = out.len() as u32;
        let mut common = Vec::new();
        [20u16, 0, method, 0, 0].iter().for_each(|n| common.extend(n.to_le_bytes()));
        [0u32, data.len() as u32, data.len() as u32].iter().for_each(|n| common.extend(n.to_le_bytes()));
        [name.len() as u16, 0].iter().for_each(|n| common.extend(n.to_le_bytes()));
        out.extend(b"PK\x03\x04");
        out.extend(&common);
        out.extend(name.bytes().chain(data.iter().copied()));
        directory.extend(b"PK\x01\x02\x14\0");
        directory.extend(&common);
        // Comment's length, disk, attributes.
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

/// The pickle of `{"w": tensor}` with a storage of this many floats, of a shape with these steps.
fn pickle(numel: u8, shape: &[u8], strides: &[u8]) -> Vec<u8> {
    let text = |s: &str| [&b"X"[..], &(s.len() as u32).to_le_bytes(), s.as_bytes()].concat();
    let numbers = |list: &[u8]| [&b"("[..], &list.iter().flat_map(|n| [b'K', *n]).collect::<Vec<_>>(), b"t"].concat();
    let id = [&b"("[..], &text("storage"), b"ctorch\nFloatStorage\n", &text("0"), &text("cpu"), b"K", &[numel], b"tQ"].concat();
    let arguments = [&b"("[..], &id, b"K\0", &numbers(shape), &numbers(strides), b"\x89ccollections\nOrderedDict\n)Rt"].concat();
    [&b"\x80\x02}"[..], &text("w"), b"ctorch._utils\n_rebuild_tensor_v2\n", &arguments, b"Rs."].concat()
}

fn with(work: &Work, bytes: &[u8]) -> String {
    let folder = LLAMA.write(work, "model");
    fs::remove_file(folder.join("model.safetensors")).unwrap();
    fs::write(folder.join(FILE), bytes).unwrap();
    "inspect model".into()
}

fn with_pickle(work: &Work, pickle: &[u8]) -> String {
    with(work, &zip(&[("archive/data.pkl", pickle), ("archive/data/0", &[0; 64])], 0))
}

pub fn rows() -> Vec<Row> {
    vec![
        row("no archive", 65, FILE, "no zip archive", |w| with(w, b"Lorem ipsum")),
        row("an archive without an end", 65, FILE, "no end", |w| {
            let whole = zip(&[("archive/data.pkl", b"\x80\x02}.")], 0);
            with(w, &whole[..whole.len() - 10])
        }),
        row("an archive of other things", 65, FILE, "data.pkl", |w| with(w, &zip(&[("readme", b"hello")], 0))),
        row("an archive that is packed", 69, FILE, "torch.save", |w| with(w, &zip(&[("archive/data.pkl", b"\x80\x02}.")], 8))),
        row("an archive with a name twice", 65, FILE, "twice", |w| {
            with(w, &zip(&[("archive/data.pkl", b"\x80\x02}."), ("archive/data.pkl", b"\x80\x02}.")], 0))
        }),
        row("a pickle that would run a command", 69, FILE, "posix.system", |w| {
            with_pickle(w, b"\x80\x02cposix\nsystem\nX\x05\0\0\0touch\x85R.")
        }),
        row("a pickle that would import a module", 69, FILE, "builtins.eval", |w| {
            with_pickle(w, b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x03x=1\x85R.")
        }),
        row("a pickle that ends early", 65, FILE, "pickle", |w| with_pickle(w, b"\x80\x02}")),
        row("a pickle that promises more than it has", 65, FILE, "pickle", |w| with_pickle(w, b"\x80\x02X\xff\xff\xff\x7fabc.")),
        row("a pickle that recalls what it never saw", 65, FILE, "remembered", |w| with_pickle(w, b"\x80\x02h\x07.")),
        row("a dict inside itself", 65, FILE, "two places", |w| with_pickle(w, b"\x80\x02}q\0X\x01\0\0\0ah\0s.")),
        row("a tensor larger than its storage", 65, FILE, "reaches to element", |w| {
            with_pickle(w, &pickle(16, &[4, 5], &[5, 1]))
        })
        .tensor("w"),
        row("a storage larger than the archive", 65, FILE, "storage should have", |w| {
            with_pickle(w, &pickle(17, &[4, 4], &[4, 1]))
        })
        .tensor("w"),
        row("a few bytes for a tensor of any size", 69, FILE, "broadcast", |w| with_pickle(w, &pickle(16, &[200, 200], &[0, 0])))
            .tensor("w"),
        row("the format of the past", 69, FILE, "1.6", |w| with(w, b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.")),
    ]
}

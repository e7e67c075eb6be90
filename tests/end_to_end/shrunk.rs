//! A model's file that becomes shorter while it is in use, as when somebody downloads it anew: an error that names it, no crash.

use crate::support::{Ended, Work, read_safetensors};
use crate::tiny::LLAMA;
use crate::torch;
use serde_json::Value;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Starts an evaluation that waits for its text with the model already opened, cuts the file, and gives it the text.
fn cut_under_way(work: &Work, model: &str, file: &Path) -> Ended {
    let name = format!("{}.txt", model.replace('.', "-"));
    let (pipe, file) = (work.path(&name), file.to_path_buf());
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    // Opening waits for a reader, which by then has the model's headers. The text is read more than once; at the end this waits for ever.
    std::thread::spawn(move || {
        while let Ok(mut text) = fs::File::options().write(true).open(&pipe) {
            let cut = fs::File::options().write(true).open(&file).and_then(|f| f.set_len(4096));
            let written = text.write_all("The lighthouse stood on a rock in the sea. ".repeat(40).as_bytes());
            assert!(cut.is_ok() && written.is_ok());
            drop(text);
            // The reader must see the end before the next beginning.
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    let line = format!("--json eval {model} --ppl {name} --ctx 64 --limit 2 --fresh");
    Ended::of(work.command(&line).output().unwrap())
}

#[test]
fn every_container() {
    let work = Work::new();
    let folder = LLAMA.write(&work, "dense");
    work.ok("convert dense --to gguf:q8_0 -o m.gguf");
    work.ok("convert dense --to mlx:4bit -o m-mlx");
    work.write("m-torch/pytorch_model.bin", torch::whole(&read_safetensors(&folder.join("model.safetensors"))));
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        fs::copy(folder.join(name), work.path("m-torch").join(name)).unwrap();
    }
    for (model, file) in [
        ("dense", "dense/model.safetensors"),
        ("m.gguf", "m.gguf"),
        ("m-mlx", "m-mlx/model.safetensors"),
        ("m-torch", "m-torch/pytorch_model.bin"),
    ] {
        let ended = cut_under_way(&work, model, &work.path(file));
        assert_eq!(ended.code, Some(74), "{model}: {}{}", ended.out, ended.err);
        let error: &Value = &ended.json()["error"];
        assert!(error["file"].as_str().is_some_and(|f| f.ends_with(file)), "{model}: {error}");
        assert!(error["message"].as_str().unwrap().contains("became shorter") && error["hint"].is_string(), "{model}: {error}");
    }
}

//! Release folders: what is beside artifacts so that they can be published and used as they are.

use crate::support::{Work, demo, edit_json};
use crate::tiny::LLAMA;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

const JOB: &str = "--samples 4 --ctx 64 --eval-ctx 128 --limit 2";
const CHATML: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// A checkpoint with a card, a licence, a chat template and recommended sampling.
fn model(work: &Work) {
    let folder = LLAMA.write(work, "tiny-chat");
    let card = "---\nlicense: other\nlicense_name: tiny licence\nlanguage:\n- en\n- 'no'\nbase_model: org/tiny\ntags: [a b, \"c\"]\n---\n# Tiny\n";
    work.write("tiny-chat/README.md", card);
    work.write("tiny-chat/LICENSE.txt", "You may.\n\nBut \"\"\"be kind\"\"\".\n");
    work.write("tiny-chat/generation_config.json", r#"{"eos_token_id": 1, "temperature": 0.6, "top_k": 20}"#);
    edit_json(&folder.join("tokenizer_config.json"), "chat_template", CHATML.into());
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// The metadata of a card.
fn yaml(card: &Path) -> serde_yaml_ng::Value {
    let text = fs::read_to_string(card).unwrap();
    let yaml = text.strip_prefix("---\n").and_then(|t| t.split_once("\n---\n")).unwrap().0.to_string();
    serde_yaml_ng::from_str(&yaml).unwrap_or_else(|e| panic!("{e}: {yaml}"))
}

/// What `sha256sum -c` does: every file of the list is there and has its hash. Names of the files.
fn check_sums(folder: &Path) -> BTreeSet<String> {
    let text = fs::read_to_string(folder.join("SHA256SUMS")).unwrap();
    let mut names = BTreeSet::new();
    for line in text.lines() {
        let (hash, name) = line.split_once("  ").unwrap();
        let found: String = <sha2::Sha256 as sha2::Digest>::digest(fs::read(folder.join(name)).unwrap())
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        assert_eq!(found, hash, "{name}");
        names.insert(name.to_string());
    }
    names
}

#[test]
fn a_run_makes_a_release() {
    let work = Work::new();
    model(&work);
    let line = format!("run tiny-chat --to gguf:q4_k_m,gguf:q8_0,mlx:4bit --method awq {JOB} --publisher me --out out");
    let document = work.json(&line);
    let (out, mlx) = (work.path("out"), work.path("out/tiny-chat-4bit"));
    assert_eq!(document["releases"], serde_json::json!(["out", "out/tiny-chat-4bit"]));

    // Cards.
    let card = yaml(&out.join("README.md"));
    for (key, value) in [
        ("library_name", "gguf"),
        ("license", "other"),
        ("license_name", "tiny licence"),
        ("base_model_relation", "quantized"),
        ("quantized_by", "me"),
        ("pipeline_tag", "text-generation"),
    ] {
        assert_eq!(card[key].as_str(), Some(value), "{key}");
    }
    assert_eq!(card["base_model"][0].as_str(), Some("org/tiny"));
    assert_eq!(card["language"][1].as_str(), Some("no"));
    let tags: Vec<&str> = card["tags"].as_sequence().unwrap().iter().map(|t| t.as_str().unwrap()).collect();
    assert_eq!(tags, ["gguf", "imatrix", "a b", "c"]);
    assert_eq!(yaml(&mlx.join("README.md"))["library_name"].as_str(), Some("mlx"));
    let text = fs::read_to_string(out.join("README.md")).unwrap();
    let kld = document["eval"][1]["kld"][0]["mean"].as_f64().unwrap();
    let ppl = document["eval"][1]["perplexity"][0]["ppl"].as_f64().unwrap();
    let row = text.lines().find(|l| l.starts_with("| `tiny-chat-Q4_K_M.gguf`")).unwrap();
    assert!(row.contains(&format!("{kld:.5}")) && row.contains(&format!("{ppl:.3}")), "{row}");
    assert!(text.contains("Which file should I choose?") && text.contains("<|im_start|>user\n{prompt}"), "{text}");

    // Ollama's files.
    let chat = "{{ range $i, $m := .Messages }}";
    let modelfile = fs::read_to_string(out.join("Modelfile.Q4_K_M")).unwrap();
    for part in [
        "FROM ./tiny-chat-Q4_K_M.gguf\n",
        chat,
        "PARAMETER temperature 0.6\n",
        "PARAMETER stop \"\"\"<|im_end|>\"\"\"\n",
        "LICENSE \"\"\"You may.\n",
    ] {
        // The tokenizer has no token for the end of a turn, so that the next question's beginning stops.
        let part = part.replace("<|im_end|>", "<|im_start|>user");
        assert!(modelfile.contains(&part), "{part}: {modelfile}");
    }
    assert!(out.join("Modelfile").is_file() && out.join("Modelfile.Q8_0").is_file());
    assert!(fs::read_to_string(out.join("template")).unwrap().contains(chat));
    let params = json(&out.join("params"));
    assert_eq!((&params["top_k"], &params["stop"][0]), (&Value::from(20), &Value::from("</s>")));
    let model_yaml: serde_yaml_ng::Value = serde_yaml_ng::from_str(&fs::read_to_string(out.join("model.yaml")).unwrap()).unwrap();
    assert_eq!(model_yaml["base"][0]["sources"][0]["repo"].as_str(), Some("tiny-chat-GGUF"));
    let launcher = fs::read_to_string(mlx.join("mlx-openai-server.sh")).unwrap();
    assert!(launcher.contains("--model-type lm") && launcher.contains("--host 127.0.0.1"), "{launcher}");

    // Provenance.
    let statement = json(&out.join("bitsmith.json"));
    assert_eq!(statement["_type"], "https://in-toto.io/Statement/v1");
    let subjects: BTreeMap<&str, &str> = statement["subject"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| (s["name"].as_str().unwrap(), s["digest"]["sha256"].as_str().unwrap()))
        .collect();
    assert_eq!(subjects["tiny-chat-Q4_K_M.gguf"], document["artifacts"][0]["sha256"].as_str().unwrap());
    assert!(subjects.contains_key("tiny-chat-imatrix.gguf"));
    assert_eq!(json(&mlx.join("bitsmith.json"))["predicateType"], "https://slsa.dev/provenance/v1");

    // Checksums of everything but reports.
    let names = check_sums(&out);
    let there: BTreeSet<String> = work
        .names("out")
        .into_iter()
        .filter(|n| out.join(n).is_file() && !n.starts_with("report.") && n != "SHA256SUMS")
        .collect();
    assert_eq!(names, there);
    assert!(check_sums(&mlx).contains("model.safetensors"));
    work.ok("verify out/tiny-chat-4bit");
    work.ok("verify out/tiny-chat-Q8_0.gguf");
    // llama.cpp's matrix can be used as such.
    work.ok("quantize tiny-chat --to gguf:q4_0 --method reference --imatrix out/tiny-chat-imatrix.gguf --tensor-type token_embd=q8_0 -o x.gguf");

    // A second run finds all done, and the release as it was.
    let before: BTreeMap<String, Vec<u8>> = names.iter().map(|n| (n.clone(), fs::read(out.join(n)).unwrap())).collect();
    let again = work.json(&line);
    assert!(again["artifacts"].as_array().unwrap().iter().all(|a| a["reused"] == true));
    for (name, bytes) in before {
        assert!(fs::read(out.join(&name)).unwrap() == bytes, "{name}");
    }

    // Made again, everything comes out the same; from another source, nothing is made.
    let reproduced = work.json("reproduce out/bitsmith.json");
    assert_eq!((&reproduced["same"], reproduced["artifacts"].as_array().unwrap().len()), (&Value::Bool(true), 2));
    assert_eq!(work.json("reproduce out/tiny-chat-4bit/bitsmith.json -o again")["same"], true);
    assert!(work.path("again/tiny-chat-4bit/model.safetensors").is_file());
    let error = work.fails(&format!("reproduce out/bitsmith.json --model {}", demo().display()), 65);
    assert!(error["hint"].as_str().unwrap().contains("--model"), "{error}");
    let mut forged = statement.clone();
    forged["artifacts"][0]["sha256"] = "00".into();
    work.write("forged.json", forged.to_string());
    assert_eq!(work.call("reproduce forged.json").code, Some(65));
}

#[test]
fn names_and_layouts() {
    let work = Work::new();
    model(&work);
    let line = "quantize tiny-chat --to gguf:q8_0,mlx:8bit --method rtn --release";
    work.ok(&format!("{line} -o lm --layout lmstudio --publisher me --naming spec"));
    assert_eq!(work.names("lm/me"), ["tiny-chat-8bit", "tiny-chat-GGUF"]);
    let names = work.names("lm/me/tiny-chat-GGUF");
    assert!(names.iter().any(|n| n.starts_with("tiny-chat-") && n.ends_with("K-v1.0-Q8_0.gguf")), "{names:?}");
    check_sums(&work.path("lm/me/tiny-chat-GGUF"));
    assert_eq!(work.json("reproduce lm/me/tiny-chat-GGUF/bitsmith.json")["same"], true);
    // Without evaluation the card says what is to be expected.
    let text = fs::read_to_string(work.path("lm/me/tiny-chat-GGUF/README.md")).unwrap();
    assert!(text.contains("not measured"), "{text}");

    // A set of files is one artifact.
    work.ok("quantize tiny-chat --to gguf:q8_0 --method rtn --shard-size 400kB --release -o set/");
    let modelfile = fs::read_to_string(work.path("set/Modelfile")).unwrap();
    assert!(modelfile.matches("FROM ./tiny-chat-Q8_0-0000").count() > 1, "{modelfile}");
    check_sums(&work.path("set"));
    assert_eq!(work.json("reproduce set/bitsmith.json")["same"], true);

    // What is not ours is left alone.
    work.write("theirs/README.md", "mine");
    let error = work.fails("quantize tiny-chat --to gguf:q8_0 --method rtn --release -o theirs/", 73);
    assert!(error["file"].as_str().unwrap().ends_with("README.md"));
    assert_eq!(work.names("theirs"), ["README.md"]);
    work.fails("quantize tiny-chat --to gguf:q8_0 --method rtn -o x.gguf --naming spec", 2);
    work.fails("quantize tiny-chat --to gguf:q8_0 --method rtn -o x/ --naming mine", 2);
    work.fails("quantize tiny-chat --to gguf:q8_0 --method rtn -o x/ --layout deep", 2);
    work.fails("quantize tiny-chat --to gguf:q8_0 --method rtn -o x/ --publisher ../up", 2);
}

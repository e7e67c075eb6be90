//! `map`, and targets whose formats are chosen within a budget.

use crate::support::Work;
use crate::tiny::MISTRAL;
use std::fs;

const CALIBRATION: &str = "--calib builtin --samples 6 --ctx 64";

#[test]
fn a_map_of_measurements_and_one_of_estimates() {
    let work = Work::new();
    MISTRAL.write(&work, "model");
    fs::write(work.path("a.txt"), "The keeper wrote that the wind had turned. ".repeat(60)).unwrap();
    fs::write(work.path("b.txt"), "for i in 0..n { sum += x[i] * w[i]; }\n".repeat(60)).unwrap();
    let line = |more: &str, out: &str| {
        format!(
            "map model --to gguf:q4_0,gguf:q8_0,mlx:4bit-g32 --data prose=a.txt:1,code=b.txt:1 --limit 4 --eval-ctx 64 --method reference {CALIBRATION} {more} -o {out}"
        )
    };
    let map = work.json(&line("", "map.json"));
    assert_eq!(map, serde_json::from_slice::<serde_json::Value>(&fs::read(work.path("map.json")).unwrap()).unwrap());
    assert_eq!(map["codecs"], serde_json::json!(["q4_0", "q8_0", "mlx-4bit-g32"]));
    assert_eq!(map["data"].as_array().unwrap().len(), 2);
    assert!(map["baseline"]["code"]["ppl"].as_f64().unwrap() > 1.0);
    let entries = map["entries"].as_array().unwrap();
    let of = |codec: &str| entries.iter().filter(|e| e["codec"] == codec).collect::<Vec<_>>();
    assert_eq!((of("q4_0").len(), of("q8_0").len()), (of("mlx-4bit-g32").len(), of("q4_0").len()));
    for (four, eight) in of("q4_0").iter().zip(of("q8_0")) {
        assert_eq!(four["role"], eight["role"]);
        let kld = |e: &serde_json::Value| e["measured"][0]["kld"].as_f64().unwrap();
        assert!(kld(four) > kld(eight), "{four} {eight}");
        assert!(four["bytes"].as_u64() < eight["bytes"].as_u64());
    }
    assert_eq!(map["depth"].as_array().unwrap().len(), 3);
    assert!(map["agreement"]["spearman"].as_f64().unwrap() > 0.5, "{}", map["agreement"]);
    assert!(!work.path(".map.json.work").exists());

    let quick = work.json(&line("--quick", "quick.json"));
    assert!(
        quick["entries"].as_array().unwrap().iter().all(|e| e["measured"] == serde_json::json!([]) && e["estimate"].is_f64())
    );
    let estimates =
        |map: &serde_json::Value| map["entries"].as_array().unwrap().iter().map(|e| e["estimate"].clone()).collect::<Vec<_>>();
    assert_eq!(estimates(&quick), estimates(&map));
    work.fails("map model --to gguf:bf16 -o x.json", 2);
}

#[test]
fn budgets_are_kept_and_plans_can_be_given_back() {
    let work = Work::new();
    MISTRAL.write(&work, "model");
    let quantize = |more: &str| work.json(&format!("quantize model --method gptq {CALIBRATION} {more}"))["artifacts"][0].clone();
    let auto = quantize("--to gguf:auto@5.5bpw --plan-out plan.toml -o a.gguf");
    let bpw = auto["bpw"].as_f64().unwrap();
    assert!(bpw <= 5.5 && bpw > 4.5, "{bpw}");
    assert!(auto["notes"].as_array().unwrap().iter().any(|n| n.as_str().unwrap().contains("predicted")), "{auto}");
    let plan = fs::read_to_string(work.path("plan.toml")).unwrap();
    assert!(plan.contains("target = \"gguf:auto@5.5bpw\"") && plan.contains("\"blk.0.attn_q\" = "), "{plan}");
    // Given back, it makes the same file; changed, another.
    assert_eq!(quantize("--to gguf:auto --plan plan.toml -o b.gguf")["sha256"], auto["sha256"]);
    let changed = plan.lines().map(|l| if l.starts_with("\"output\"") { "\"output\" = \"q8_0\"" } else { l });
    fs::write(work.path("changed.toml"), changed.collect::<Vec<_>>().join("\n")).unwrap();
    quantize("--to gguf:auto --plan changed.toml -o c.gguf");
    let tensors = work.json("inspect c.gguf --tensors");
    let output = tensors["tensors"].as_array().unwrap().iter().find(|t| t["name"] == "output.weight").unwrap();
    assert_eq!(output["codec"], "q8_0");

    // Sizes count everything that the artifact has.
    let bytes = auto["bytes"].as_u64().unwrap() + 3000;
    let sized = quantize(&format!("--to gguf:auto --size {bytes}B -o d.gguf"));
    assert!(sized["bytes"].as_u64().unwrap() <= bytes);
    let folder = quantize("--to mlx:auto --bpw 6 -o mlx/");
    assert!(folder["bpw"].as_f64().unwrap() <= 6.0);
    let loose = quantize("--to gguf:auto --max-kld 0.5 -o e.gguf")["bytes"].as_u64().unwrap();
    let strict = quantize("--to gguf:auto --max-kld 0.0005 -o f.gguf")["bytes"].as_u64().unwrap();
    assert!(loose < strict, "{loose} {strict}");

    for (line, code) in [
        ("--to gguf:auto", 2),
        ("--to gguf:auto@1.5bpw", 2),
        ("--to gguf:q4_0 --bpw 4", 2),
        ("--to gguf:auto --bpw 4 --size 1MB", 2),
        ("--to awq:auto@4bpw", 69),
        ("--to gguf:auto --plan model/config.json", 65),
    ] {
        work.fails(&format!("quantize model --method gptq {CALIBRATION} {line} -o x.gguf"), code);
    }
}

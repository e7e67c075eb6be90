//! The worked example of the book's chapter on architectures: "lighthouse", Llama's blocks under names of its own, with a bias on queries,
//! keys and values where `use_qkv_bias` says so.

use super::config::Config;
use super::{Architecture, family, to_config};
use crate::role::Part;
use serde_json::json;

/// The table entry.
static LIGHTHOUSE: Architecture = Architecture {
    name: "lighthouse",
    model_types: &["lighthouse"],
    // llama.cpp would run it as a Llama.
    gguf: "llama",
    hf_class: "LighthouseForCausalLM",
    hf_names: NAMES,
    from_config: |arch, config| {
        let c = Config(config);
        // What the configuration may ask for and nobody computes is an error, never ignored.
        family::refuse_switches(arch, c, &[("use_fog", false)])?;
        let mut spec = family::llama_like(arch, c)?;
        if c.opt_bool("use_qkv_bias")?.unwrap_or(false) {
            spec.add(family::QKV_BIASES);
        }
        spec.validate()?;
        Ok(spec)
    },
    to_config: |spec| {
        to_config::refuse_biases(&LIGHTHOUSE, spec, family::QKV_BIASES)?;
        let mut config = to_config::base(&LIGHTHOUSE, spec)?;
        config.insert("use_qkv_bias".into(), json!(spec.has(Part::AttnQBias)));
        Ok(config)
    },
    ..Architecture::DECODER
};

/// Names that are not Llama's; `{}` stands for the layer.
const NAMES: &[(Part, &str)] = &[
    (Part::TokenEmbd, "lantern.weight"),
    (Part::AttnNorm, "model.layers.{}.before.weight"),
    (Part::FfnNorm, "model.layers.{}.after.weight"),
];

mod tests {
    use super::*;
    use crate::arch::ContainerKind;
    use crate::memory::MemoryWeights;
    use crate::role::Role;
    use crate::testing;
    use crate::{Device, Head, sweep};
    use serde_json::Value;

    fn spec(changes: Value) -> bitsmith_formats::Result<crate::ModelSpec> {
        (LIGHTHOUSE.from_config)(&LIGHTHOUSE, &testing::config("lighthouse", changes))
    }

    #[test]
    fn the_configuration_is_read_and_written() {
        let with = spec(json!({"use_qkv_bias": true})).unwrap();
        assert!(with.has(Part::AttnQBias) && !spec(json!({})).unwrap().has(Part::AttnQBias));
        assert!(spec(json!({"use_fog": true})).unwrap_err().message.contains("use_fog"));
        let written = Value::Object(with.to_config().unwrap());
        assert_eq!((LIGHTHOUSE.from_config)(&LIGHTHOUSE, &written).unwrap().roles(), with.roles());
    }

    #[test]
    fn tensors_find_their_names() {
        let spec = spec(json!({})).unwrap();
        let name = |kind, role| LIGHTHOUSE.places(&spec, kind, role).unwrap()[0].name.clone();
        assert_eq!(name(ContainerKind::Hf, Role::global(Part::TokenEmbd)), "lantern.weight");
        assert_eq!(name(ContainerKind::Hf, Role::layer(1, Part::FfnNorm)), "model.layers.1.after.weight");
        assert_eq!(name(ContainerKind::Hf, Role::layer(1, Part::AttnQ)), "model.layers.1.self_attn.q_proj.weight");
        assert_eq!(name(ContainerKind::Gguf, Role::layer(1, Part::FfnNorm)), "blk.1.ffn_norm.weight");
    }

    /// The runtime against the definition, one token and one head at a time.
    #[test]
    fn it_runs() {
        let model = MemoryWeights::random(spec(json!({})).unwrap(), 3);
        let tokens = testing::tokens(9, 1);
        let head = Head::load(&model, &Device::Cpu).unwrap();
        let normed = sweep::run(&model, std::slice::from_ref(&tokens), &Device::Cpu, None).unwrap();
        let logits = normed.logits(&head, 0).unwrap();
        let expected: Vec<f64> = testing::plain_logits(&model, &tokens).concat();
        assert_eq!(logits.len(), expected.len());
        assert!(logits.iter().zip(&expected).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-4));
    }
}

//! The text model of Qwen 2.5 VL: Qwen 2 whose rotary embedding turns some frequencies by a position in time, others by height or width
//! in an image. For text the three positions are one, and the embedding is the plain one.

use super::config::Config;
use super::{Architecture, Client, qwen2};
use crate::spec::{ModelSpec, RopeScaling};
use bitsmith_formats::gguf::Array;
use bitsmith_formats::{Error, Result};

/// The table entry.
pub static QWEN2_VL: Architecture = Architecture {
    name: "qwen2_5_vl_text",
    model_types: &["qwen2_5_vl_text"],
    gguf: "qwen2vl",
    hf_class: qwen2::QWEN2.hf_class,
    proof: &[Client::Transformers, Client::LlamaCpp],
    from_config: |arch, config| {
        let spec = (qwen2::QWEN2.from_config)(arch, config)?;
        if !matches!(spec.rope.scaling, RopeScaling::Sections(_)) {
            return Err(Error::corrupt("key `mrope_section` is missing from the rotary embedding's configuration"));
        }
        if spec.sliding_window.is_some() {
            return Err(Error::unsupported("sliding-window attention is not supported in architecture `qwen2_5_vl_text`"));
        }
        Ok(spec)
    },
    // By itself it is a Qwen 2.
    to_config: |spec| {
        let mut plain = ModelSpec { arch: &qwen2::QWEN2, ..spec.clone() };
        plain.rope.scaling = RopeScaling::None;
        plain.to_config()
    },
    gguf_keys: |spec| match &spec.rope.scaling {
        RopeScaling::Sections(sections) => {
            let four: Vec<i32> = sections.iter().map(|n| *n as i32).chain([0]).collect();
            Ok(vec![("rope.dimension_sections", Array::I32(four).into())])
        }
        _ => Err(Error::unsupported("a `qwen2vl` has sections of its rotary embedding")),
    },
    from_gguf: |spec, keys| {
        let sections = keys.usizes("rope.dimension_sections")?;
        let &[time, height, width, ..] = &sections[..] else {
            return Err(Error::corrupt(format!("key `{}` has {} values", keys.key("rope.dimension_sections"), sections.len())));
        };
        spec.rope.scaling = RopeScaling::Sections([time, height, width]);
        Ok(())
    },
    ..Architecture::DECODER
};

/// How many of the frequencies turn by which position: `mrope_section`.
pub(super) fn sections(c: Config<'_>) -> Result<Option<[usize; 3]>> {
    let Some(value) = c.get("mrope_section") else { return Ok(None) };
    serde_json::from_value(value.clone())
        .map(Some)
        .map_err(|_| Error::corrupt("key `mrope_section` is not a list of three numbers"))
}

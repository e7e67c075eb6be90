//! GPTQ, AWQ, compressed-tensors and ModelOpt folders: the source's configuration and tokenizer with the layers' matrices packed as
//! vLLM, transformers and GPTQModel read them.
//!
//! Embedding, output matrix, norms and biases stay dense. Matrices of another width or group than the rest, and such as stay
//! dense, are named in the configuration: GPTQ has rules per module (`dynamic`), compressed-tensors groups of modules, AWQ and
//! ModelOpt a list of modules that stay dense.

use crate::about::ModelAbout;
use crate::card::Kind;
use crate::files::FolderFiles;
use crate::folder::{self, FolderPlan, Scheme};
use crate::layout::{Layout, PlannedTensor};
use bitsmith_formats::packed::{Described, PackedFormat, ZeroPoints, compressed_tensors_config, modelopt_config};
use bitsmith_formats::{CodecId, Error, Float, Result};
use bitsmith_runtime::arch::vision::Wrapper;
use bitsmith_runtime::{ContainerKind, ModelSpec, Part, Role};
use serde_json::{Map, Value, json};

impl FolderPlan {
    /// Plans a folder of packed weights. `codecs` must name every matrix of the model: what `format` can hold for the layers'
    /// matrices, `default` for most of them, or floats for those that stay dense. Norms and biases are stored as `dense`.
    pub fn packed(
        spec: &ModelSpec,
        files: &FolderFiles,
        about: &ModelAbout,
        format: PackedFormat,
        default: CodecId,
        dense: Float,
        codecs: &[(Role, CodecId)],
    ) -> Result<Self> {
        let name = format.method().to_uppercase();
        let layout = Layout::new(spec, ContainerKind::Hf, codecs, dense)?;
        for t in &layout.tensors {
            format.plan_planes(&t.name, t.codec, &t.shape)?;
            let packed = t.codec.float().is_none();
            if packed && t.role.layer.is_none() {
                let message = format!("{name} keeps embedding and output matrix dense, but this one is to be {}", t.codec);
                return Err(Error::unsupported(message).tensor(&t.name));
            }
            if packed && format == PackedFormat::Awq && t.codec != default {
                return Err(Error::unsupported(format!("AWQ has one format for all: {default}, not {}", t.codec)).tensor(&t.name));
            }
        }
        // Loaders make an output matrix of a tied embedding, and would look for its planes.
        let tied = if spec.tied { spec.arch.hf_name(Part::Output) } else { None };
        // What is listed in the configuration is called as in the model that readers make, whatever the files call it.
        let wrapper = files.wrapper();
        let mut listed = layout.tensors.clone();
        listed.iter_mut().for_each(|t| t.name = module_name(wrapper, &t.name));
        let tied = tied.map(|name| module_name(wrapper, name));
        let roots = files.tower().map(|t| t.wrapper.roots()).unwrap_or_default();
        let mut config = config(files, format, default, dense, &listed, tied.as_deref(), &roots)?;
        folder::set_mtp(&mut config, spec);
        folder::set_untied(&mut config, spec);
        let own = (format == PackedFormat::ModelOpt).then(|| modelopt_block(&listed, tied.as_deref(), &roots).1);
        let layout = layout.wrapped(wrapper, ContainerKind::Hf);
        let kind = Kind::packed(format.method());
        let plan = FolderPlan::new(files, about, config, layout, Scheme::Packed(format), kind).carrying(ContainerKind::Hf, None);
        Ok(match own {
            Some(config) => plan.beside(MODELOPT_FILE, config),
            None => plan,
        })
    }
}

/// Where ModelOpt looks for its configuration.
const MODELOPT_FILE: &str = "hf_quant_config.json";

/// A tensor's name in the model that readers make.
fn module_name(wrapper: Option<&Wrapper>, name: &str) -> String {
    wrapper.map_or(name.to_string(), |w| w.module_name(name))
}

/// The model's configuration with the `quantization_config` block. `tied` is the output matrix that is no tensor of its own, `roots`
/// are the modules of a vision tower, which stay dense.
fn config(
    files: &FolderFiles,
    format: PackedFormat,
    default: CodecId,
    dense: Float,
    tensors: &[PlannedTensor],
    tied: Option<&str>,
    roots: &[&str],
) -> Result<Map<String, Value>> {
    let mut config = files.config();
    folder::set_dtype(&mut config, dense);
    if tensors.iter().all(|t| t.codec.float().is_some()) {
        let message = format!("no matrix of this model can be {default}");
        return Err(Error::unsupported(message).hint("choose a smaller group, or another format"));
    }
    let integers = || match default {
        CodecId::IntGroup { bits, group, symmetric, .. } => Ok((bits, group, symmetric)),
        other => Err(Error::failed(format!("{} has no format {other}", format.method().to_uppercase()))),
    };
    let block = match format {
        PackedFormat::Gptq(zeros) => {
            let (bits, group, symmetric) = integers()?;
            let mut block = json!({
                "bits": bits,
                "checkpoint_format": if zeros == ZeroPoints::MinusOne { "gptq" } else { "gptq_v2" },
                "desc_act": false,
                "group_size": group,
                "lm_head": false,
                "meta": { "quantizer": [concat!("bitsmith:", env!("CARGO_PKG_VERSION"))] },
                "pack_dtype": "int32",
                "quant_method": "gptq",
                "sym": symmetric,
            });
            let mut rules = rules(default, tensors);
            rules.extend(roots.iter().map(|root| (format!("-:^(model\\.)?{root}\\."), json!({}))));
            if !rules.is_empty() {
                block["dynamic"] = rules.into();
            }
            block
        }
        PackedFormat::Awq => {
            let (bits, group, _) = integers()?;
            let mut dense: Vec<String> =
                linears(tensors).filter(|t| t.codec.float().is_some()).map(|t| module(t).to_string()).collect();
            // Some readers compare beginnings of names, others look for these anywhere.
            dense.extend(roots.iter().flat_map(|root| [root.to_string(), format!("model.{root}")]));
            json!({
                "bits": bits,
                "group_size": group,
                "modules_to_not_convert": if dense.is_empty() { Value::Null } else { dense.into() },
                "quant_method": "awq",
                "version": "gemm",
                "zero_point": true,
            })
        }
        PackedFormat::CompressedTensors => {
            let described: Vec<Described> = tensors
                .iter()
                .map(|t| Described {
                    name: &t.name,
                    codec: t.codec,
                    row_len: *t.shape.last().unwrap_or(&1),
                    linear: is_linear(t),
                })
                .chain(tied.map(|name| Described { name, codec: dense.codec(), row_len: 1, linear: true }))
                .collect();
            let mut block = compressed_tensors_config(&described)?;
            if let Some(ignored) = block["ignore"].as_array_mut() {
                ignored.extend(roots.iter().map(|root| format!("re:.*{root}\\..*").into()));
            }
            block
        }
        PackedFormat::ModelOpt => modelopt_block(tensors, tied, roots).0,
    };
    config.insert("quantization_config".into(), block);
    Ok(config)
}

/// Whether readers make a linear layer of this tensor: of routers too.
fn is_linear(tensor: &PlannedTensor) -> bool {
    let part = tensor.role.part;
    part.is_matrix() && part != Part::TokenEmbd || part.is_router()
}

/// The layers' matrices, which a reader takes for packed unless it is told otherwise.
fn linears(tensors: &[PlannedTensor]) -> impl Iterator<Item = &PlannedTensor> {
    tensors.iter().filter(|t| t.role.layer.is_some() && is_linear(t))
}

/// Linear layers that are not packed, the output matrix among them.
fn dense_modules<'a>(tensors: &'a [PlannedTensor], tied: Option<&'a str>) -> Vec<&'a str> {
    let dense = tensors.iter().filter(|t| is_linear(t)).filter(|t| t.codec.float().is_some());
    dense.map(module).chain(tied.map(module_of)).collect()
}

/// ModelOpt's two configurations.
fn modelopt_block(tensors: &[PlannedTensor], tied: Option<&str>, roots: &[&str]) -> (Value, Value) {
    let patterns: Vec<String> = roots.iter().map(|root| format!("*{root}*")).collect();
    let dense: Vec<&str> = dense_modules(tensors, tied).into_iter().chain(patterns.iter().map(String::as_str)).collect();
    modelopt_config(&dense)
}

fn module(tensor: &PlannedTensor) -> &str {
    module_of(&tensor.name)
}

fn module_of(name: &str) -> &str {
    name.trim_end_matches(".weight")
}

/// GPTQModel's `dynamic`: what differs from the default, by patterns of whole names.
fn rules(default: CodecId, tensors: &[PlannedTensor]) -> Map<String, Value> {
    let rule = |t: &PlannedTensor| {
        let pattern = format!("^{}$", module(t).replace('.', "\\."));
        match t.codec {
            CodecId::IntGroup { bits, group, symmetric, .. } => {
                (format!("+:{pattern}"), json!({ "bits": bits, "group_size": group, "sym": symmetric }))
            }
            _ => (format!("-:{pattern}"), json!({})),
        }
    };
    linears(tensors).filter(|t| t.codec != default).map(rule).collect()
}

//! Arguments that `run` and `quantize` share, from the command line or a recipe file.

use crate::app::App;
use crate::output::{human_bytes, table};
use bitsmith_datasets::DataSpec;
use bitsmith_formats::{CodecId, Error, Float, Result};
use bitsmith_pipeline::Opened;
use bitsmith_pipeline::artifact::{Folder, Output};
use bitsmith_pipeline::auto::AutoOptions;
use bitsmith_pipeline::budget::{Budget, Number};
use bitsmith_pipeline::calibration::{CalibrationOptions, DEFAULT_CTX, DEFAULT_SAMPLES};
use bitsmith_pipeline::context::parse_size;
use bitsmith_pipeline::estimate::{Cost, Estimate};
use bitsmith_pipeline::plan_file;
use bitsmith_pipeline::quantize::{Artifact, Job, QuantizeOptions};
use bitsmith_pipeline::release;
use bitsmith_pipeline::repack::Repack;
use bitsmith_pipeline::target::Target;
use bitsmith_quantize::plan::PlanOptions;
use clap::Args;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// What to make of a model, and how.
#[derive(Debug, Clone, Default, PartialEq, Args, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct JobArgs {
    /// Targets, as container:encoding, separated by commas; `bitsmith targets` lists them
    #[arg(long, value_name = "TARGET", value_delimiter = ',')]
    pub to: Vec<String>,
    /// Transforms and a solver joined by `+`: rtn, reference, gptq, awq+gptq, reorder+awq+qep+gptq, best [default: best]
    #[arg(long, value_name = "METHOD")]
    pub method: Option<String>,
    /// Calibration text: a dataset or files [default: builtin, where the method needs text]
    #[arg(long, value_name = "DATA", help_heading = "Calibration")]
    pub calib: Option<String>,
    /// Statistics that `bitsmith calibrate` gathered, instead of text
    #[arg(long, value_name = "FILE", help_heading = "Calibration", conflicts_with = "calib")]
    pub stats: Option<PathBuf>,
    /// Importance matrices in llama.cpp's formats (.gguf, .dat), instead of text; several, separated by commas, are added up
    #[arg(long, value_name = "FILE", value_delimiter = ',', help_heading = "Calibration", conflicts_with_all = ["calib", "stats"])]
    #[serde(deserialize_with = "one_or_several")]
    pub imatrix: Vec<PathBuf>,
    /// Windows of calibration text [default: 128]
    #[arg(long, value_name = "N", help_heading = "Calibration")]
    pub samples: Option<usize>,
    /// Tokens per window of calibration text [default: 512]
    #[arg(long, value_name = "N", help_heading = "Calibration")]
    pub ctx: Option<usize>,
    /// Calibrate every layer on the dense model, not on the quantized layers before it
    #[arg(long, help_heading = "Calibration")]
    pub independent: bool,
    /// Give every matrix the target's base format
    #[arg(long, help_heading = "Formats of single tensors")]
    pub pure: bool,
    /// Fail where rows do not fit a format, instead of taking another format
    #[arg(long, help_heading = "Formats of single tensors")]
    pub no_fallback: bool,
    /// Another format for a role (attn_v) or one tensor (blk.0.ffn_down); can be given several times
    #[arg(long, value_name = "ROLE=CODEC", help_heading = "Formats of single tensors")]
    pub tensor_type: Vec<String>,
    /// Another format for the output matrix, also where the embedding stands for it
    #[arg(long, value_name = "CODEC", help_heading = "Formats of single tensors")]
    pub output_tensor_type: Option<String>,
    /// Another format for the token embedding
    #[arg(long, value_name = "CODEC", help_heading = "Formats of single tensors")]
    pub token_embedding_type: Option<String>,
    /// Formats from a TOML file as --plan-out writes it; --tensor-type and the like win
    #[arg(long, value_name = "FILE", help_heading = "Formats of single tensors")]
    pub plan: Option<PathBuf>,
    /// Write the format of every matrix to this TOML file, for --plan; with what each is predicted to cost where formats were chosen
    #[arg(long, value_name = "FILE", help_heading = "Formats of single tensors")]
    pub plan_out: Option<PathBuf>,
    /// For an `auto` target without a budget: most bits per weight, over all tensors
    #[arg(long, value_name = "BITS", help_heading = "Budgets")]
    pub bpw: Option<f64>,
    /// For an `auto` target without a budget: most bytes of the artifact, for example 3.2GiB
    #[arg(long, value_name = "SIZE", help_heading = "Budgets", conflicts_with = "bpw")]
    pub size: Option<String>,
    /// For an `auto` target without a budget: most mean KL divergence that is predicted, in nats per token; the smallest plan is made
    #[arg(long, value_name = "KLD", help_heading = "Budgets", conflicts_with_all = ["bpw", "size"])]
    pub max_kld: Option<f64>,
    /// Formats that `auto` may choose: fast (no I-quants in GGUF, groups of 64 in MLX, 4 and 8 bits in GPTQ) or all [default: fast]
    #[arg(long, value_name = "CLASS", help_heading = "Budgets")]
    pub speed_class: Option<String>,
    /// Text on which `auto` measures and predicts divergence [default: calibration text that is held out
    /// from the solver]
    #[arg(long, value_name = "DATA", help_heading = "Budgets")]
    pub predict_on: Option<String>,
    /// Type of scales, norms and activations in quantized MLX folders: bf16, f16 or f32. By default f16 where calibration shows that
    /// activations stay far below its limit, and otherwise the source's type
    #[arg(long, value_name = "TYPE", help_heading = "Formats of single tensors")]
    pub mlx_dtype: Option<String>,
    /// Split the weights into files of at most this size, for example 5GB
    #[arg(long, value_name = "SIZE")]
    pub shard_size: Option<String>,
    /// Quantize weights a second time that are quantized already; otherwise they must have a place in the target's grid
    #[arg(long)]
    pub allow_requantize: bool,
    /// Layers for multi-token prediction: keep them after the others, split them off into a file of their own, or drop them [default:
    /// keep, and drop in MLX folders, which have no place for them]
    #[arg(long, value_name = "keep|split|drop")]
    pub mtp: Option<String>,
    /// Names of GGUF files: hub (MODEL-Q4_K_M.gguf) or spec (GGUF's convention, MODEL-7B-v1.0-Q4_K_M.gguf) [default: hub]
    #[arg(long, value_name = "hub|spec", help_heading = "Release")]
    pub naming: Option<String>,
    /// Layout of the output folder: flat, or lmstudio (PUBLISHER/MODEL/FILE, as below ~/.lmstudio/models) [default: flat]
    #[arg(long, value_name = "flat|lmstudio", help_heading = "Release")]
    pub layout: Option<String>,
    /// Who publishes the artifacts: `quantized_by` of cards, and LM Studio's first folder [default there: local]
    #[arg(long, value_name = "NAME", help_heading = "Release")]
    pub publisher: Option<String>,
    /// The model's licence, where its card does not say: an identifier like apache-2.0
    #[arg(long, value_name = "ID", help_heading = "Release")]
    pub license: Option<String>,
}

impl JobArgs {
    /// Fills what is not given from a recipe.
    pub fn or(self, recipe: JobArgs) -> JobArgs {
        let list = |given: Vec<String>, other| if given.is_empty() { other } else { given };
        // Budgets exclude each other, as do the three sources of evidence: one given replaces whichever the recipe names.
        let budget = self.bpw.is_some() || self.size.is_some() || self.max_kld.is_some();
        let recipe = if budget { JobArgs { bpw: None, size: None, max_kld: None, ..recipe } } else { recipe };
        let evidence = self.calib.is_some() || self.stats.is_some() || !self.imatrix.is_empty();
        let other = if evidence { JobArgs { calib: None, stats: None, imatrix: Vec::new(), ..recipe } } else { recipe };
        JobArgs {
            to: list(self.to, other.to),
            method: self.method.or(other.method),
            calib: self.calib.or(other.calib),
            stats: self.stats.or(other.stats),
            imatrix: if self.imatrix.is_empty() { other.imatrix } else { self.imatrix },
            samples: self.samples.or(other.samples),
            ctx: self.ctx.or(other.ctx),
            independent: self.independent || other.independent,
            pure: self.pure || other.pure,
            no_fallback: self.no_fallback || other.no_fallback,
            tensor_type: list(self.tensor_type, other.tensor_type),
            output_tensor_type: self.output_tensor_type.or(other.output_tensor_type),
            token_embedding_type: self.token_embedding_type.or(other.token_embedding_type),
            plan: self.plan.or(other.plan),
            plan_out: self.plan_out.or(other.plan_out),
            bpw: self.bpw.or(other.bpw),
            size: self.size.or(other.size),
            max_kld: self.max_kld.or(other.max_kld),
            speed_class: self.speed_class.or(other.speed_class),
            predict_on: self.predict_on.or(other.predict_on),
            mlx_dtype: self.mlx_dtype.or(other.mlx_dtype),
            shard_size: self.shard_size.or(other.shard_size),
            allow_requantize: self.allow_requantize || other.allow_requantize,
            mtp: self.mtp.or(other.mtp),
            naming: self.naming.or(other.naming),
            layout: self.layout.or(other.layout),
            publisher: self.publisher.or(other.publisher),
            license: self.license.or(other.license),
        }
    }

    /// The budget of `auto` targets.
    fn budget(&self) -> Result<Option<Budget>> {
        let number = |flag: &str, value: f64| {
            Number::new(value).ok_or_else(|| Error::usage(format!("{flag} {value}: a budget must be above 0")))
        };
        Ok(match (self.bpw, &self.size, self.max_kld) {
            (Some(bits), ..) => Some(Budget::Bpw(number("--bpw", bits)?)),
            (_, Some(size), _) => Some(Budget::Bytes(parse_size(size)?)),
            (.., Some(kld)) => Some(Budget::MaxKld(number("--max-kld", kld)?)),
            _ => None,
        })
    }

    /// The targets.
    pub fn targets(&self) -> Result<Vec<Target>> {
        let mut targets: Vec<Target> = self.to.iter().map(|t| t.trim().parse()).collect::<Result<_>>()?;
        if let Some(budget) = self.budget()? {
            for target in &mut targets {
                match target {
                    Target::Auto(auto) if auto.budget.is_none() => auto.budget = Some(budget),
                    _ => {
                        return Err(Error::usage(format!(
                            "--bpw, --size and --max-kld are for targets like gguf:auto, not for {target}"
                        )));
                    }
                }
            }
        }
        if let Some(twice) = targets.iter().enumerate().find(|(i, t)| targets[..*i].contains(t)) {
            return Err(Error::usage(format!("target {} is given twice", twice.1)));
        }
        Ok(targets)
    }

    /// The output folder with names and layout as asked for. A single artifact with a name of its own has none of this.
    fn place(&self, out: Output) -> Result<Output> {
        let naming = self.naming.as_deref().map(str::parse).transpose()?;
        let layout = self.layout.as_deref().unwrap_or("flat");
        if !["flat", "lmstudio"].contains(&layout) {
            return Err(Error::usage(format!("--layout {layout}: the layouts are flat and lmstudio")));
        }
        let publisher = self.publisher.clone().unwrap_or_else(|| "local".into());
        if !publisher.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
            || publisher.starts_with('.')
            || publisher.is_empty()
        {
            return Err(Error::usage(format!("--publisher {publisher}: a name has letters, digits, - _ and .")));
        }
        match out {
            Output::Folder(folder) => {
                let lm_studio = (layout == "lmstudio").then_some(publisher);
                Ok(Output::Folder(Folder { naming: naming.unwrap_or_default(), lm_studio, ..folder }))
            }
            Output::Exact(_) if naming.is_some() || layout != "flat" => {
                Err(Error::usage("--naming and --layout are for a folder of artifacts, and the output is the name of one")
                    .hint("name a folder, ended by `/`, with -o"))
            }
            exact => Ok(exact),
        }
    }

    /// Tells the model's licence, where it is not known.
    pub fn describe(&self, model: &mut Opened) {
        if model.about.license.is_none() {
            model.about.license = self.license.clone();
        }
    }

    /// What was given, as a recipe file has it.
    pub fn given(&self) -> Result<serde_json::Value> {
        let mut all = serde_json::to_value(self).map_err(|e| Error::failed(e.to_string()))?;
        if let Some(map) = all.as_object_mut() {
            map.retain(|_, v| !(v.is_null() || *v == false || v.as_array().is_some_and(Vec::is_empty)));
        }
        Ok(all)
    }

    /// The options that the libraries take.
    pub fn resolve(&self, out: Output) -> Result<QuantizeOptions> {
        let mut overrides = self.plan.as_deref().map(plan_file::read).transpose()?.unwrap_or_default();
        let named: Vec<(String, CodecId)> = self.tensor_type.iter().map(|t| tensor_type(t)).collect::<Result<_>>()?;
        overrides.extend(named);
        let codec = |name: &Option<String>| name.as_deref().map(str::parse::<CodecId>).transpose();
        let plan = PlanOptions {
            pure: self.pure,
            no_fallback: self.no_fallback,
            overrides,
            output_type: codec(&self.output_tensor_type)?,
            embedding_type: codec(&self.token_embedding_type)?,
            ..PlanOptions::default()
        };
        Ok(QuantizeOptions {
            targets: self.targets()?,
            method: self.method.as_deref().unwrap_or("best").parse()?,
            calibration: CalibrationOptions {
                data: self.calib.as_deref().map(str::parse::<DataSpec>).transpose()?,
                stats: self.stats.clone(),
                imatrix: self.imatrix.clone(),
                samples: positive("--samples", self.samples, DEFAULT_SAMPLES)?,
                ctx: positive("--ctx", self.ctx, DEFAULT_CTX)?,
                independent: self.independent,
            },
            plan,
            out: self.place(out)?,
            publisher: self.publisher.clone(),
            encoded: None,
            command: self.given()?,
            mlx_dtype: self.mlx_dtype.as_deref().map(float).transpose()?.flatten(),
            shard_size: self.shard_size.as_deref().map(parse_size).transpose()?,
            allow_requantize: self.allow_requantize,
            mtp: self.mtp.as_deref().map(str::parse).transpose()?,
            auto: AutoOptions {
                speed: self.speed_class.as_deref().map(str::parse).transpose()?.unwrap_or_default(),
                data: self.predict_on.as_deref().map(str::parse::<DataSpec>).transpose()?,
                plan_out: self.plan_out.clone(),
                planned: self.plan.is_some(),
            },
        })
    }
}

/// A path, or a list of paths.
fn one_or_several<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Vec<PathBuf>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Paths {
        One(PathBuf),
        Several(Vec<PathBuf>),
    }
    Ok(match Paths::deserialize(d)? {
        Paths::One(path) => vec![path],
        Paths::Several(paths) => paths,
    })
}

/// A floating-point type by name; `None` for `auto`.
fn float(name: &str) -> Result<Option<Float>> {
    if name == "auto" {
        return Ok(None);
    }
    let found = [Float::BF16, Float::F16, Float::F32].into_iter().find(|f| f.codec().to_string() == name);
    found.map(Some).ok_or_else(|| Error::usage(format!("--mlx-dtype {name}: the types are auto, bf16, f16 and f32")))
}

/// A count of at least 1.
pub fn positive(flag: &str, value: Option<usize>, default: usize) -> Result<usize> {
    match value {
        Some(0) => Err(Error::usage(format!("{flag} must be at least 1"))),
        value => Ok(value.unwrap_or(default)),
    }
}

fn tensor_type(text: &str) -> Result<(String, CodecId)> {
    match text.split_once('=') {
        Some((role, codec)) if !role.is_empty() => Ok((role.trim().to_string(), codec.trim().parse()?)),
        _ => Err(Error::usage(format!("`{text}` is not of the form ROLE=CODEC")).hint("for example --tensor-type attn_v=q6_k")),
    }
}

/// Finished artifacts for people.
fn artifact_table(artifacts: &[Artifact]) -> String {
    let header = ["target", "size", "bpw", "time", "peak memory", "path"].map(String::from).to_vec();
    let rows = artifacts.iter().map(|a| {
        let memory = if a.peak_rss_bytes > 0 { human_bytes(a.peak_rss_bytes) } else { "–".into() };
        let time = format!("{:.1} s", a.seconds);
        vec![a.target.clone(), human_bytes(a.bytes), format!("{:.3}", a.bpw), time, memory, a.path.display().to_string()]
    });
    table(&std::iter::once(header).chain(rows).collect::<Vec<_>>(), &[1, 2, 3, 4])
}

/// The document and the text of `--dry-run`.
pub fn estimates(list: &[Estimate]) -> (serde_json::Value, String) {
    let header = ["target", "size", "bpw", "memory", "disk", "time"].map(String::from).to_vec();
    let row = |e: &Estimate| {
        let time = format!("about {}", duration(e.seconds));
        vec![
            e.target.clone(),
            human_bytes(e.bytes),
            format!("{:.3}", e.bpw),
            human_bytes(e.ram_bytes),
            human_bytes(e.disk_bytes),
            time,
        ]
    };
    let mut text = table(&std::iter::once(header).chain(list.iter().map(row)).collect::<Vec<_>>(), &[1, 2, 3, 4]);
    for e in list {
        e.fallbacks.iter().for_each(|line| text.push_str(&format!("{}: {line}\n", e.target)));
    }
    (serde_json::json!({ "dry_run": true, "estimates": list }), text)
}

/// Makes the artifacts, with `release` also what belongs beside them to be published, and lists them; or only says what they would cost.
pub fn make(model: &Opened, options: &QuantizeOptions, release: bool, dry_run: bool, app: &App) -> Result<()> {
    let job = Job::new(model, options, &app.context)?;
    if release {
        release::check(&job)?;
    }
    if dry_run {
        let (document, text) = estimates(&job.estimates(0)?);
        return app.output.result(&document, |_| text);
    }
    let artifacts = job.run()?;
    let mut document = serde_json::json!({ "artifacts": artifacts });
    if release {
        document["releases"] = serde_json::json!(release::write(&job, &artifacts)?);
    }
    app.output.result(&document, |_| artifact_table(&artifacts))
}

/// Copies a GGUF as it is, in one file or several.
pub fn repack(source: &Path, out: &Path, shard_size: Option<&str>, dry_run: bool, app: &App) -> Result<()> {
    let copy = Repack::new(source, out, shard_size.map(parse_size).transpose()?)?;
    if dry_run {
        let (document, text) = estimates(&[copy.estimate()?]);
        return app.output.result(&document, |_| text);
    }
    let artifacts = [copy.run(&app.context)?];
    app.output.result(&serde_json::json!({ "artifacts": artifacts }), |_| artifact_table(&artifacts))
}

/// Prints the cost of work that makes no artifact.
pub fn costs(cost: &Cost, app: &App) -> Result<()> {
    app.output.result(&serde_json::json!({ "dry_run": true, "cost": cost }), |_| {
        let (ram, disk) = (human_bytes(cost.ram_bytes), human_bytes(cost.disk_bytes));
        format!("{} tokens, {ram} of memory, {disk} of disk, about {}\n", cost.tokens, duration(cost.seconds))
    })
}

fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 90.0 => format!("{} s", s.ceil()),
        s if s < 5400.0 => format!("{} min", (s / 60.0).round()),
        s => format!("{:.1} h", s / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_wins_over_the_recipe() {
        let recipe: JobArgs = toml::from_str(
            "to = ['mlx:4bit']\nmethod = 'rtn'\ncalib = 'a.txt'\nsamples = 3\ntensor-type = ['attn_v=q6_k']\npure = true\nno-fallback = false",
        )
        .unwrap();
        let given = JobArgs { method: Some("gptq".into()), stats: Some("s".into()), ..JobArgs::default() };
        let merged = given.or(recipe);
        assert_eq!((merged.to, merged.method.as_deref(), merged.samples), (vec!["mlx:4bit".to_string()], Some("gptq"), Some(3)));
        assert_eq!((merged.calib, merged.stats, merged.pure), (None, Some("s".into()), true));
    }

    #[test]
    fn resolved() {
        let args = JobArgs {
            to: vec!["gguf:q4_k_m".into(), "mlx:8bit".into()],
            tensor_type: vec!["attn_v=q6_k".into()],
            ..JobArgs::default()
        };
        let options = args.resolve(Output::Folder(PathBuf::from("out").into())).unwrap();
        assert_eq!(
            (options.targets.len(), options.calibration.samples, options.calibration.ctx),
            (2, DEFAULT_SAMPLES, DEFAULT_CTX)
        );
        assert_eq!(options.plan.overrides, [("attn_v".to_string(), CodecId::Q6K)]);
        let bad = |args: JobArgs| args.resolve(Output::Folder(PathBuf::from("out").into())).unwrap_err().kind.exit_code();
        assert_eq!(bad(JobArgs { to: vec!["gguf:q9".into()], ..JobArgs::default() }), 69);
        assert_eq!(bad(JobArgs { to: vec!["gguf:q8_0".into(), "gguf:q8_0".into()], ..JobArgs::default() }), 2);
        assert_eq!(bad(JobArgs { tensor_type: vec!["attn_v".into()], ..JobArgs::default() }), 2);
        assert_eq!(bad(JobArgs { samples: Some(0), ..JobArgs::default() }), 2);
    }
}

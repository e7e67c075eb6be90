//! Model cards: the `README.md` of a folder that is published.

use crate::about::{ModelAbout, yaml};

/// What a card says of its kind of artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kind {
    /// The hub's name of the library that loads it.
    pub library: &'static str,
    /// The tag by which it is found.
    pub tag: String,
    /// The format's name in a sentence.
    pub format: String,
    /// Commands that install and run it.
    pub commands: &'static str,
}

impl Kind {
    /// GGUF files.
    pub fn gguf() -> Kind {
        let commands = "llama-cli -m <a file>.gguf -p \"hello\"\nollama create <a name> -f Modelfile";
        Kind { library: "gguf", tag: "gguf".into(), format: "GGUF".into(), commands }
    }

    /// An MLX folder; `sees`: with a vision tower.
    pub fn mlx(sees: bool) -> Kind {
        let commands = match sees {
            false => "pip install mlx-lm\nmlx_lm.generate --model <this folder> --prompt \"hello\"",
            true => "pip install mlx-vlm\nmlx_vlm.generate --model <this folder> --image <a picture> --prompt \"what is this?\"",
        };
        Kind { library: "mlx", tag: "mlx".into(), format: "MLX".into(), commands }
    }

    /// A plain checkpoint folder.
    pub fn hf() -> Kind {
        let commands = "pip install vllm\nvllm serve <this folder>";
        Kind { library: "transformers", tag: "safetensors".into(), format: "Hugging Face".into(), commands }
    }

    /// A folder of packed weights, by the name of its method: `gptq`, `awq`, ….
    pub fn packed(method: &str) -> Kind {
        Kind { tag: method.into(), format: method.to_uppercase(), ..Kind::hf() }
    }
}

/// What the cards of all kinds say.
#[derive(Debug, Clone, Copy)]
pub struct Card<'a> {
    /// Licence, base model, languages, tags.
    pub about: &'a ModelAbout,
    /// Whether there is a vision tower.
    pub sees: bool,
    /// Whether any matrix is quantized.
    pub quantized: bool,
    /// Who publishes it.
    pub publisher: Option<&'a str>,
    /// Tags beside those of the kind and of the source.
    pub tags: &'a [&'a str],
}

impl Card<'_> {
    /// Metadata in YAML, a title, and the body.
    pub fn render(&self, kind: &Kind, body: &str) -> String {
        let about = self.about;
        let task = if self.sees { "image-text-to-text" } else { "text-generation" };
        let mut lines = vec!["---".to_string(), format!("library_name: {}", kind.library)];
        lines.push(format!("pipeline_tag: {}", yaml(about.pipeline_tag.as_deref().unwrap_or(task))));
        lines.extend(about.card_lines(self.quantized));
        lines.extend(self.publisher.map(|p| format!("quantized_by: {}", yaml(p))));
        lines.push("tags:".into());
        let mut tags = vec![kind.tag.as_str()];
        for tag in self.tags.iter().copied().chain(about.tags.iter().map(String::as_str)) {
            if !tags.contains(&tag) {
                tags.push(tag);
            }
        }
        lines.extend(tags.iter().map(|t| format!("- {}", yaml(t))));
        lines.push("---".into());
        lines.push(format!("\n# {}\n", about.name));
        lines.push(body.to_string());
        lines.join("\n")
    }

    /// A sentence on what the artifact is, and how it is run.
    pub fn introduction(&self, kind: &Kind, bpw: f64) -> String {
        let version = env!("CARGO_PKG_VERSION");
        format!(
            "{} in {} format, {bpw:.2} bits per weight, made with bitsmith {version}.\n\n```sh\n{}\n```\n",
            self.origin(),
            kind.format,
            kind.commands
        )
    }

    /// The source, as a link if it is on the hub.
    pub fn origin(&self) -> String {
        match &self.about.repo {
            Some(repo) => format!("[{repo}](https://huggingface.co/{repo})"),
            None => self.about.name.clone(),
        }
    }
}

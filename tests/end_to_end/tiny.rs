//! Small checkpoints with random weights and the demo's tokenizer, one per family.

use crate::support::{Work, demo, write_safetensors};
use serde_json::{Map, Value, json};
use std::fs;
use std::path::PathBuf;

/// Rows of 128 do not fit the 256-wide formats, those of `ffn_down` do.
pub const HIDDEN: usize = 128;
const FFN: usize = 256;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const VOCAB: usize = 2048;
const LAYERS: usize = 2;

/// What distinguishes the families.
#[derive(Clone, Copy)]
pub struct Family {
    pub name: &'static str,
    tied: bool,
    bias: bool,
    qk_norm: bool,
    head_dim: usize,
}

/// Tied embeddings, llama3's stretched rotations.
pub const LLAMA: Family = Family { name: "llama", tied: true, bias: false, qk_norm: false, head_dim: 32 };
/// Untied embeddings, heads wider than the hidden state.
pub const MISTRAL: Family = Family { name: "mistral", tied: false, bias: false, qk_norm: false, head_dim: 64 };
/// Biases.
pub const QWEN2: Family = Family { name: "qwen2", tied: true, bias: true, qk_norm: false, head_dim: 32 };
/// Norms of queries and keys.
pub const QWEN3: Family = Family { name: "qwen3", tied: false, bias: false, qk_norm: true, head_dim: 32 };

impl Family {
    /// The same with heads of another width.
    pub fn with_heads(self, head_dim: usize) -> Self {
        Family { head_dim, ..self }
    }

    /// Names, shapes, and the range of values: centre and half width.
    pub fn tensors(self) -> Vec<(String, Vec<usize>, f32, f32)> {
        let (q, kv) = (HEADS * self.head_dim, KV_HEADS * self.head_dim);
        let mut list = vec![("model.embed_tokens".to_string(), vec![VOCAB, HIDDEN], 0.0, 0.3)];
        for layer in 0..LAYERS {
            let mut add = |name: &str, shape: &[usize], centre, width| {
                list.push((format!("model.layers.{layer}.{name}"), shape.to_vec(), centre, width));
            };
            for (name, rows, cols) in [
                ("self_attn.q_proj", q, HIDDEN),
                ("self_attn.k_proj", kv, HIDDEN),
                ("self_attn.v_proj", kv, HIDDEN),
                ("self_attn.o_proj", HIDDEN, q),
                ("mlp.gate_proj", FFN, HIDDEN),
                ("mlp.up_proj", FFN, HIDDEN),
                ("mlp.down_proj", HIDDEN, FFN),
            ] {
                add(name, &[rows, cols], 0.0, 0.15);
            }
            add("input_layernorm", &[HIDDEN], 1.0, 0.5);
            add("post_attention_layernorm", &[HIDDEN], 1.0, 0.5);
            if self.qk_norm {
                add("self_attn.q_norm", &[self.head_dim], 1.0, 0.5);
                add("self_attn.k_norm", &[self.head_dim], 1.0, 0.5);
            }
        }
        list.push(("model.norm".into(), vec![HIDDEN], 1.0, 0.5));
        if !self.tied {
            list.push(("lm_head".into(), vec![VOCAB, HIDDEN], 0.0, 0.3));
        }
        list.iter_mut().for_each(|(name, ..)| name.push_str(".weight"));
        if self.bias {
            for layer in 0..LAYERS {
                for (name, rows) in [("q", q), ("k", kv), ("v", kv)] {
                    list.push((format!("model.layers.{layer}.self_attn.{name}_proj.bias"), vec![rows], 0.0, 0.5));
                }
            }
        }
        list
    }

    pub fn config(self) -> Value {
        let mut config: Value = serde_json::from_slice(&fs::read(demo().join("config.json")).unwrap()).unwrap();
        let changes = json!({
            "model_type": self.name, "hidden_size": HIDDEN, "intermediate_size": FFN, "num_attention_heads": HEADS,
            "num_key_value_heads": KV_HEADS, "num_hidden_layers": LAYERS, "vocab_size": VOCAB, "head_dim": self.head_dim,
            "tie_word_embeddings": self.tied,
        });
        config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        if self.name == "llama" {
            config["rope_scaling"] = json!({
                "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            });
        }
        config
    }

    /// Writes the checkpoint, in bf16.
    pub fn write(self, work: &Work, name: &str) -> PathBuf {
        write_random(work, name, &self.config(), self.tensors())
    }
}

/// Writes a checkpoint with the demo's tokenizer, in bf16. Of each tensor: name, shape, and the range of its values: centre and half
/// width.
pub fn write_random(work: &Work, name: &str, config: &Value, tensors: Vec<(String, Vec<usize>, f32, f32)>) -> PathBuf {
    let folder = work.path(name);
    fs::create_dir_all(&folder).unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(demo().join(file), folder.join(file)).unwrap();
    }
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let (mut header, mut data, mut state) = (Map::new(), Vec::new(), 1u32);
    for (name, shape, centre, width) in tensors {
        let start = data.len();
        for _ in 0..shape.iter().product::<usize>() {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            let value = centre + width * (state as f32 / (u32::MAX / 2) as f32 - 1.0);
            data.extend(&value.to_le_bytes()[2..]);
        }
        header.insert(name, json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, data.len()]}));
    }
    write_safetensors(&folder.join("model.safetensors"), &header, &data);
    folder
}

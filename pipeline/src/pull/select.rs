//! Which files of a repository to fetch.

use bitsmith_formats::{Error, Result};

/// What to take from a repository.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// Patterns of which a file must match one. None means: what reading the model needs.
    pub include: Vec<String>,
    /// Patterns of which a file must match none.
    pub exclude: Vec<String>,
}

impl Selection {
    /// The chosen names, in the order given.
    pub fn choose<'a>(&self, names: &[&'a str]) -> Vec<&'a str> {
        let standard = names.iter().any(|n| is_standard_weights(n));
        let torch = !names.iter().any(|n| n.ends_with(".safetensors"));
        let wanted = |name: &str| match self.include.as_slice() {
            [] => needed(name, standard) || torch && is_torch(name),
            patterns => patterns.iter().any(|p| matches(p, name)),
        };
        names.iter().copied().filter(|n| wanted(n) && !self.exclude.iter().any(|p| matches(p, n))).collect()
    }

    /// Whether files with the model's weights are asked for.
    pub fn is_default(&self) -> bool {
        self.include.is_empty()
    }
}

/// Whether reading the model needs the file: configuration, tokenizer, chat templates, safetensors, and the licence that goes along.
/// With `standard` weights in the repository, other safetensors beside them are the same model again in another layout.
fn needed(name: &str, standard: bool) -> bool {
    if let Some((folder, file)) = name.rsplit_once('/') {
        return folder == "additional_chat_templates" && file.ends_with(".jinja");
    }
    if name.ends_with(".safetensors") {
        return is_standard_weights(name) || !standard;
    }
    if let Some(weights) = name.strip_suffix(".index.json") {
        return weights.ends_with(".safetensors");
    }
    let upper = name.to_ascii_uppercase();
    let legal = ["LICENSE", "LICENCE", "NOTICE", "README", "COPYING", "USE_POLICY"].iter().any(|p| upper.starts_with(p));
    let extension = [".json", ".jinja", ".model", ".tiktoken"].iter().any(|e| name.ends_with(e));
    legal || extension || matches!(name, "merges.txt" | "vocab.txt")
}

/// `pytorch_model.bin`, its shards and their index.
fn is_torch(name: &str) -> bool {
    name.starts_with("pytorch_model") && (name.ends_with(".bin") || name.ends_with(".bin.index.json")) && !name.contains('/')
}

/// Whether the file has weights that can be read: safetensors or, where there are none, PyTorch's.
pub fn is_weights(name: &str) -> bool {
    name.ends_with(".safetensors") || is_torch(name) && name.ends_with(".bin")
}

/// `model.safetensors` or `model-00001-of-00003.safetensors`.
fn is_standard_weights(name: &str) -> bool {
    let Some(middle) = name.strip_prefix("model").and_then(|n| n.strip_suffix(".safetensors")) else { return false };
    let number = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    let shard = middle.strip_prefix('-').and_then(|m| m.split_once("-of-"));
    middle.is_empty() || shard.is_some_and(|(i, n)| number(i) && number(n))
}

/// Shell-style match of a whole name: `*` any run of characters (slashes too), `?` any one, `[abc]`, `[a-z]` and `[!a]` one of a set.
/// A pattern that ends in a slash means everything below.
pub fn matches(pattern: &str, name: &str) -> bool {
    let mut pattern: Vec<char> = pattern.chars().collect();
    if pattern.last() == Some(&'/') {
        pattern.push('*');
    }
    let name: Vec<char> = name.chars().collect();
    // Where to go on if the last `*` takes one character more: pattern and name positions.
    let mut retry: Option<(usize, usize)> = None;
    let (mut p, mut n) = (0, 0);
    while n < name.len() {
        if pattern.get(p) == Some(&'*') {
            p += 1;
            retry = Some((p, n));
        } else if let Some(next) = match_one(&pattern, p, name[n]) {
            p = next;
            n += 1;
        } else if let Some((after_star, taken)) = retry {
            p = after_star;
            n = taken + 1;
            retry = Some((p, n));
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

/// The pattern position after the element at `p`, if that element matches `c`.
fn match_one(pattern: &[char], p: usize, c: char) -> Option<usize> {
    match *pattern.get(p)? {
        '?' => Some(p + 1),
        '[' => {
            let negated = matches!(pattern.get(p + 1), Some('!' | '^'));
            let start = p + 1 + usize::from(negated);
            // A bracket right after the opening one is a member of the set.
            let Some(len) = pattern.get(start + 1..).and_then(|rest| rest.iter().position(|c| *c == ']')) else {
                return (c == '[').then_some(p + 1);
            };
            let end = start + 1 + len;
            let set = &pattern[start..end];
            let mut found = false;
            let mut i = 0;
            while i < set.len() {
                if set.get(i + 1) == Some(&'-') && i + 2 < set.len() {
                    found |= (set[i]..=set[i + 2]).contains(&c);
                    i += 3;
                } else {
                    found |= set[i] == c;
                    i += 1;
                }
            }
            (found != negated).then_some(end + 1)
        }
        literal => (literal == c).then_some(p + 1),
    }
}

/// Refuses names that would leave the folder they are written to.
pub fn check_name(name: &str) -> Result<()> {
    let bad_part = |part: &str| part.is_empty() || part == "." || part == "..";
    if name.split('/').any(bad_part) || name.contains(|c: char| c.is_control() || c == '\\' || c == ':') {
        return Err(Error::corrupt(format!("the repository lists the file name {name:?}, which is not a path inside a folder"))
            .hint("do not use this repository; nothing was written"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_selection() {
        let names = [
            "config.json",
            "consolidated.safetensors",
            "flax_model.msgpack",
            "LICENSE",
            "merges.txt",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.fp16.safetensors",
            "model.safetensors.index.json",
            "modeling_x.py",
            "onnx/model.onnx",
            "onnx/config.json",
            "original/params.json",
            "pytorch_model.bin",
            "pytorch_model.bin.index.json",
            "tokenizer.json",
            "tokenizer.model",
            "x.gguf",
            "chat_template.jinja",
            "additional_chat_templates/rag.jinja",
        ];
        let chosen = Selection::default().choose(&names);
        let expected = [
            "config.json",
            "LICENSE",
            "merges.txt",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "tokenizer.json",
            "tokenizer.model",
            "chat_template.jinja",
            "additional_chat_templates/rag.jinja",
        ];
        assert_eq!(chosen, expected);
        assert_eq!(Selection::default().choose(&["weights.00.safetensors"]), ["weights.00.safetensors"]);
        let torch = [
            "config.json",
            "pytorch_model-00001-of-00001.bin",
            "pytorch_model.bin.index.json",
            "training_args.bin",
            "x/pytorch_model.bin",
        ];
        assert_eq!(Selection::default().choose(&torch), torch[..3]);
        let selection = Selection { include: vec!["*.gguf".into(), "*.json".into()], exclude: vec!["onnx/".into()] };
        let expected = [
            "config.json",
            "model.safetensors.index.json",
            "original/params.json",
            "pytorch_model.bin.index.json",
            "tokenizer.json",
            "x.gguf",
        ];
        assert_eq!(selection.choose(&names), expected);
    }

    #[test]
    fn globs() {
        for (pattern, name) in [
            ("*", "a/b"),
            ("*.json", "x/config.json"),
            ("model-?????-of-*.safetensors", "model-00001-of-00002.safetensors"),
            ("*Q4_[KM]*", "x-Q4_K_M.gguf"),
            ("[!x]*", "abc"),
            ("a[0-9]b", "a5b"),
            ("[]]", "]"),
            ("a[", "a["),
            ("onnx/", "onnx/m/x"),
            ("a*b*c", "aXbYbZc"),
            ("", ""),
        ] {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in
            [("*.json", "config.jsonl"), ("a?c", "ac"), ("[!x]*", "xyz"), ("a[0-9]b", "axb"), ("", "a"), ("onnx/", "onnx")]
        {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
    }

    #[test]
    fn names_stay_inside() {
        for good in ["config.json", "a/b.txt", "..x", "a..b"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["../evil", "/etc/passwd", "a/../../b", "a//b", "", ".", "a\\..\\b", "C:x", "a/"] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}

//! Which modules a configuration means: names, `re:` patterns as Python's `re.match` reads them, globs, and classes of layers.

use crate::error::{Error, Result};
use fancy_regex::Regex;

/// One entry of `targets`, `ignore` or `exclude_modules`.
#[derive(Debug, Clone)]
pub(super) enum Target {
    /// A module's path.
    Name(String),
    /// A pattern of paths.
    Pattern(Regex),
    /// A class of layers, `Linear` for example, which a checkpoint does not record.
    Class,
}

impl Target {
    /// Reads an entry. Names of classes begin with a capital letter.
    pub fn parse(text: &str) -> Result<Self> {
        let pattern = |p: String| match Regex::new(&p) {
            Ok(regex) => Ok(Target::Pattern(regex)),
            Err(e) => Err(Error::unsupported(format!("`{text}` in quantization_config: {e}")).with_source(e)),
        };
        if let Some(regex) = text.strip_prefix("re:") {
            return pattern(format!("^(?:{regex})"));
        }
        if text.contains(['*', '?']) {
            let literal = |c: char| match c {
                '*' => ".*".to_string(),
                '?' => ".".to_string(),
                c => fancy_regex::escape(c.encode_utf8(&mut [0; 4])).into_owned(),
            };
            return pattern(format!("^(?:{})$", text.chars().map(literal).collect::<String>()));
        }
        let class = text.starts_with(|c: char| c.is_ascii_uppercase()) && !text.contains('.');
        Ok(if class { Target::Class } else { Target::Name(text.to_string()) })
    }

    /// Reads a list of entries under `key` of an object; an absent list is empty.
    pub fn list(object: &serde_json::Value, key: &str) -> Result<Vec<Self>> {
        let wrong = || Error::corrupt(format!("`{key}` in quantization_config must be a list of strings"));
        match object.get(key) {
            None | Some(serde_json::Value::Null) => Ok(Vec::new()),
            Some(list) => {
                let entries = list.as_array().ok_or_else(wrong)?;
                entries.iter().map(|e| Self::parse(e.as_str().ok_or_else(wrong)?)).collect()
            }
        }
    }

    /// Whether this entry names a module. A pattern that cannot be decided names nothing.
    pub fn names(&self, module: &str) -> bool {
        match self {
            Target::Name(name) => name == module,
            Target::Pattern(regex) => regex.is_match(module).unwrap_or(false),
            Target::Class => false,
        }
    }

    /// Whether this entry names a class of layers.
    pub fn is_class(&self) -> bool {
        matches!(self, Target::Class)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_name_modules_as_their_libraries_do() {
        for (entry, module, expected) in [
            ("lm_head", "lm_head", true),
            ("lm_head", "model.lm_head", false),
            ("re:.*lm_head", "model.lm_head", true),
            ("re:model.layers.1", "model.layers.10.mlp", true),
            ("re:layers", "model.layers.10.mlp", false),
            ("re:.*self_attn.(q|k)_proj$", "model.layers.0.self_attn.k_proj", true),
            ("re:^(?!.*mlp).*", "model.layers.0.mlp.up_proj", false),
            ("model.layers.0*", "model.layers.0.mlp.up_proj", true),
            ("*.up_proj", "model.layers.0.mlp.up_proj", true),
            ("*.up_proj", "model.layers.0.mlp.up_proj.x", false),
            ("Linear", "Linear", false),
        ] {
            assert_eq!(Target::parse(entry).unwrap().names(module), expected, "{entry} {module}");
        }
        assert!(Target::parse("Linear").unwrap().is_class());
        assert!(Target::parse("re:(").is_err());
        assert!(Target::list(&serde_json::json!({ "ignore": [1] }), "ignore").is_err());
        assert!(Target::list(&serde_json::json!({ "ignore": null }), "ignore").unwrap().is_empty());
    }
}

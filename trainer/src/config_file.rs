//! Settings in a TOML file: the keys of `--set`, in tables.
//!
//! ```toml
//! preset = "nano"        # also recipe and tokenizer: what the flags of these names take
//! [model]
//! attention = "grouped"
//! rope.theta = 50000.0
//! [train]
//! steps = 2000
//! ```

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use crate::error::{Error, Result};
use crate::keys::{self, KEYS};
use crate::settings::Settings;

/// Keys outside tables: what the flags of these names take.
const FLAGS: [&str; 3] = ["preset", "recipe", "tokenizer"];

/// A file of settings.
#[derive(Clone, Debug)]
pub struct ConfigFile {
    path: PathBuf,
    /// Names and values, as `--set` spells them.
    values: Vec<(String, String)>,
}

impl ConfigFile {
    /// Reads a file and checks its keys.
    ///
    /// # Errors
    ///
    /// [`Error::Io`]; [`Error::Usage`] for what is no TOML, and for a key that does not exist, naming
    /// the nearest that does.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path, "read"))?;
        Self::parse(path, &text)
    }

    fn parse(path: &Path, text: &str) -> Result<Self> {
        let usage = |message: String| Error::Usage(format!("{}: {message}", path.display()));
        let table: Table = text.parse().map_err(|e| usage(format!("no TOML: {e}")))?;
        let mut values = Vec::new();
        flatten("", &table, &mut values).map_err(usage)?;
        for (name, _) in &values {
            let names = || KEYS.iter().map(|key| key.name).chain(FLAGS);
            if !names().any(|known| known == name) {
                let nearest = keys::nearest(name, names());
                let message = format!("there is no setting {name:?}; the nearest is {nearest}");
                return Err(usage(message));
            }
        }
        Ok(Self {
            path: path.into(),
            values,
        })
    }

    /// What the file says instead of a flag.
    #[must_use]
    pub fn flag(&self, name: &str) -> Option<&str> {
        let found = self.values.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    }

    /// Applies all settings, in the order of [`KEYS`]: those that others follow come first.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] for a value a key cannot have.
    pub fn apply(&self, settings: &mut Settings) -> Result<()> {
        for key in KEYS {
            if let Some(value) = self.flag(key.name) {
                let file = self.path.display();
                keys::apply(settings, &format!("{}={value}", key.name))
                    .map_err(|e| Error::Usage(format!("{file}: {e}")))?;
            }
        }
        Ok(())
    }
}

fn flatten(
    prefix: &str,
    table: &Table,
    values: &mut Vec<(String, String)>,
) -> std::result::Result<(), String> {
    for (name, value) in table {
        let name = format!("{prefix}{name}");
        let value = match value {
            Value::Table(inner) => {
                flatten(&format!("{name}."), inner, values)?;
                continue;
            }
            Value::String(text) => text.clone(),
            Value::Integer(number) => number.to_string(),
            Value::Float(number) => number.to_string(),
            Value::Boolean(truth) => truth.to_string(),
            Value::Array(_) | Value::Datetime(_) => {
                return Err(format!("{name} is no number, text or truth value"));
            }
        };
        values.push((name, value));
    }
    Ok(())
}

/// All settings as such a file; given back with `--config` it makes the same settings.
#[must_use]
pub fn to_toml(settings: &Settings) -> String {
    let mut out = String::new();
    for table in ["model", "train"] {
        let _ = writeln!(out, "[{table}]");
        for key in KEYS {
            let name = key
                .name
                .strip_prefix(table)
                .and_then(|n| n.strip_prefix('.'));
            if let (Some(name), Some(value)) = (name, key.value(settings)) {
                // Whole numbers beyond 63 bits are no TOML; as text they are understood.
                let is_bare = value.parse::<i64>().is_ok()
                    || value.parse::<bool>().is_ok()
                    || (value.contains('.') && value.parse::<f64>().is_ok());
                let quote = if is_bare { "" } else { "\"" };
                let _ = writeln!(out, "{name} = {quote}{value}{quote}");
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitnet_formats::Preset;

    fn parse(text: &str) -> Result<ConfigFile> {
        ConfigFile::parse(Path::new("c.toml"), text)
    }

    #[test]
    fn what_is_written_makes_the_same_settings() {
        for preset in Preset::ALL {
            let mut original = Settings::preset(preset);
            original.train.seed = u64::MAX;
            let mut rebuilt = Settings::preset(Preset::Nano);
            let file = parse(&to_toml(&original)).unwrap();
            file.apply(&mut rebuilt).unwrap();
            rebuilt.model.vocab_size = original.model.vocab_size;
            assert_eq!(rebuilt, original);
        }
    }

    #[test]
    fn order_in_the_file_does_not_matter() {
        let text = "tokenizer = 'byte'\n[train]\nwarmup = 3\nsteps = 1000\nlr = 1e-3\n\
                    [model]\nn_kv_heads = 1\nattention = 'grouped'\nrope.theta = 5e5";
        let mut settings = Settings::preset(Preset::Nano);
        let file = parse(text).unwrap();
        file.apply(&mut settings).unwrap();
        assert_eq!(file.flag("tokenizer"), Some("byte"));
        assert_eq!(file.flag("preset"), None);
        assert_eq!((settings.train.steps, settings.train.warmup), (1000, 3));
        assert_eq!(settings.model.rope.theta, 5e5);
    }

    #[test]
    fn each_defect_is_named() {
        let cases = [
            ("steps = 3", "no setting \"steps\""),
            (
                "[train]\nstep = 3",
                "c.toml: there is no setting \"train.step\"; the nearest is train.steps",
            ),
            ("presets = 'nano'", "the nearest is preset"),
            ("[train\n", "c.toml: no TOML"),
            ("[train]\nlr = [1]", "train.lr is no number"),
        ];
        for (text, says) in cases {
            let message = parse(text).unwrap_err().to_string();
            assert!(message.contains(says), "{message}");
        }
        let mut settings = Settings::preset(Preset::Nano);
        let bad = parse("[train]\nlr = 'fast'").unwrap().apply(&mut settings);
        let message = bad.unwrap_err().to_string();
        assert!(message.contains("c.toml: --set train.lr=fast"), "{message}");
    }
}

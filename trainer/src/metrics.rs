//! `metrics.jsonl`: one line of JSON per step.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::events::EventLog;
use crate::files::write_bytes;

/// One step. The fields from `val_loss` on are there at evaluations.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Steps taken.
    pub step: u64,
    /// Mean loss of the step's batch, nats per token.
    pub loss: f64,
    /// Loss on the whole validation text, nats per token.
    pub val_loss: Option<f64>,
    /// Learning rate.
    pub lr: f64,
    /// Global norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Training tokens per second, evaluations not counted.
    pub tokens_per_s: f64,
    /// True if the step was left out and changed nothing: a spike, or windows without an answer (loss
    /// and norm are then zero).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub skipped: bool,
    /// Share of the ternary weights that the step changed.
    #[serde(default)]
    pub flips: f64,
    /// How far the quantisers were on, while they were not: 0 in full precision, then rising to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lambda: Option<f64>,
    /// Loss on the validation text, bits per byte.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_bits_per_byte: Option<f64>,
    /// Share of the ternary weights that are zero.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zero_share: Option<f64>,
    /// Every tensor, by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tensors: Option<BTreeMap<String, TensorRecord>>,
    /// Generated text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample: Option<String>,
}

/// A tensor at an evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TensorRecord {
    /// Norm of its gradient in the last step, before clipping.
    pub grad_norm: f64,
    /// Ternary matrices: mean magnitude of the weights, by which they are quantised.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale: Option<f64>,
    /// Ternary matrices: share of the weights that are zero.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zero_share: Option<f64>,
}

/// The metrics of a run, in memory and on disk.
#[derive(Debug)]
pub struct MetricsLog {
    path: PathBuf,
    file: File,
    events: Option<EventLog>,
    records: Vec<Record>,
}

impl MetricsLog {
    /// Goes on with the log at `path` after `step`: lines of later steps, and a half-written last
    /// line, are dropped.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], or [`Error::Checkpoint`] if another line is no record.
    pub fn open(path: &Path, step: u64) -> Result<Self> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(Error::io(path, "read")(e)),
        };
        let records = parse(&text, step).map_err(|problem| Error::checkpoint(path, problem))?;
        let kept: Result<String> = records.iter().map(|record| line(path, record)).collect();
        write_bytes(path, kept?.as_bytes())?;
        let file = OpenOptions::new().append(true).open(path);
        Ok(Self {
            path: path.into(),
            file: file.map_err(Error::io(path, "write"))?,
            events: None,
            records,
        })
    }

    /// Writes an event file as well, in the folder of a run that has taken `step` steps.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn with_events(mut self, folder: &Path, step: u64) -> Result<Self> {
        self.events = Some(EventLog::begin(folder, step)?);
        Ok(self)
    }

    /// Adds a record.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn push(&mut self, record: Record) -> Result<()> {
        let line = line(&self.path, &record)?;
        let written = self.file.write_all(line.as_bytes());
        written.map_err(Error::io(&self.path, "write"))?;
        if let Some(events) = &mut self.events {
            events.push(&record)?;
        }
        self.records.push(record);
        Ok(())
    }

    /// All records, in order.
    #[must_use]
    pub fn records(&self) -> &[Record] {
        &self.records
    }
}

fn line(path: &Path, record: &Record) -> Result<String> {
    let json = serde_json::to_string(record);
    Ok(json.map_err(|e| Error::checkpoint(path, e.to_string()))? + "\n")
}

/// Records up to `step`. Only a last line without its end may be no record.
fn parse(text: &str, step: u64) -> std::result::Result<Vec<Record>, String> {
    let mut records = Vec::new();
    for (i, line) in text.split_inclusive('\n').enumerate() {
        match serde_json::from_str::<Record>(line) {
            Ok(record) if record.step <= step => records.push(record),
            Ok(_) => break,
            Err(_) if !line.ends_with('\n') => break,
            Err(e) => return Err(format!("line {}: {e}", i + 1)),
        }
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(step: u64) -> Record {
        Record {
            step,
            loss: 1.5,
            lr: 1e-3,
            grad_norm: 0.5,
            tokens_per_s: 9.0,
            ..Record::default()
        }
    }

    #[test]
    fn resuming_drops_later_and_half_written_lines() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut log = MetricsLog::open(&path, 0).unwrap();
        (1..=5).for_each(|step| log.push(record(step)).unwrap());
        let half = fs::read_to_string(&path).unwrap() + "{\"step\": 6, \"lo";
        fs::write(&path, half).unwrap();
        let steps = |step| {
            let log = MetricsLog::open(&path, step).unwrap();
            log.records().iter().map(|r| r.step).collect::<Vec<_>>()
        };
        assert_eq!(steps(9), [1, 2, 3, 4, 5]);
        assert_eq!(steps(3), [1, 2, 3]);
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 3);
    }

    #[test]
    fn a_foreign_line_is_an_error() {
        let error = parse("{\"x\": 1}\n", 9).unwrap_err();
        assert!(error.starts_with("line 1: missing field"), "{error}");
    }

    #[test]
    fn the_promised_keys_are_there() {
        let json: serde_json::Value =
            serde_json::from_str(&line(Path::new("x"), &record(1)).unwrap()).unwrap();
        for key in [
            "step",
            "loss",
            "val_loss",
            "lr",
            "grad_norm",
            "tokens_per_s",
            "flips",
        ] {
            assert!(json.get(key).is_some(), "{key}");
        }
    }
}

//! Event files of TensorBoard: the figures of `metrics.jsonl`, for `tensorboard --logdir`.
//!
//! A file is a row of records: u64 length, masked CRC-32C of these eight bytes, the bytes, their
//! masked CRC-32C (TFRecord, little-endian). Each holds an `Event`, a protocol buffer of which this
//! writes five fields. Every start of a run begins a file; its first event says which step comes next,
//! and readers forget what earlier files say of that step and later ones.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::error::{Error, Result};
use crate::metrics::Record;

/// What the names of event files begin with; the time in seconds follows, by which readers sort.
const PREFIX: &str = "events.out.tfevents.";
const SUFFIX: &str = ".bitnet-trainer";
/// `file_version` of the first event.
const VERSION: &[u8] = b"brain.Event:2";
/// Status of a session log: a run starts here.
const START: u64 = 1;

/// The event file of one start of a run.
#[derive(Debug)]
pub struct EventLog {
    path: PathBuf,
    file: File,
}

impl EventLog {
    /// Begins a file in the folder of a run that has taken `step` steps.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn begin(folder: &Path, step: u64) -> Result<Self> {
        let latest = event_files(folder)?
            .into_iter()
            .filter_map(|path| time_of(&path));
        let now = seconds() as u64;
        let time = latest.max().map_or(now, |latest| now.max(latest + 1));
        let path = folder.join(format!("{PREFIX}{time:010}{SUFFIX}"));
        let file = File::create_new(&path).map_err(Error::io(&path, "create"))?;
        let mut log = Self { path, file };
        let mut version = header(seconds(), 0);
        bytes_field(&mut version, 3, VERSION);
        log.write(&version)?;
        let mut start = header(seconds(), step + 1);
        let mut status = Vec::new();
        number_field(&mut status, 1, START);
        bytes_field(&mut start, 7, &status);
        log.write(&start)?;
        Ok(log)
    }

    /// Adds the figures of a step.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn push(&mut self, record: &Record) -> Result<()> {
        self.write(&scalars_event(seconds(), record.step, &scalars(record)))
    }

    fn write(&mut self, event: &[u8]) -> Result<()> {
        let written = self.file.write_all(&framed(event));
        written.map_err(Error::io(&self.path, "write"))
    }
}

/// Removes the event files of an earlier run.
///
/// # Errors
///
/// [`Error::Io`].
pub fn clear(folder: &Path) -> Result<()> {
    for path in event_files(folder)? {
        fs::remove_file(&path).map_err(Error::io(&path, "remove"))?;
    }
    Ok(())
}

fn event_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io(folder, "read"))? {
        let path = entry.map_err(Error::io(folder, "read"))?.path();
        if time_of(&path).is_some() {
            files.push(path);
        }
    }
    Ok(files)
}

/// The time in the name of a file that [`EventLog::begin`] made.
fn time_of(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?;
    let time = name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?;
    time.parse().ok()
}

fn seconds() -> f64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0.0, |since| since.as_secs_f64())
}

/// Names and values of what there is to draw.
fn scalars(record: &Record) -> Vec<(String, f64)> {
    let mut scalars = vec![
        ("loss/training", Some(record.loss)),
        ("loss/validation", record.val_loss),
        ("loss/validation bits per byte", record.val_bits_per_byte),
        ("run/learning rate", Some(record.lr)),
        ("run/gradient norm", Some(record.grad_norm)),
        ("run/tokens per second", Some(record.tokens_per_s)),
        ("run/flips", Some(record.flips)),
        ("run/quantisers", record.lambda),
        ("run/zero share", record.zero_share),
    ];
    if record.skipped && record.grad_norm == 0.0 {
        // There was nothing to predict.
        scalars[0].1 = None;
    }
    let of_run = scalars.into_iter();
    let of_run = of_run.filter_map(|(name, value)| Some((name.to_owned(), value?)));
    let tensors = record.tensors.iter().flatten();
    let of_tensors = tensors.flat_map(|(name, tensor)| {
        let parts = [
            ("gradient norm", Some(tensor.grad_norm)),
            ("scale", tensor.scale),
            ("zero share", tensor.zero_share),
        ];
        parts
            .into_iter()
            .filter_map(move |(part, value)| Some((format!("{part}/{name}"), value?)))
    });
    of_run.chain(of_tensors).collect()
}

/// An event with a summary of simple values.
fn scalars_event(time: f64, step: u64, scalars: &[(String, f64)]) -> Vec<u8> {
    let mut summary = Vec::new();
    for (name, value) in scalars {
        let mut entry = Vec::new();
        bytes_field(&mut entry, 1, name.as_bytes());
        entry.push(2 << 3 | 5);
        entry.extend((*value as f32).to_le_bytes());
        bytes_field(&mut summary, 1, &entry);
    }
    let mut event = header(time, step);
    bytes_field(&mut event, 5, &summary);
    event
}

/// Wall time and step of an event.
fn header(time: f64, step: u64) -> Vec<u8> {
    let mut event = vec![1 << 3 | 1];
    event.extend(time.to_le_bytes());
    number_field(&mut event, 2, step);
    event
}

fn number_field(message: &mut Vec<u8>, field: u8, value: u64) {
    message.push(field << 3);
    varint(message, value);
}

fn bytes_field(message: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    message.push(field << 3 | 2);
    varint(message, bytes.len() as u64);
    message.extend(bytes);
}

/// Seven bits a byte, the lowest first; the top bit says that more follow.
fn varint(message: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        message.push(value as u8 | 0x80);
        value >>= 7;
    }
    message.push(value as u8);
}

fn framed(event: &[u8]) -> Vec<u8> {
    let length = (event.len() as u64).to_le_bytes();
    let mut record = length.to_vec();
    record.extend(masked(crc32c(&length)).to_le_bytes());
    record.extend(event);
    record.extend(masked(crc32c(event)).to_le_bytes());
    record
}

/// As TFRecord stores a checksum, so that one of data that holds checksums is not degenerate.
const fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli, reflected), bit by bit: an event has some hundred bytes.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32| crc >> 1 ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
    let byte = |crc: u32, byte: &u8| (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc));
    !bytes.iter().fold(!0, byte)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::TensorRecord;
    use std::collections::BTreeMap;

    fn record(step: u64) -> Record {
        Record {
            step,
            loss: 2.5,
            lr: 1e-3,
            grad_norm: 1.25,
            tokens_per_s: 900.0,
            ..Record::default()
        }
    }

    /// The check value of the algorithm's catalogue entry, and the head that every event file of
    /// TensorFlow begins with: a first event of 24 bytes.
    #[test]
    fn checksums_are_those_of_the_format() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        let first = framed(&[0; 24]);
        assert_eq!(first[..12], *b"\x18\0\0\0\0\0\0\0\xa3\x7fK\"");
        let mut version = header(1.0, 0);
        bytes_field(&mut version, 3, VERSION);
        // TensorFlow leaves out a step of zero, two bytes.
        assert_eq!(version.len(), 24 + 2);
    }

    /// The bytes of an event, worked by hand from the definition of the messages.
    #[test]
    fn an_event_is_this_protocol_buffer() {
        let event = scalars_event(1.5, 300, &[("a/b".into(), 0.5)]);
        let expected = [
            &b"\x09"[..],
            &1.5f64.to_le_bytes(),
            b"\x10\xac\x02",
            b"\x2a\x0c\x0a\x0a\x0a\x03a/b\x15",
            &0.5f32.to_le_bytes(),
        ];
        assert_eq!(event, expected.concat());
    }

    #[test]
    fn every_start_begins_a_file_that_sorts_behind_the_others() {
        let folder = tempfile::tempdir().unwrap();
        for step in [0, 3, 3] {
            let mut log = EventLog::begin(folder.path(), step).unwrap();
            log.push(&record(step + 1)).unwrap();
        }
        let mut files = event_files(folder.path()).unwrap();
        files.sort();
        let starts = files.iter().map(|file| {
            let bytes = fs::read(file).unwrap();
            // The second record, behind the first of 26 bytes; its step behind the time.
            bytes[12 + 26 + 4 + 12 + 10]
        });
        assert!(starts.eq([1, 4, 4]));
        clear(folder.path()).unwrap();
        assert!(event_files(folder.path()).unwrap().is_empty());
    }

    #[test]
    fn tensors_are_drawn_where_there_are_some() {
        let tensor = TensorRecord {
            grad_norm: 0.5,
            scale: Some(0.02),
            zero_share: None,
        };
        let record = Record {
            val_loss: Some(2.0),
            tensors: Some(BTreeMap::from([("w".to_owned(), tensor)])),
            ..record(1)
        };
        let scalars = scalars(&record);
        let names: Vec<_> = scalars.iter().map(|(name, _)| &name[..]).collect();
        assert!(names.contains(&"loss/validation") && names.contains(&"scale/w"));
        assert!(!names.contains(&"zero share/w") && !names.contains(&"run/zero share"));
        assert_eq!(scalars.len(), 6 + 2);
    }
}

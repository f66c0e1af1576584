//! A checkpoint far larger than the memory a conversion may take.
#![cfg(target_os = "linux")]

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use bitnet_converter::names::checkpoint_tensors;
use bitnet_converter::{CheckpointConfig, config_json};
use bitnet_formats::{Preset, TensorClass};
use serde_json::{Map, json};

/// Most resident memory a conversion may ever take, in KiB.
const MOST_KIB: u64 = 300 << 10;
/// Files the weights are spread over.
const SHARDS: usize = 3;

/// The shape of BitNet-b1.58-2B-4T: packed codes in shards, 1.2 GB of random weights.
#[test]
#[ignore = "writes 2 GB and takes a minute"]
fn memory_does_not_grow_with_the_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = write_checkpoint(dir.path());
    for extra in [&["--no-self-test"][..], &[], &["--verify"]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bitnet-convert"));
        command
            .arg(dir.path())
            .arg(dir.path().join("out.btn"))
            .args(extra);
        let peak = peak_kib(&mut command);
        println!(
            "{extra:?}: {bytes} bytes, most resident memory {} MiB",
            peak >> 10
        );
        assert!(peak < MOST_KIB, "{peak} KiB");
    }
}

/// Runs a command to its end; the most resident memory it ever had, as the system counts it.
fn peak_kib(command: &mut Command) -> u64 {
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    loop {
        if let Some(exit) = child.try_wait().unwrap() {
            assert!(exit.success());
            return peak;
        }
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        peak = peak.max(kib.unwrap_or(0));
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Numbers that only have to look like weights.
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.0 ^ (self.0 >> 33)
    }
}

/// A tensor as it is stored.
struct Stored {
    name: String,
    dtype: &'static str,
    shape: Vec<usize>,
    bytes: usize,
}

/// Writes the checkpoint; returns the bytes of its weights.
fn write_checkpoint(dir: &Path) -> usize {
    let config = CheckpointConfig::packed(Preset::BitNet2b4t.config()).unwrap();
    let json = config.to_json("bfloat16");
    // The reader must see what the writer meant.
    let names = bitnet_converter::family::TensorNames::unknown();
    let read = config_json::CheckpointConfig::from_json(&json, names).unwrap();
    assert_eq!(read.model, config.model);
    fs::write(dir.join("config.json"), json.to_string()).unwrap();
    let tensors: Vec<Stored> = checkpoint_tensors(&config.model)
        .flat_map(|t| {
            let stored = |name, dtype, shape: Vec<usize>, width| Stored {
                bytes: width * shape.iter().product::<usize>(),
                name,
                dtype,
                shape,
            };
            match t.role.class() {
                TensorClass::Ternary => vec![
                    stored(t.name.clone(), "U8", vec![t.rows / 4, t.cols], 1),
                    stored(format!("{}_scale", t.name), "BF16", vec![1], 2),
                ],
                _ => vec![stored(t.name.clone(), "BF16", t.shape(), 2)],
            }
        })
        .collect();
    let mut map = Map::new();
    let mut random = Random(1);
    for (i, shard) in tensors.chunks(tensors.len().div_ceil(SHARDS)).enumerate() {
        let name = format!("model-{i}.safetensors");
        shard
            .iter()
            .for_each(|t| _ = map.insert(t.name.clone(), json!(name)));
        write_shard(&dir.join(&name), shard, &mut random);
    }
    let index = json!({ "weight_map": map });
    fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
    tensors.iter().map(|t| t.bytes).sum()
}

fn write_shard(path: &Path, tensors: &[Stored], random: &mut Random) {
    let mut header = Map::new();
    let mut start = 0;
    for t in tensors {
        let offsets = [start, start + t.bytes];
        header.insert(
            t.name.clone(),
            json!({"dtype": t.dtype, "shape": t.shape, "data_offsets": offsets}),
        );
        start += t.bytes;
    }
    let header = serde_json::Value::Object(header).to_string();
    let mut out = BufWriter::with_capacity(1 << 20, File::create(path).unwrap());
    out.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    out.write_all(header.as_bytes()).unwrap();
    // Four codes of two bits, none of them 3.
    let byte = |n: usize| (n % 3 + n / 3 % 3 * 4 + n / 9 % 3 * 16 + n / 27 % 3 * 64) as u8;
    let table: Vec<u8> = (0..256).map(|n| byte(n * 81 / 256)).collect();
    for t in tensors {
        let mut left = t.bytes;
        while left > 0 {
            let bits = random.bits().to_le_bytes();
            let piece = match t.dtype {
                "U8" => bits.map(|b| table[b as usize]),
                // Sizes around a fiftieth: an exponent of 2^-6, any sign and fraction.
                _ => {
                    let half = |b: u8| {
                        (0x3c80u16 | u16::from(b & 0x7f) | u16::from(b >> 7) << 15).to_le_bytes()
                    };
                    let [a, b, c, d] = [bits[0], bits[1], bits[2], bits[3]].map(half);
                    [a[0], a[1], b[0], b[1], c[0], c[1], d[0], d[1]]
                }
            };
            let n = left.min(piece.len());
            let piece = match t.shape.as_slice() {
                // A scale must be above zero.
                [1] => [0x80, 0x3f, 0, 0, 0, 0, 0, 0],
                _ => piece,
            };
            out.write_all(&piece[..n]).unwrap();
            left -= n;
        }
    }
    out.flush().unwrap();
}

//! `--weights fast`: the layout to copy to, by a short measurement.
//!
//! T2 needs a quarter more memory than T5 and less work. Which is faster depends on the machine: on
//! its cores, on how many of them share the memory, and on whether the weights stay in a cache. So
//! the first matrices of the model are held in both layouts and multiplied, as often as it takes.
//! The result of a run does not depend on the choice.

use TernaryLayout::{T2R16, T5R16};
use anyhow::{Result, bail};
use bitnet_formats::TensorSpec;
use bitnet_formats::ternary::GROUP_ROWS;
use bitnet_runtime::kernels::{Activations, CODE_PADDING, Store, TernaryGemm};
use bitnet_runtime::{
    Archive, Kernels, LoadOptions, TensorClass, TernaryLayout, TernaryView, WeightHold, repack,
    weight_plan,
};

use crate::timing::{Samples, together};
use crate::weight_memory::WeightMemory;
use crate::{machine, output};

/// T5 bytes of the matrices that are tried.
const SAMPLE_BYTES: usize = 8 << 20;
/// How often each layout is timed.
const REPETITIONS: usize = 5;
/// T2 must save at least this share of the time: it takes a quarter more memory.
const WORTHWHILE: f64 = 0.05;
/// What is read between timings, at most, so that the sample comes from memory.
const MOST_EVICTED: usize = 128 << 20;
/// Where the system does not tell the size of the largest cache.
const USUAL_CACHE: usize = 32 << 20;

/// Where weights go, and why.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) hold: WeightHold,
    pub(crate) reason: String,
}

/// Chooses for a run of these kernels on some threads.
pub(crate) fn choose(archive: &Archive<'_>, kernels: Kernels, threads: usize) -> Result<Choice> {
    let bytes = |layout| {
        let hold = WeightHold::Copy(layout);
        let options = LoadOptions {
            hold,
            ..LoadOptions::default()
        };
        weight_plan(archive, &options)
    };
    let room = machine::spare_memory().unwrap_or(usize::MAX);
    if let Some(choice) = without_room(bytes(T5R16)?, bytes(T2R16)?, room) {
        // What cannot be used in place is decoded, whether there seems to be room or not.
        return Ok(match choice.hold {
            WeightHold::InPlace => Choice {
                hold: WeightHold::smallest(archive),
                ..choice
            },
            _ => choice,
        });
    }
    let [t5, t2] = measure(archive, kernels, threads)?;
    let faster = match t2 < t5 * (1.0 - WORTHWHILE) {
        true => T2R16,
        false => T5R16,
    };
    Ok(Choice {
        hold: WeightHold::Copy(faster),
        reason: format!("measured: t2 takes {:.2} of the time of t5", t2 / t5),
    })
}

/// What remains where memory is short: the file itself, or the smaller copy.
fn without_room(t5_bytes: usize, t2_bytes: usize, room: usize) -> Option<Choice> {
    let (hold, needed) = match room {
        _ if t5_bytes > room => (WeightHold::InPlace, t5_bytes),
        _ if t2_bytes > room => (WeightHold::Copy(T5R16), t2_bytes),
        _ => return None,
    };
    let (needed, room) = (output::bytes(needed), output::bytes(room));
    Some(Choice {
        hold,
        reason: format!("more would need {needed}, and {room} can be spared"),
    })
}

/// Median seconds of the first matrices in T5 and in T2.
fn measure(archive: &Archive<'_>, kernels: Kernels, threads: usize) -> Result<[f64; 2]> {
    let specs = sample(archive);
    let mut t5 = packed(&specs, T5R16)?;
    let mut t2 = packed(&specs, T2R16)?;
    let t5 = t5_views(archive, &specs, &mut t5)?;
    let t2 = t2_views(&t5, &mut t2);
    let others = evicting(archive);
    let mut samples = [Samples::default(), Samples::default()];
    for _ in 0..REPETITIONS {
        for (matrices, samples) in [&t5, &t2].into_iter().zip(&mut samples) {
            std::hint::black_box(kernels.read(others, 0));
            samples.push(multiply(matrices, kernels, threads));
        }
    }
    Ok(samples.map(|samples| samples.median()))
}

/// The first matrices of the file.
fn sample(archive: &Archive<'_>) -> Vec<TensorSpec> {
    let mut bytes = 0;
    let specs = archive.tensors().map(|(spec, _)| spec);
    let ternary = specs.filter(|spec| spec.role.class() == TensorClass::Ternary);
    let few = ternary.take_while(|spec| {
        let enough = bytes >= SAMPLE_BYTES;
        bytes += T5R16.packed_bytes(spec.rows, spec.cols) as usize;
        !enough
    });
    few.collect()
}

/// Memory for some matrices in a layout.
fn packed(specs: &[TensorSpec], layout: TernaryLayout) -> Result<WeightMemory> {
    let bytes = specs.iter().map(|m| layout.packed_bytes(m.rows, m.cols));
    WeightMemory::zeroed(bytes.sum::<u64>() as usize)
}

/// Matrices of the file in T5, brought into that memory.
fn t5_views<'m>(
    archive: &Archive<'_>,
    specs: &[TensorSpec],
    mut memory: &'m mut [u8],
) -> Result<Vec<TernaryView<'m>>> {
    let bring = |spec: &TensorSpec| {
        let (role, layer) = (spec.role, spec.layer);
        let to = take(&mut memory, T5R16, (spec.rows, spec.cols));
        match (archive.ternary(role, layer), archive.packed(role, layer)) {
            (Some(from), _) => repack(&from, T5R16, to),
            (None, Some(packed)) => packed?.decode(to)?,
            (None, None) => bail!("{} is not ternary", role.name()),
        }
        Ok(TernaryView::new(T5R16, (spec.rows, spec.cols), 1.0, to).expect("taken to fit"))
    };
    specs.iter().map(bring).collect()
}

/// The same matrices in T2, packed into that memory.
fn t2_views<'m>(matrices: &[TernaryView<'_>], mut memory: &'m mut [u8]) -> Vec<TernaryView<'m>> {
    let pack = |from: &TernaryView<'_>| {
        let shape = (from.rows, from.cols);
        let to = take(&mut memory, T2R16, shape);
        repack(from, T2R16, to);
        TernaryView::new(T2R16, shape, from.scale, to).expect("taken to fit")
    };
    matrices.iter().map(pack).collect()
}

/// Takes memory for a matrix off the front.
fn take<'m>(
    memory: &mut &'m mut [u8],
    layout: TernaryLayout,
    shape: (usize, usize),
) -> &'m mut [u8] {
    let bytes = layout.packed_bytes(shape.0, shape.1) as usize;
    let (to, rest) = std::mem::take(memory).split_at_mut(bytes);
    *memory = rest;
    to
}

/// Memory that, read through, leaves nothing else in the caches; none if the model stays there.
fn evicting<'w>(archive: &Archive<'w>) -> &'w [u8] {
    let file = archive.bytes();
    let cache = machine::last_level_cache().unwrap_or(USUAL_CACHE);
    if file.len() < cache {
        return &[];
    }
    &file[..file.len().min(2 * cache).min(MOST_EVICTED)]
}

/// Seconds to multiply all matrices by one token.
fn multiply(matrices: &[TernaryView<'_>], kernels: Kernels, threads: usize) -> f64 {
    let widest = matrices.iter().map(|m| m.cols).max().unwrap_or(1);
    let tallest = matrices.iter().map(|m| m.rows).max().unwrap_or(1);
    let stride = widest.next_multiple_of(CODE_PADDING);
    let codes: Vec<i8> = (0..stride).map(|i| (i * 37 % 251) as u8 as i8).collect();
    together(threads, |thread| {
        let mut out = vec![0.0; tallest.next_multiple_of(GROUP_ROWS)];
        for weights in matrices {
            let cut = |thread| weights.n_groups() * thread / threads;
            let job = TernaryGemm {
                weights: *weights,
                groups: cut(thread)..cut(thread + 1),
                activations: Activations::new(&codes, stride),
                factors: &[1.0],
                store: Store::Set,
            };
            kernels.ternary_gemm(&job, &mut out[..weights.rows]);
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_memory_decides() {
        let hold = |room| without_room(1_600, 2_000, room).map(|choice| choice.hold);
        assert_eq!(hold(2_000), None);
        assert_eq!(hold(1_999), Some(WeightHold::Copy(T5R16)));
        assert_eq!(hold(1_600), Some(WeightHold::Copy(T5R16)));
        assert_eq!(hold(1_599), Some(WeightHold::InPlace));
        let reason = without_room(1_600, 2_000, 1_024).unwrap().reason;
        assert_eq!(reason, "more would need 1.6 KiB, and 1.0 KiB can be spared");
    }
}

//! `--prune-dead`: feed-forward neurons that are always zero.
//!
//! A neuron whose row of gate or of up holds zeros alone gives `activation(gate) * up = 0` for every
//! input: both activations take 0 to 0. Taking it out of gate, up, down and the gains between them
//! changes no output, and no bit of one: a zero adds nothing to a sum of squares, to a maximum, or to a
//! product. Two things must be kept. Norms over the neurons divide by as many as there were
//! ([`ModelConfig::pruned_ffn`]). And sums have sixteen lanes, by index mod 16 (NUMERICS.md): those that
//! stay must stay in their lane, in their order; where lanes come out uneven, a few dead ones stay too.

use bitnet_formats::{Dtype, FfnAxis, ModelConfig, NormKind, TensorRole, TensorSpec};

use crate::error::ConvertError;
use crate::groups::{CodeRows, TernaryGroups};
use crate::rows::WeightRows;
use crate::source::Source;

/// Lanes of a feature sum.
const LANES: usize = 16;

/// A source without its dead neurons.
pub struct PrunedSource<'s> {
    inner: &'s dyn Source,
    config: ModelConfig,
    /// By block and new place: the old place.
    kept: Vec<Vec<usize>>,
}

impl<'s> PrunedSource<'s> {
    /// Reads gate and up of every block.
    ///
    /// # Errors
    ///
    /// They cannot be read, or the model's norms subtract a mean, to which zeros count.
    pub fn new(inner: &'s dyn Source) -> Result<Self, ConvertError> {
        let config = *inner.config();
        if config.norms.kind != NormKind::Rms {
            let reason = "its norms subtract the mean, which dead neurons are part of";
            return Err(ConvertError::CannotPrune { reason });
        }
        if config.pruned_ffn {
            let reason = "it is pruned already";
            return Err(ConvertError::CannotPrune { reason });
        }
        let kept = (0..config.n_layers)
            .map(|layer| Ok(keep(&dead_neurons(inner, layer)?)))
            .collect::<Result<Vec<_>, ConvertError>>()?;
        let pruned_ffn = kept
            .iter()
            .any(|kept| kept.len() < config.intermediate_size);
        Ok(Self {
            inner,
            config: ModelConfig {
                pruned_ffn,
                ..config
            },
            kept,
        })
    }

    /// The tensor before it lost anything, and which of its neurons are left.
    fn whole(&self, spec: &TensorSpec) -> (TensorSpec, Option<(FfnAxis, &[usize])>) {
        let axis = spec.role.ffn_axis().zip(spec.layer);
        let kept = axis.map(|(axis, layer)| (axis, &self.kept[layer][..]));
        (spec.with_ffn_width(self.config.intermediate_size), kept)
    }
}

/// True for every neuron whose row of gate or up is zero.
pub(crate) fn dead_neurons(source: &dyn Source, layer: usize) -> Result<Vec<bool>, ConvertError> {
    let mut dead = vec![false; source.config().intermediate_size];
    for role in [TensorRole::Gate, TensorRole::Up] {
        let find = |spec: &TensorSpec| (spec.role, spec.layer) == (role, Some(layer));
        let Some(spec) = source.config().tensors().find(find) else {
            continue;
        };
        let mut groups = source.ternary(&spec)?;
        let mut row = 0;
        while let Some(codes) = groups.next_group()? {
            for codes in codes.chunks_exact(spec.cols) {
                dead[row] |= codes.iter().all(|code| *code == 0);
                row += 1;
            }
        }
    }
    Ok(dead)
}

/// The old places of the neurons that stay, by new place. Every new place has the lane of its old one,
/// and lanes keep their order.
fn keep(dead: &[bool]) -> Vec<usize> {
    let lane = |lane: usize| (lane..dead.len()).step_by(LANES);
    let alive = |i: &usize| !dead[*i];
    // The last new place that any lane needs.
    let last = (0..LANES)
        .filter_map(|l| Some((lane(l).filter(alive).count().checked_sub(1)?) * LANES + l))
        .max();
    let width = last.map_or(1, |last| last + 1);
    let mut kept = vec![0; width];
    for l in 0..LANES.min(width) {
        let places = (l..width).step_by(LANES);
        let spare = places.len() - lane(l).filter(alive).count();
        let fillers: Vec<usize> = lane(l).filter(|i| dead[*i]).take(spare).collect();
        let stay = lane(l).filter(|i| alive(i) || fillers.contains(i));
        places.zip(stay).for_each(|(place, old)| kept[place] = old);
    }
    kept
}

impl Source for PrunedSource<'_> {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn ternary(&self, spec: &TensorSpec) -> Result<TernaryGroups<'_>, ConvertError> {
        let (whole, kept) = self.whole(spec);
        let mut groups = self.inner.ternary(&whole)?;
        let Some((axis, kept)) = kept else {
            return Ok(groups);
        };
        let scale = groups.scale();
        let rows: Box<dyn CodeRows + '_> = match axis {
            FfnAxis::Rows => {
                let mut codes = Vec::with_capacity(whole.rows * whole.cols);
                while let Some(group) = groups.next_group()? {
                    codes.extend_from_slice(group);
                }
                let cols = whole.cols;
                Box::new(SomeRows { codes, cols, kept })
            }
            FfnAxis::Cols => Box::new(SomeCols {
                groups,
                cols: whole.cols,
                kept,
            }),
        };
        Ok(TernaryGroups::as_stored(rows, scale, spec))
    }

    fn rows(&self, spec: &TensorSpec) -> Result<Box<dyn WeightRows + '_>, ConvertError> {
        let (whole, kept) = self.whole(spec);
        let rows = self.inner.rows(&whole)?;
        Ok(match kept {
            Some((_, kept)) => Box::new(SomeElements {
                rows,
                width: whole.cols,
                kept,
            }),
            None => rows,
        })
    }

    fn ffn_widths(&self) -> Vec<usize> {
        self.kept.iter().map(Vec::len).collect()
    }

    fn inv_freq(&self, n: usize) -> Vec<f32> {
        self.inner.inv_freq(n)
    }
}

/// Some rows of a matrix. The order of a matrix's rows changes, so all of them are held.
struct SomeRows<'k> {
    codes: Vec<i8>,
    cols: usize,
    kept: &'k [usize],
}

impl CodeRows for SomeRows<'_> {
    fn read(&mut self, first: usize, out: &mut [i8]) -> Result<(), ConvertError> {
        for (out, old) in out.chunks_exact_mut(self.cols).zip(&self.kept[first..]) {
            out.copy_from_slice(&self.codes[old * self.cols..][..self.cols]);
        }
        Ok(())
    }
}

/// Some columns of a matrix that is read front to back.
struct SomeCols<'c, 'k> {
    groups: TernaryGroups<'c>,
    cols: usize,
    kept: &'k [usize],
}

impl CodeRows for SomeCols<'_, '_> {
    fn read(&mut self, _first: usize, out: &mut [i8]) -> Result<(), ConvertError> {
        let Some(codes) = self.groups.next_group()? else {
            return Ok(());
        };
        let rows = codes.chunks_exact(self.cols);
        for (out, row) in out.chunks_exact_mut(self.kept.len()).zip(rows) {
            let kept = self.kept.iter().map(|old| row[*old]);
            out.iter_mut().zip(kept).for_each(|(out, code)| *out = code);
        }
        Ok(())
    }
}

/// Some elements of a vector.
struct SomeElements<'c, 'k> {
    rows: Box<dyn WeightRows + 'c>,
    width: usize,
    kept: &'k [usize],
}

impl WeightRows for SomeElements<'_, '_> {
    fn dtype(&self) -> Dtype {
        self.rows.dtype()
    }

    fn read(&mut self, first: usize, out: &mut [f32]) -> Result<(), ConvertError> {
        let mut whole = vec![0.0; self.width];
        self.rows.read(first, &mut whole)?;
        let kept = self.kept.iter().map(|old| whole[*old]);
        out.iter_mut().zip(kept).for_each(|(out, v)| *out = v);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against the rule itself, over many patterns.
    #[test]
    fn the_living_keep_lane_and_order() {
        let mut state = 7u64;
        let mut next = |n: usize| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) as usize % n
        };
        for _ in 0..500 {
            let (n, share) = (1 + next(200), 1 + next(10));
            let dead: Vec<bool> = (0..n).map(|_| next(10) < share).collect();
            let kept = keep(&dead);
            assert!(!kept.is_empty() && kept.len() <= n);
            for lane in 0..LANES {
                let of_lane: Vec<_> = kept.iter().skip(lane).step_by(LANES).copied().collect();
                assert!(of_lane.iter().all(|old| old % LANES == lane));
                assert!(of_lane.is_sorted_by(|a, b| a < b));
                let living = (lane..n).step_by(LANES).filter(|i| !dead[*i]);
                assert!(living.clone().all(|i| of_lane.contains(&i)), "{dead:?}");
            }
            if dead.iter().all(|dead| !dead) {
                assert_eq!(kept, (0..n).collect::<Vec<_>>());
            }
        }
        assert_eq!(keep(&[true; 40]), [0]);
        assert_eq!(keep(&[true, false, true]), [0, 1]);
    }
}

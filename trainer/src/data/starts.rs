//! Where the windows of a batch begin.

use crate::order::Permutation;
use crate::rng::{Rng, Stream};
use crate::settings::{OrderKind, TrainSettings};

/// Where in `len` tokens the windows of a micro-batch begin: a function of seed and index alone, so
/// that a run that is resumed goes on where it was.
pub(super) fn starts(settings: &TrainSettings, len: usize, index: u64) -> Vec<usize> {
    let context = settings.context;
    let drawn = |index| {
        let mut rng = Rng::new(settings.seed, Stream::Batch, index);
        let draw = |_| rng.below(len - context);
        (0..settings.batch).map(draw).collect()
    };
    match settings.order {
        OrderKind::Random => drawn(index),
        OrderKind::Repeat => drawn(0),
        OrderKind::Shuffled => {
            let first = index * settings.batch as u64;
            let place = |i| shuffled_start(settings.seed, first + i, len, context);
            (0..settings.batch as u64).map(place).collect()
        }
    }
}

/// Window number `place` of a run that takes every window once an epoch. Windows lie end to end
/// behind a shift that differs by epoch.
fn shuffled_start(seed: u64, place: u64, len: usize, context: usize) -> usize {
    let windows = ((len - 1) / context) as u64;
    let (epoch, place) = (place / windows, place % windows);
    let slack = (len - 1) % context;
    let shift = Rng::new(seed, Stream::Batch, epoch).below(slack + 1);
    let window = Permutation::new(seed, epoch, windows).at(place);
    shift + window as usize * context
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shuffled_epoch_predicts_every_token_once() {
        for (len, context) in [(81, 8), (87, 8), (9, 8), (400, 7)] {
            let windows = (len - 1) / context;
            for epoch in 0..3 {
                let places = (epoch * windows..(epoch + 1) * windows).map(|i| i as u64);
                let starts = places.map(|i| shuffled_start(1, i, len, context));
                let mut starts: Vec<_> = starts.collect();
                starts.sort_unstable();
                assert!(starts.windows(2).all(|w| w[0] + context == w[1]));
                assert!(starts[windows - 1] + context < len);
            }
        }
    }
}

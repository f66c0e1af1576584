//! Repeated timings and what is said of them.

use std::sync::Barrier;
use std::thread;
use std::time::Instant;

/// Seconds of the same work, repeated.
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    pub(crate) fn push(&mut self, seconds: f64) {
        let at = self.0.partition_point(|s| *s < seconds);
        self.0.insert(at, seconds);
    }

    /// The middle; of an even number, the mean of the middle two. NaN of none.
    pub(crate) fn median(&self) -> f64 {
        let n = self.0.len();
        match n {
            0 => f64::NAN,
            _ => (self.0[(n - 1) / 2] + self.0[n / 2]) / 2.0,
        }
    }

    /// The best time. NaN of none.
    pub(crate) fn min(&self) -> f64 {
        self.0.first().copied().unwrap_or(f64::NAN)
    }

    /// The worst time. NaN of none.
    pub(crate) fn max(&self) -> f64 {
        self.0.last().copied().unwrap_or(f64::NAN)
    }

    /// What `amount` of something comes to per second.
    pub(crate) fn rate(&self, amount: f64) -> Rate {
        Rate {
            median: amount / self.median(),
            min: amount / self.max(),
            max: amount / self.min(),
        }
    }
}

/// Something per second, over repetitions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

/// Lets `work` run on this thread and `threads - 1` others, each with its number, released together.
/// Returns the seconds of the slowest.
pub(crate) fn together(threads: usize, work: impl Fn(usize) + Sync) -> f64 {
    let start_line = Barrier::new(threads);
    let timed = |thread| {
        if threads > 1 {
            start_line.wait();
        }
        let start = Instant::now();
        work(thread);
        start.elapsed().as_secs_f64()
    };
    thread::scope(|scope| {
        let others: Vec<_> = (1..threads)
            .map(|thread| scope.spawn(move || timed(thread)))
            .collect();
        let mine = timed(0);
        let others = others
            .into_iter()
            .map(|other| other.join().expect("no panic"));
        others.fold(mine, f64::max)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn the_middle_of_samples() {
        let mut samples = Samples::default();
        assert!(samples.median().is_nan());
        for (seconds, median) in [(4.0, 4.0), (1.0, 2.5), (2.0, 2.0), (8.0, 3.0)] {
            samples.push(seconds);
            assert_eq!(samples.median(), median);
        }
        let rate = samples.rate(24.0);
        assert_eq!((rate.median, rate.min, rate.max), (8.0, 3.0, 24.0));
    }

    #[test]
    fn every_thread_works_once() {
        for threads in 1..5 {
            let seen = AtomicUsize::new(0);
            let seconds = together(threads, |thread| {
                seen.fetch_add(1 << (8 * thread), Ordering::Relaxed);
            });
            let expected = (0..threads).map(|t| 1 << (8 * t)).sum::<usize>();
            assert_eq!(seen.into_inner(), expected);
            assert!(seconds >= 0.0);
        }
    }
}

//! What the steps so far say about the next: spikes, the best evaluation, when to stop.
//!
//! All of it is read from the records of `metrics.jsonl`, which a resumed run has as well.

use crate::metrics::Record;

/// Steps whose gradient norms are compared with the next.
const SPIKE_WINDOW: usize = 32;
/// Steps without which nothing can be said about the next.
const SPIKE_MIN: usize = 16;
/// After so many steps in a row that were left out the next is taken: the level has changed.
const SKIPS_IN_A_ROW: usize = 3;

/// The gradient norm above which the next step is a spike: `factor` times the median of the last
/// steps that were taken. `None` where there is no limit yet, or `factor` is 0.
///
/// Gradients of a network with quantisers are of another size than those of one without, so steps
/// before and after they are on are not compared.
#[must_use]
pub fn norm_limit(records: &[Record], factor: f64, quantized: bool) -> Option<f64> {
    let alike = |r: &&Record| r.lambda.is_none() == quantized;
    let alike = || records.iter().rev().take_while(alike);
    let skipped = alike().take_while(|r| r.skipped).count();
    if factor == 0.0 || skipped >= SKIPS_IN_A_ROW {
        return None;
    }
    let taken = alike().filter(|record| !record.skipped);
    let mut norms: Vec<f64> = taken.map(|r| r.grad_norm).take(SPIKE_WINDOW).collect();
    if norms.len() < SPIKE_MIN {
        return None;
    }
    norms.sort_by(f64::total_cmp);
    Some(factor * norms[norms.len() / 2])
}

/// The evaluation with the lowest loss, and how many came after it. Those of a network whose quantisers
/// are not yet on say nothing of the one that is to be.
#[must_use]
pub fn best(records: &[Record]) -> Option<(&Record, u64)> {
    let counts = |record: &&Record| record.val_loss.is_some() && record.lambda.is_none();
    let evaluations = records.iter().filter(counts);
    evaluations.fold(None, |best, record| match best {
        Some((best, after)) if best_loss(best) <= best_loss(record) => Some((best, after + 1)),
        _ => Some((record, 0)),
    })
}

fn best_loss(record: &Record) -> f64 {
    record.val_loss.unwrap_or(f64::INFINITY)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(step: u64, grad_norm: f64, skipped: bool) -> Record {
        Record {
            step,
            grad_norm,
            skipped,
            ..Record::default()
        }
    }

    #[test]
    fn the_limit_follows_the_median_of_steps_taken() {
        let mut records: Vec<_> = (0..15).map(|i| record(i, 2.0, false)).collect();
        assert_eq!(norm_limit(&records, 5.0, true), None);
        records.push(record(15, 900.0, false));
        assert_eq!(norm_limit(&records, 5.0, true), Some(10.0));
        assert_eq!(norm_limit(&records, 0.0, true), None);
        records.extend((16..18).map(|i| record(i, 1e6, true)));
        assert_eq!(norm_limit(&records, 5.0, true), Some(10.0));
        records.push(record(18, 1e6, true));
        assert_eq!(norm_limit(&records, 5.0, true), None);
        records.push(record(19, 1e6, false));
        assert_eq!(norm_limit(&records, 5.0, true), Some(10.0));
        // Those of a network that is not yet quantised are no measure.
        assert_eq!(norm_limit(&records, 5.0, false), None);
        records[10].lambda = Some(0.5);
        assert_eq!(norm_limit(&records, 5.0, true), None);
    }

    #[test]
    fn the_best_evaluation_is_the_first_of_the_lowest() {
        let losses = [None, Some(3.0), Some(2.0), None, Some(2.0), Some(2.5)];
        let records: Vec<_> = (0..)
            .zip(losses)
            .map(|(step, val_loss)| Record {
                step,
                val_loss,
                ..Record::default()
            })
            .collect();
        let found = best(&records).map(|(record, after)| (record.step, after));
        assert_eq!(found, Some((2, 2)));
        assert!(best(&records[..1]).is_none());
        let not_yet = Record {
            val_loss: Some(1.0),
            lambda: Some(0.5),
            ..Record::default()
        };
        let all = [&[not_yet], &records[..]].concat();
        assert_eq!(best(&all).unwrap().0.step, 2);
    }
}

//! Learning rate and weight decay by step.

use serde::{Deserialize, Serialize};

/// Shape of the learning rate after warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScheduleKind {
    /// A straight line from `lr` to `min_lr`.
    Linear,
    /// Half a cosine from `lr` to `min_lr`.
    Cosine,
    /// The BitNet recipe: a line from `lr` towards zero for the first half, a lower line from
    /// `stage2_lr` for the second, so that the rate drops at half-time; no weight decay after it.
    TwoStage,
}

/// Learning rate and weight decay of each step of a run.
#[derive(Clone, Copy, Debug)]
pub struct LrSchedule {
    /// Shape after warm-up.
    pub kind: ScheduleKind,
    /// Peak rate.
    pub lr: f64,
    /// Floor of the rate after warm-up.
    pub min_lr: f64,
    /// Where the line of the second stage would start; `two-stage` only.
    pub stage2_lr: f64,
    /// Steps over which the rate rises from zero.
    pub warmup: u64,
    /// Steps of the run.
    pub steps: u64,
    /// Weight decay, where there is any.
    pub weight_decay: f64,
}

impl LrSchedule {
    /// Rate of step `step`, counted from 0.
    #[must_use]
    pub fn lr(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.lr * (step + 1) as f64 / (self.warmup + 1) as f64;
        }
        let p = self.progress(step);
        match self.kind {
            ScheduleKind::Linear => self.min_lr + (self.lr - self.min_lr) * (1.0 - p),
            ScheduleKind::Cosine => {
                let half_wave = 0.5 * (1.0 + (std::f64::consts::PI * p).cos());
                self.min_lr + (self.lr - self.min_lr) * half_wave
            }
            ScheduleKind::TwoStage => {
                let peak = if p < 0.5 { self.lr } else { self.stage2_lr };
                (peak * (1.0 - p)).max(self.min_lr)
            }
        }
    }

    /// Weight decay of step `step`.
    #[must_use]
    pub fn weight_decay(&self, step: u64) -> f64 {
        let second_stage = self.kind == ScheduleKind::TwoStage && self.progress(step) >= 0.5;
        if second_stage { 0.0 } else { self.weight_decay }
    }

    /// 0 at the end of warm-up, 1 after the last step.
    fn progress(&self, step: u64) -> f64 {
        let length = self.steps.saturating_sub(self.warmup).max(1);
        (step.saturating_sub(self.warmup) as f64 / length as f64).min(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(kind: ScheduleKind) -> LrSchedule {
        LrSchedule {
            kind,
            lr: 1e-3,
            min_lr: 1e-4,
            stage2_lr: 6e-4,
            warmup: 100,
            steps: 1100,
            weight_decay: 0.1,
        }
    }

    #[test]
    fn warm_up_rises_to_the_peak() {
        for kind in [
            ScheduleKind::Linear,
            ScheduleKind::Cosine,
            ScheduleKind::TwoStage,
        ] {
            let s = schedule(kind);
            assert!(s.lr(0) > 0.0 && s.lr(0) < 2e-5, "{kind:?}");
            assert!((0..100).all(|i| s.lr(i) < s.lr(i + 1)), "{kind:?}");
            assert_eq!(s.lr(100), 1e-3, "{kind:?}");
        }
    }

    #[test]
    fn each_shape_has_its_midpoint_and_end() {
        let near = |a: f64, b: f64| (a - b).abs() < 1e-9;
        for kind in [ScheduleKind::Linear, ScheduleKind::Cosine] {
            let s = schedule(kind);
            assert!(near(s.lr(600), 5.5e-4) && near(s.lr(1100), 1e-4));
            assert_eq!(s.weight_decay(1099), 0.1);
        }
        assert!(schedule(ScheduleKind::Cosine).lr(350) > schedule(ScheduleKind::Linear).lr(350));
    }

    #[test]
    fn two_stages_drop_at_half_time() {
        let s = schedule(ScheduleKind::TwoStage);
        assert!((s.lr(599) - 5.01e-4).abs() < 1e-9);
        assert!((s.lr(600) - 3e-4).abs() < 1e-9);
        assert_eq!(s.lr(1100), 1e-4);
        assert_eq!((s.weight_decay(599), s.weight_decay(600)), (0.1, 0.0));
    }
}

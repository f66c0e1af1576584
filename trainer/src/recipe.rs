//! Recipes by name: learning rate, schedule and optimiser, apart from the shape.

use crate::error::{Error, Result};
use crate::keys::nearest;
use crate::schedule::ScheduleKind;
use crate::settings::TrainSettings;

/// A recipe. Steps, batch and context are not part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recipe {
    /// 2e-4, falling in a line to zero: careful at 700 M parameters.
    Mission,
    /// The published recipe of BitNet b1.58 at 700 M: 1.5e-3, from half-time on the line of 1e-3, and
    /// no weight decay from then on.
    B158,
    /// 1e-3 by a cosine to a tenth, for models of some million parameters and small batches.
    Tiny,
}

impl Recipe {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Mission, Self::B158, Self::Tiny];

    /// What `--recipe` takes.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mission => "mission",
            Self::B158 => "b158",
            Self::Tiny => "tiny",
        }
    }

    /// The recipe of this name.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] naming the nearest.
    pub fn from_name(name: &str) -> Result<Self> {
        let names = Self::ALL.map(Self::name);
        let found = Self::ALL.into_iter().find(|recipe| recipe.name() == name);
        found.ok_or_else(|| {
            Error::Usage(format!(
                "--recipe {name}: there is no such recipe; the nearest is {}, all are {}",
                nearest(name, names.into_iter()),
                names.join(", ")
            ))
        })
    }

    /// Sets what the recipe says: rates, schedule, betas, decay, clipping.
    pub const fn apply(self, train: &mut TrainSettings) {
        let (lr, stage2_lr, min_lr, schedule, beta2) = match self {
            Self::Mission => (2e-4, 2e-4, 0.0, ScheduleKind::Linear, 0.95),
            Self::B158 => (1.5e-3, 1e-3, 0.0, ScheduleKind::TwoStage, 0.95),
            Self::Tiny => (1e-3, 1e-3, 1e-4, ScheduleKind::Cosine, 0.99),
        };
        train.lr = lr;
        train.stage2_lr = stage2_lr;
        train.min_lr = min_lr;
        train.schedule = schedule;
        train.beta1 = 0.9;
        train.beta2 = beta2;
        train.weight_decay = 0.1;
        train.clip = 1.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Settings;
    use bitnet_formats::Preset;

    #[test]
    fn recipes_are_valid_and_named() {
        for recipe in Recipe::ALL {
            let mut settings = Settings::preset(Preset::Nano);
            recipe.apply(&mut settings.train);
            settings.validate().unwrap();
            assert_eq!(Recipe::from_name(recipe.name()).unwrap(), recipe);
        }
        let error = Recipe::from_name("b185").unwrap_err().to_string();
        assert!(error.contains("the nearest is b158"), "{error}");
    }

    /// The reference run: 2e-4 in a line to nothing, warmed up over 375 steps where there are enough.
    #[test]
    fn mission_is_the_reference_run() {
        let mut settings = Settings::preset(Preset::BitNet700m);
        Recipe::Mission.apply(&mut settings.train);
        let train = &settings.train;
        assert_eq!((train.steps, train.warmup), (100_000, 375));
        assert_eq!((train.beta1, train.beta2), (0.9, 0.95));
        let schedule = train.lr_schedule();
        assert_eq!(
            (schedule.lr(375), schedule.weight_decay(99_999)),
            (2e-4, 0.1)
        );
        assert!((schedule.lr(50_187) - 1e-4).abs() < 2e-9);
        assert!(schedule.lr(99_999) < 1e-8);
    }

    /// The two lines of the published recipe, and the decay that ends with the first.
    #[test]
    fn b158_has_two_stages() {
        let mut train = Settings::preset(Preset::Nano).train;
        Recipe::B158.apply(&mut train);
        (train.steps, train.warmup) = (10_375, 375);
        let schedule = train.lr_schedule();
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-9, "{a} {b}");
        near(schedule.lr(375), 1.5e-3);
        near(schedule.lr(5_374), 1.5e-3 * 0.5001);
        near(schedule.lr(5_375), 1e-3 * 0.5);
        assert_eq!(schedule.weight_decay(5_374), 0.1);
        assert_eq!(schedule.weight_decay(5_375), 0.0);
    }
}

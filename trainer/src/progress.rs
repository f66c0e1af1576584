//! What a run says on stderr while it goes: a bar on a terminal, plain lines elsewhere.

use std::io::{IsTerminal, stderr};

use indicatif::{ProgressBar, ProgressStyle};

use crate::corpus::Tally;
use crate::data::TokenDataset;
use crate::memory::{MemoryEstimate, mib};
use crate::metrics::Record;
use crate::settings::Settings;
use crate::system;

/// Plain lines per run, evaluations apart.
const LINES: u64 = 40;

/// Progress of a run, on stderr.
#[derive(Debug)]
pub struct Progress {
    quiet: bool,
    bar: Option<ProgressBar>,
    steps: u64,
    /// Mean seconds of a step, recent ones weighing more.
    seconds: Option<f64>,
}

impl Progress {
    /// For people.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            quiet: false,
            bar: None,
            steps: 0,
            seconds: None,
        }
    }

    /// For tests and callers with a report of their own.
    #[must_use]
    pub const fn silent() -> Self {
        let mut progress = Self::new();
        progress.quiet = true;
        progress
    }

    pub(crate) fn begin(
        &mut self,
        settings: &Settings,
        step: u64,
        data: &TokenDataset,
        Tally { documents, empty }: Tally,
    ) {
        self.steps = settings.train.steps;
        if documents > 1 || empty > 0 {
            self.say(&format!(
                "{documents} documents; {empty} empty ones left out"
            ));
        }
        self.say(&format!(
            "{} parameters, vocabulary {}; {} training and {} validation tokens; {} tokens a step",
            settings.model.parameter_count(),
            settings.model.vocab_size,
            data.train.tokens.len(),
            data.validation.tokens.len(),
            settings.train.tokens_per_step(),
        ));
        if step > 0 {
            self.say(&format!("going on from step {step} of {}", self.steps));
        }
        if !self.quiet && stderr().is_terminal() {
            let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}");
            let bar = ProgressBar::new(self.steps).with_position(step);
            self.bar = Some(match style {
                Ok(style) => bar.with_style(style),
                Err(_) => bar,
            });
        }
    }

    pub(crate) fn step(&mut self, record: &Record, seconds: f64) {
        let mean = self
            .seconds
            .map_or(seconds, |mean| 0.95 * mean + 0.05 * seconds);
        self.seconds = Some(mean);
        let left = (self.steps - record.step) as f64 * mean;
        let status = format!(
            "loss {:.4}  {:.0} tokens/s  {} left",
            record.loss,
            record.tokens_per_s,
            duration(left)
        );
        match &self.bar {
            Some(bar) => {
                bar.set_position(record.step);
                bar.set_message(status);
            }
            None if record.step.is_multiple_of((self.steps / LINES).max(1)) => {
                self.say(&format!("step {}/{}  {status}", record.step, self.steps));
            }
            None => {}
        }
        self.evaluation(record);
    }

    fn evaluation(&self, record: &Record) {
        if record.skipped && record.grad_norm == 0.0 {
            self.say(&format!(
                "step {}  left out: its windows hold no answer of an assistant",
                record.step
            ));
        } else if record.skipped {
            self.say(&format!(
                "step {}  left out: the gradient's norm is {:.1}, far above those before",
                record.step, record.grad_norm
            ));
        }
        if let (Some(nats), Some(bits)) = (record.val_loss, record.val_bits_per_byte) {
            self.say(&format!(
                "step {}  validation {nats:.4} nats per token, {bits:.4} bits per byte{}",
                record.step,
                match record.lambda {
                    Some(_) => ", quantisers not yet on",
                    None => "",
                }
            ));
        }
        if let Some(sample) = &record.sample {
            self.say(&format!(
                "  | {}",
                sample.trim_end().replace('\n', "\n  | ")
            ));
        }
    }

    /// What the run held at most, where the system says so, and what was announced.
    pub(crate) fn memory(&self, estimate: &MemoryEstimate) {
        if let Some(peak) = system::peak_resident_bytes() {
            let (peak, announced) = (mib(peak), mib(estimate.total_bytes()));
            self.say(&format!("memory {peak} at most, {announced} announced"));
        }
    }

    pub(crate) fn end(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{line}")),
            None if self.quiet => {}
            None => eprintln!("{line}"),
        }
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

/// `45s`, `3m20s`, `2h05m`.
fn duration(seconds: f64) -> String {
    let s = seconds.round() as u64;
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m{:02}s", s / 60, s % 60),
        _ => format!("{}h{:02}m", s / 3600, s % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_well() {
        let cases = [
            (0.4, "0s"),
            (59.4, "59s"),
            (60.0, "1m00s"),
            (7500.0, "2h05m"),
        ];
        for (seconds, text) in cases {
            assert_eq!(duration(seconds), text);
        }
    }
}

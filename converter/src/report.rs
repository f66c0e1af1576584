//! What a conversion did, by kind of tensor.

use std::fmt;

use bitnet_formats::{Dtype, TensorRole, TensorSpec};
use serde_json::{Value, json};

/// What became of the tensors of one role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// Their role.
    pub role: TensorRole,
    /// How they are stored.
    pub dtype: Dtype,
    /// How many there are.
    pub tensors: u64,
    /// Their weights together.
    pub weights: u64,
    /// Bytes they take, padding of rows and columns included.
    pub bytes: u64,
    /// How many weights are -1, 0 and 1; ternary tensors only.
    pub counts: Option<[u64; 3]>,
}

/// The kinds in file order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    kinds: Vec<Kind>,
    dead_neurons: u64,
    neurons: u64,
}

impl Report {
    /// Adds the feed-forward neurons of a block, of which some are zero whatever the input.
    pub fn add_neurons(&mut self, dead: u64, all: u64) {
        self.dead_neurons += dead;
        self.neurons += all;
    }

    /// Feed-forward neurons that are zero whatever the input, and all of them.
    #[must_use]
    pub const fn dead_neurons(&self) -> (u64, u64) {
        (self.dead_neurons, self.neurons)
    }

    /// Adds a tensor of so many bytes.
    pub fn add(&mut self, spec: &TensorSpec, dtype: Dtype, bytes: u64, counts: Option<[u64; 3]>) {
        let place = self.kinds.iter().position(|kind| kind.role == spec.role);
        let place = place.unwrap_or_else(|| {
            self.kinds.push(Kind::empty(spec.role, dtype));
            self.kinds.len() - 1
        });
        let kind = &mut self.kinds[place];
        kind.tensors += 1;
        kind.weights += spec.rows as u64 * spec.cols as u64;
        kind.bytes += bytes;
        if let Some(counts) = counts {
            kind.counts = Some(sum(kind.counts.unwrap_or_default(), counts));
        }
    }

    /// The kinds.
    #[must_use]
    pub fn kinds(&self) -> &[Kind] {
        &self.kinds
    }

    /// All ternary tensors, and all tensors.
    fn totals(&self) -> [(&'static str, Total); 2] {
        let ternary = |kind: &&Kind| kind.counts.is_some();
        [
            ("all ternary", Total::of(self.kinds.iter().filter(ternary))),
            ("all", Total::of(self.kinds.iter())),
        ]
    }

    /// The report for scripts.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let kinds = self
            .kinds
            .iter()
            .copied()
            .map(Kind::to_json)
            .collect::<Vec<_>>();
        let [(_, ternary), (_, all)] = self.totals();
        json!({
            "kinds": kinds, "ternary": ternary.to_json(), "total": all.to_json(),
            "dead_neurons": self.dead_neurons, "neurons": self.neurons,
        })
    }
}

impl Kind {
    const fn empty(role: TensorRole, dtype: Dtype) -> Self {
        Self {
            role,
            dtype,
            tensors: 0,
            weights: 0,
            bytes: 0,
            counts: None,
        }
    }

    fn total(&self) -> Total {
        Total::of(std::iter::once(self))
    }

    fn to_json(self) -> Value {
        let mut json = self.total().to_json();
        json["role"] = json!(self.role.name());
        json["dtype"] = json!(self.dtype.name());
        json
    }
}

/// A line of the report.
#[derive(Clone, Copy, Default)]
struct Total {
    tensors: u64,
    weights: u64,
    bytes: u64,
    counts: Option<[u64; 3]>,
}

fn sum(a: [u64; 3], b: [u64; 3]) -> [u64; 3] {
    [a[0] + b[0], a[1] + b[1], a[2] + b[2]]
}

impl Total {
    /// The sum; of counts only where every kind has them.
    fn of<'k>(kinds: impl Iterator<Item = &'k Kind>) -> Self {
        let start = Self {
            counts: Some([0; 3]),
            ..Self::default()
        };
        kinds.fold(start, |total, kind| Self {
            tensors: total.tensors + kind.tensors,
            weights: total.weights + kind.weights,
            bytes: total.bytes + kind.bytes,
            counts: total.counts.zip(kind.counts).map(|(a, b)| sum(a, b)),
        })
    }

    fn bits_per_weight(&self) -> f64 {
        8.0 * self.bytes as f64 / self.weights.max(1) as f64
    }

    fn zero_share(&self) -> Option<f64> {
        self.counts
            .map(|[_, n, _]| n as f64 / self.weights.max(1) as f64)
    }

    /// Bits a weight would take if each were coded by how often its value occurs.
    fn entropy(&self) -> Option<f64> {
        let all = self.weights.max(1) as f64;
        let bits = |n: u64| match n {
            0 => 0.0,
            n => -(n as f64 / all) * (n as f64 / all).log2(),
        };
        self.counts.map(|counts| counts.into_iter().map(bits).sum())
    }

    fn to_json(self) -> Value {
        json!({
            "tensors": self.tensors,
            "weights": self.weights,
            "bytes": self.bytes,
            "bits_per_weight": self.bits_per_weight(),
            "zero_share": self.zero_share(),
            "entropy": self.entropy(),
        })
    }

    fn line(&self, name: &str, dtype: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let zeros = match self.zero_share() {
            Some(share) => format!("{:.1} %", 100.0 * share),
            None => "-".to_owned(),
        };
        let entropy = self.entropy();
        let entropy = entropy.map_or_else(|| "-".to_owned(), |bits| format!("{bits:.3}"));
        writeln!(
            f,
            "{name:<16} {dtype:<6} {:>7} {:>13} {zeros:>7} {entropy:>8} {:>12.3} {:>13}",
            self.tensors,
            self.weights,
            self.bits_per_weight(),
            self.bytes
        )
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<16} {:<6} {:>7} {:>13} {:>7} {:>8} {:>12} {:>13}",
            "kind", "type", "tensors", "weights", "zeros", "entropy", "bits/weight", "bytes"
        )?;
        for kind in &self.kinds {
            kind.total().line(kind.role.name(), kind.dtype.name(), f)?;
        }
        for (name, total) in self.totals() {
            total.line(name, "", f)?;
        }
        let share = 100.0 * self.dead_neurons as f64 / self.neurons.max(1) as f64;
        writeln!(
            f,
            "dead feed-forward neurons: {} of {} ({share:.1} %)",
            self.dead_neurons, self.neurons
        )
    }
}

//! Optimiser steps of two models, as `step/model-precision/threads`; throughput in tokens.
//!
//! `s`: 4 layers, hidden 256, 4 heads, feed-forward 688, context 256, batch 16, vocabulary 512.
//! `char`: 4 layers, hidden 128, 4 heads, feed-forward 344, context 64, batch 12, vocabulary 65.
//! Each is checked before it is timed: every thread count takes the same steps to the bit, the
//! loss of a repeated batch falls, and bf16 begins where f32 does and stays near.

use bitnet_formats::{Attention, ModelConfig, Preset};
use bitnet_trainer::model::Model;
use bitnet_trainer::model::gradient::{Example, Worker};
use bitnet_trainer::ops::gemm::Precision;
use bitnet_trainer::optim::{AdamW, clip_factor, global_norm};
use bitnet_trainer::rng::{Rng, Stream};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rayon::{ThreadPool, ThreadPoolBuilder};

struct Case {
    name: &'static str,
    hidden: usize,
    ffn: usize,
    context: usize,
    batch: usize,
    vocab: usize,
}

const CASES: [Case; 2] = [
    Case {
        name: "s",
        hidden: 256,
        ffn: 688,
        context: 256,
        batch: 16,
        vocab: 512,
    },
    Case {
        name: "char",
        hidden: 128,
        ffn: 344,
        context: 64,
        batch: 12,
        vocab: 65,
    },
];

impl Case {
    fn config(&self) -> ModelConfig {
        ModelConfig {
            hidden_size: self.hidden,
            intermediate_size: self.ffn,
            n_layers: 4,
            n_heads: 4,
            attention: Attention::Grouped {
                n_kv_heads: 4,
                head_dim: self.hidden / 4,
            },
            vocab_size: self.vocab,
            max_seq_len: self.context,
            ..Preset::Nano.config()
        }
    }

    fn examples(&self) -> Vec<Example> {
        let mut rng = Rng::new(1, Stream::Batch, 0);
        let mut ids = || {
            (0..self.context)
                .map(|_| rng.below(self.vocab) as u32)
                .collect()
        };
        let example = |_| Example {
            inputs: ids(),
            targets: ids(),
        };
        (0..self.batch).map(example).collect()
    }
}

/// One batch, learned over and over.
struct Run {
    model: Model<f32>,
    adam: AdamW,
    workers: Vec<Worker<f32>>,
    batch: Vec<Example>,
    step: u64,
}

impl Run {
    fn new(case: &Case, precision: Precision) -> Self {
        let mut model = Model::new(case.config(), true);
        model.init(1);
        model.set_precision(precision);
        let worker = |_| Worker::new(model.config(), case.context);
        Self {
            adam: AdamW::new(&model, (0.9, 0.95), 1e-8, false),
            workers: (0..case.batch).map(worker).collect(),
            batch: case.examples(),
            step: 0,
            model,
        }
    }

    /// All that a step of training does; returns the sum of losses before it.
    fn step(&mut self) -> f64 {
        let tokens = self.batch.len() * self.batch[0].inputs.len();
        let weight = 1.0 / tokens as f32;
        self.model.zero_grad();
        let loss = self
            .model
            .accumulate_gradient(&self.batch, weight, &mut self.workers)
            .expect("finite activations");
        let clip = clip_factor(global_norm(&self.model), 1.0);
        self.adam.step(&mut self.model, self.step, 1e-3, 0.1, clip);
        self.model.refresh();
        self.step += 1;
        loss
    }
}

fn pool(threads: usize) -> ThreadPool {
    let pool = ThreadPoolBuilder::new().num_threads(threads).build();
    pool.expect("threads")
}

/// Losses of the first steps, after they turned out the same on two threads.
fn checked_losses(case: &Case, precision: Precision) -> [f64; 3] {
    let losses = |threads| {
        let mut run = Run::new(case, precision);
        pool(threads).install(|| [(); 3].map(|()| run.step()))
    };
    let one = losses(1);
    assert_eq!(
        one,
        losses(2),
        "{}: two threads took other steps",
        case.name
    );
    assert!(one[2] < one[0], "{}: {one:?} does not fall", case.name);
    one
}

fn step(c: &mut Criterion) {
    let mut group = c.benchmark_group("step");
    group.sample_size(10);
    for case in CASES {
        let wide = checked_losses(&case, Precision::F32);
        for precision in [Precision::F32, Precision::Bf16] {
            if !precision.is_supported() {
                eprintln!("SKIP {} {precision:?}: not on this processor", case.name);
                continue;
            }
            let losses = checked_losses(&case, precision);
            assert_eq!(losses[0], wide[0], "the forward pass is the same");
            assert!(
                (losses[2] / wide[2] - 1.0).abs() < 1e-3,
                "{losses:?} {wide:?}"
            );
            for threads in [1, 2] {
                let mut run = Run::new(&case, precision);
                let pool = pool(threads);
                let name = format!("{}-{precision:?}", case.name).to_lowercase();
                group.throughput(Throughput::Elements((case.batch * case.context) as u64));
                group.bench_function(BenchmarkId::new(name, threads), |b| {
                    b.iter(|| pool.install(|| run.step()));
                });
            }
        }
    }
    group.finish();
}

criterion_group!(benches, step);
criterion_main!(benches);

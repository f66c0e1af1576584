//! `--precision bf16`: gradients that are those of f32 but for their rounding, a run that learns, the
//! same bits for every number of threads, and a clear word where it cannot run.

use bitnet_formats::Preset;
use bitnet_trainer::model::Model;
use bitnet_trainer::model::gradient::{Example, Worker};
use bitnet_trainer::ops::gemm::Precision;
use bitnet_trainer::optim::{AdamW, clip_factor, global_norm};
use bitnet_trainer::rng::{Rng, Stream};
use bitnet_trainer::settings::Settings;
use bitnet_trainer::tensor::flat;
use rayon::ThreadPoolBuilder;

const VOCAB: usize = 61;
const CONTEXT: usize = 64;
const BATCH: usize = 8;
const STEPS: u64 = 60;
/// Distance of a gradient from that of f32, relative to its norm. A factor rounds to 8 bits, which is
/// 2^-9 at most and a third of that as a rule; every layer that a gradient passes adds its own.
const TOLERANCE: f64 = 0.01;

fn is_missing() -> bool {
    let missing = !Precision::Bf16.is_supported();
    if missing {
        eprintln!("SKIP: this processor has no AVX-512 BF16");
    }
    missing
}

/// Sequences that count up by a step of their own: something to learn from the tokens before.
fn batch(step: u64) -> Vec<Example> {
    let mut rng = Rng::new(1, Stream::Batch, step);
    let mut example = || {
        let (start, stride) = (rng.below(VOCAB), 1 + rng.below(5));
        let id = |t: usize| ((start + t * stride) % VOCAB) as u32;
        Example {
            inputs: (0..CONTEXT).map(id).collect(),
            targets: (1..=CONTEXT).map(id).collect(),
        }
    };
    (0..BATCH).map(|_| example()).collect()
}

struct Run {
    model: Model<f32>,
    adam: AdamW,
    workers: Vec<Worker<f32>>,
}

impl Run {
    fn new(precision: Precision) -> Self {
        let mut config = Preset::Nano.config();
        config.vocab_size = VOCAB;
        let mut model = Model::new(config, true);
        model.init(1);
        model.set_precision(precision);
        Self {
            adam: AdamW::new(&model, (0.9, 0.95), 1e-8, false),
            workers: (0..BATCH).map(|_| Worker::new(&config, CONTEXT)).collect(),
            model,
        }
    }

    /// The gradient of a batch; its mean loss in nats per token.
    fn gradient(&mut self, step: u64) -> f64 {
        let tokens = (BATCH * CONTEXT) as f64;
        self.model.zero_grad();
        let (batch, weight) = (batch(step), (1.0 / tokens) as f32);
        let sum = self
            .model
            .accumulate_gradient(&batch, weight, &mut self.workers);
        sum.expect("finite activations") / tokens
    }

    fn step(&mut self, step: u64) -> f64 {
        let loss = self.gradient(step);
        let clip = clip_factor(global_norm(&self.model), 1.0);
        let lr = 1e-3 * (step + 1).min(20) as f64 / 20.0;
        self.adam.step(&mut self.model, step, lr, 0.1, clip);
        self.model.refresh();
        loss
    }
}

/// Name and gradient of every tensor.
fn gradients(run: &Run) -> Vec<(String, Vec<f32>)> {
    let params = run.model.params().into_iter();
    params
        .map(|param| (param.name.clone(), flat(&param.grad).to_vec()))
        .collect()
}

#[test]
fn gradients_are_those_of_f32_but_for_their_rounding() {
    if is_missing() {
        return;
    }
    let (mut wide, mut narrow) = (Run::new(Precision::F32), Run::new(Precision::Bf16));
    assert_eq!(
        wide.gradient(0),
        narrow.gradient(0),
        "the forward pass is the same"
    );
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let mut differ = 0;
    for ((name, wide), (_, narrow)) in gradients(&wide).iter().zip(&gradients(&narrow)) {
        let pairs = || {
            wide.iter()
                .zip(narrow)
                .map(|(w, n)| (f64::from(*w), f64::from(*n)))
        };
        let apart = norm(&mut pairs().map(|(w, n)| w - n)) / norm(&mut pairs().map(|(w, _)| w));
        assert!(apart < TOLERANCE, "{name}: {apart}");
        differ += usize::from(apart > 0.0);
    }
    assert!(differ > 0, "nothing was rounded");
}

#[test]
fn bf16_learns() {
    if is_missing() {
        return;
    }
    let mut run = Run::new(Precision::Bf16);
    let losses: Vec<_> = (0..STEPS).map(|step| run.step(step)).collect();
    let last = losses[losses.len() - 1];
    assert!(last < 0.75 * losses[0], "{losses:?}");
}

#[test]
fn every_number_of_threads_gives_the_same_bits() {
    if is_missing() {
        return;
    }
    let gradients = |threads| {
        let pool = ThreadPoolBuilder::new().num_threads(threads).build();
        let mut run = Run::new(Precision::Bf16);
        pool.expect("threads").install(|| run.gradient(0));
        gradients(&run)
    };
    let one = gradients(1);
    assert!(one == gradients(2) && one == gradients(3));
}

#[test]
fn a_processor_without_bf16_refuses_it() {
    let mut settings = Settings::preset(Preset::Nano);
    settings.train.precision = Precision::Bf16;
    match settings.validate() {
        Ok(()) => assert!(Precision::Bf16.is_supported()),
        Err(e) => {
            assert!(!Precision::Bf16.is_supported());
            assert!(e.to_string().contains("use f32"), "{e}");
        }
    }
}

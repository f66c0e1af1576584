//! The whole network: gradients, causality, learning, and independence of threads.

use bitnet_formats::{Activation, Attention, ModelConfig, Norms, Preset};
use bitnet_trainer::model::gradient::{Example, Worker};
use bitnet_trainer::model::{Keep, Model, Sequence};
use bitnet_trainer::param::Param;
use bitnet_trainer::real::Real;
use bitnet_trainer::rng::{Rng, Stream};
use bitnet_trainer::tensor::{flat, flat_mut};

const VOCAB: usize = 23;

/// Two blocks, every width different.
fn small(attention: Attention) -> ModelConfig {
    ModelConfig {
        hidden_size: 20,
        intermediate_size: 28,
        n_layers: 2,
        n_heads: 4,
        attention,
        vocab_size: VOCAB,
        max_seq_len: 16,
        ..Preset::Nano.config()
    }
}

const LATENT: Attention = Attention::Latent {
    kv_lora_rank: 16,
    qk_nope_head_dim: 6,
    qk_rope_head_dim: 4,
    v_head_dim: 16,
};
const GROUPED: Attention = Attention::Grouped {
    n_kv_heads: 2,
    head_dim: 6,
};

/// Both kinds of attention, and each option that changes the computation.
fn variants() -> Vec<(&'static str, ModelConfig)> {
    let plain = ModelConfig {
        activation: Activation::Silu,
        tie_embeddings: false,
        norms: Norms::pre(1e-3),
        ..small(GROUPED)
    };
    let in_linears = |norms: Norms| ModelConfig {
        norms: Norms {
            in_linear: Some(2e-3),
            ..norms
        },
        ..small(GROUPED)
    };
    vec![
        ("latent", small(LATENT)),
        ("grouped", small(GROUPED)),
        ("untied, SiLU, no sub-norms", plain),
        ("norms in linears", in_linears(Norms::pre(1e-3))),
        ("and sub-norms", in_linears(Norms::sub_ln(1e-3))),
    ]
}

/// Weights wide enough for every part of the network to matter, gains away from one.
fn model<T: Real>(config: ModelConfig, quantize: bool) -> Model<T> {
    let mut model = Model::<T>::new(config, quantize);
    for (i, param) in model.params_mut().into_iter().enumerate() {
        let mut rng = Rng::new(11, Stream::Init, i as u64);
        let fan_in = param.value.ncols() as f64;
        for w in flat_mut(&mut param.value) {
            let draw = rng.normal();
            *w += T::from_f64(
                draw * if w.is_zero() {
                    1.0 / fan_in.sqrt()
                } else {
                    0.3
                },
            );
        }
    }
    model.refresh();
    model
}

fn batch(sequences: usize, len: usize, seed: u64) -> Vec<Example> {
    let mut rng = Rng::new(seed, Stream::Batch, 0);
    let mut ids = || (0..len).map(|_| rng.below(VOCAB) as u32).collect();
    (0..sequences)
        .map(|_| Example {
            inputs: ids(),
            targets: ids(),
        })
        .collect()
}

fn gradient<T: Real>(model: &mut Model<T>, batch: &[Example], weight: T) -> f64 {
    let len = batch[0].inputs.len();
    let mut workers: Vec<_> = batch
        .iter()
        .map(|_| Worker::new(model.config(), len))
        .collect();
    model
        .accumulate_gradient(batch, weight, &mut workers)
        .unwrap()
}

/// Loss and gradients, as bits, of workers of one kind on a pool of some size.
fn gradient_bits(
    config: ModelConfig,
    batch: &[Example],
    threads: usize,
    worker: impl Fn() -> Worker<f32> + Sync,
) -> (u64, Vec<Vec<u32>>) {
    let mut model = model::<f32>(config, true);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    let sum = pool.unwrap().install(|| {
        let mut workers: Vec<_> = batch.iter().map(|_| worker()).collect();
        model.accumulate_gradient(batch, 0.2, &mut workers).unwrap()
    });
    let bits = |param: &Param<f32>| flat(&param.grad).iter().map(|g| g.to_bits()).collect();
    (
        sum.to_bits(),
        model.params().into_iter().map(bits).collect(),
    )
}

/// [`variants`], with room for sequences of several parts.
fn long_variants() -> impl Iterator<Item = (&'static str, ModelConfig)> {
    let long = |config| ModelConfig {
        max_seq_len: 700,
        ..config
    };
    variants()
        .into_iter()
        .map(move |(name, config)| (name, long(config)))
}

fn loss<T: Real>(model: &Model<T>, batch: &[Example]) -> f64 {
    let mut seq = Sequence::to_evaluate(model.config(), batch[0].inputs.len());
    let one = |example: &Example| model.loss(&example.inputs, &example.targets, &mut seq);
    batch.iter().map(one).map(Result::unwrap).sum()
}

/// Central differences in f64 on the unquantised network: several elements of every tensor.
#[test]
fn gradients_match_finite_differences() {
    for (name, config) in variants() {
        let mut model = model::<f64>(config, false);
        let batch = batch(2, 7, 5);
        let sum = gradient(&mut model, &batch, 1.0);
        assert!((sum - loss(&model, &batch)).abs() < 1e-9, "{name}");
        let params: Vec<Param<f64>> = model.params().into_iter().cloned().collect();
        for (i, param) in params.iter().enumerate() {
            let size = param.value.len();
            for k in (0..size).step_by(size.div_ceil(6)) {
                let slope = slope(&mut model, &batch, i, k);
                let found = flat(&param.grad)[k];
                let error = (slope - found).abs() / (1e-2 + slope.abs().max(found.abs()));
                assert!(error < 1e-5, "{name}: {}[{k}]: {slope} {found}", param.name);
            }
        }
    }
}

fn slope(model: &mut Model<f64>, batch: &[Example], param: usize, element: usize) -> f64 {
    let h = 1e-5;
    let mut at = |offset: f64| {
        flat_mut(&mut model.params_mut()[param].value)[element] += offset;
        model.refresh();
        loss(model, batch)
    };
    let above = at(h);
    let below = at(-2.0 * h);
    at(h);
    (above - below) / (2.0 * h)
}

/// Every tensor must have been reached; rows of tokens that never occur have no gradient untied.
#[test]
fn every_parameter_learns() {
    for (name, config) in variants() {
        for quantize in [false, true] {
            let mut model = model::<f32>(config, quantize);
            let batch = batch(2, 9, 8);
            gradient(&mut model, &batch, 1.0);
            for param in model.params() {
                let reached = flat(&param.grad).iter().any(|g| *g != 0.0);
                assert!(reached, "{name}: {}", param.name);
            }
            if !config.tie_embeddings {
                let used = |id| batch.iter().any(|e| e.inputs.contains(&id));
                let unused = (0..VOCAB as u32).find(|id| !used(*id)).unwrap();
                let row = model.params()[0].grad.row(unused as usize);
                assert!(row.iter().all(|g| *g == 0.0));
            }
        }
    }
}

/// A token changes nothing before itself, to the bit, and something at or after itself.
#[test]
fn later_tokens_do_not_reach_back() {
    for (name, config) in variants() {
        let model = model::<f32>(config, true);
        let ids = batch(1, 12, 3).remove(0).inputs;
        let mut seq = Sequence::to_evaluate(&config, ids.len());
        let before = model.all_logits(&ids, &mut seq).unwrap();
        for t in 0..ids.len() {
            let mut changed = ids.clone();
            changed[t] = (changed[t] + 1) % VOCAB as u32;
            let after = model.all_logits(&changed, &mut seq).unwrap();
            for i in 0..ids.len() {
                let same = before.row(i) == after.row(i);
                assert_eq!(same, i < t, "{name}: token {t}, logits {i}");
            }
        }
    }
}

#[test]
fn fresh_models_know_nothing_and_are_a_third_zero() {
    for preset in [Preset::Nano, Preset::Tiny] {
        let mut model = Model::<f32>::new(preset.config(), true);
        model.init(4);
        let ids: Vec<u32> = (0..65).map(|i| i * i * 7 % 500).collect();
        let mut seq = Sequence::to_evaluate(model.config(), 64);
        let nats = model.loss(&ids[..64], &ids[1..], &mut seq).unwrap() / 64.0;
        let uniform = (preset.config().vocab_size as f64).ln();
        assert!((nats - uniform).abs() < 0.15, "{nats} {uniform}");
        let share = model.zero_share();
        assert!((share - 0.31).abs() < 0.005, "{share}");
    }
}

#[test]
fn a_batch_equals_its_rows_one_by_one() {
    for (name, config) in variants() {
        let (mut whole, mut parts) = (model::<f32>(config, true), model::<f32>(config, true));
        let batch = batch(8, 10, 2);
        let sum = gradient(&mut whole, &batch, 0.125);
        let by_row: f64 = batch
            .chunks(1)
            .map(|row| gradient(&mut parts, row, 0.125))
            .sum();
        assert!((sum - by_row).abs() < 1e-9, "{name}");
        for (a, b) in whole.params().iter().zip(parts.params()) {
            let (a, b) = (flat(&a.grad), flat(&b.grad));
            let largest = a.iter().fold(0.0f32, |m, x| m.max(x.abs()));
            let apart = a.iter().zip(b).map(|(a, b)| (a - b).abs());
            let apart = apart.fold(0.0, f32::max);
            assert!(apart <= 1e-5 * largest, "{name}: {apart} of {largest}");
        }
    }
}

/// What makes one machine with several micro-batches equal to several with one each.
#[test]
fn gradients_of_batches_add_to_the_bit() {
    for (name, config) in variants() {
        let (first, second) = (batch(2, 10, 2), batch(2, 10, 3));
        let of = |batches: &[&[Example]]| {
            let mut model = model::<f32>(config, true);
            for batch in batches {
                gradient(&mut model, batch, 0.125);
            }
            let grads = model.params().into_iter().map(|p| p.grad.clone());
            grads.collect::<Vec<_>>()
        };
        let (one, other, both) = (of(&[&first]), of(&[&second]), of(&[&first, &second]));
        for ((one, other), both) in one.iter().zip(&other).zip(&both) {
            assert!(one + other == *both, "{name}");
        }
    }
}

/// A model whose gradients were forgotten is as good as new.
#[test]
fn forgotten_gradients_leave_no_trace() {
    for (name, config) in variants() {
        let batch = batch(2, 10, 2);
        let mut model = model::<f32>(config, true);
        gradient(&mut model, &batch, 0.5);
        let before: Vec<_> = model.params().iter().map(|p| p.grad.clone()).collect();
        gradient(&mut model, &batch, 7.0);
        model.zero_grad();
        gradient(&mut model, &batch, 0.5);
        for (param, before) in model.params().into_iter().zip(&before) {
            assert!(param.grad == before, "{name}: {}", param.name);
        }
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    for (name, config) in long_variants() {
        for (sequences, len) in [(5, 16), (1, 600)] {
            let batch = batch(sequences, len, 6);
            let run = |threads| {
                gradient_bits(config, &batch, threads, || {
                    Worker::new(&config, len).with_heads(threads)
                })
            };
            let one = run(1);
            assert!(one == run(2) && one == run(3), "{name}, {len} tokens");
        }
    }
}

/// What is kept between the passes, and how many heads run at once, is no part of the result.
#[test]
fn activations_computed_again_are_the_same_bits() {
    for (name, config) in long_variants() {
        for (sequences, len) in [(3, 16), (2, 300)] {
            let batch = batch(sequences, len, 6);
            let run = |keep, heads| {
                gradient_bits(config, &batch, 2, || {
                    Worker::keeping(keep, &config, len).with_heads(heads)
                })
            };
            let kept = run(Keep::Activations, 1);
            for heads in [1, 3, 9] {
                let again = run(Keep::Inputs, heads);
                assert!(kept == again, "{name}, {len} tokens, {heads} heads");
            }
        }
    }
}

/// A sequence of several parts is one sequence: every position sees all before it.
#[test]
fn gradients_match_finite_differences_across_parts() {
    for (name, config) in long_variants() {
        let mut model = model::<f64>(config, false);
        let batch = batch(1, 260, 5);
        gradient(&mut model, &batch, 1.0);
        let params: Vec<Param<f64>> = model.params().into_iter().cloned().collect();
        for (i, param) in params.iter().enumerate() {
            let k = param.value.len() / 2;
            let slope = slope(&mut model, &batch, i, k);
            let found = flat(&param.grad)[k];
            let error = (slope - found).abs() / (1e-2 + slope.abs().max(found.abs()));
            assert!(error < 1e-5, "{name}: {}[{k}]: {slope} {found}", param.name);
        }
    }
}

/// The straight-through gradient of the whole network points downhill in the quantised loss.
#[test]
fn a_step_against_the_gradient_lowers_the_quantised_loss() {
    for (name, config) in variants() {
        let mut model = Model::<f32>::new(config, true);
        model.init(9);
        let batch = batch(4, 12, 1);
        let before = gradient(&mut model, &batch, 1.0 / 48.0);
        for param in model.params_mut() {
            let grad = param.grad.clone();
            for (w, g) in flat_mut(&mut param.value).iter_mut().zip(flat(&grad)) {
                *w -= 0.01 * g;
            }
        }
        model.refresh();
        assert!(loss(&model, &batch) < before, "{name}");
    }
}

#[test]
fn an_infinite_weight_is_reported_by_block() {
    let mut model = model::<f32>(small(LATENT), true);
    flat_mut(&mut model.params_mut()[0].value)[3] = f32::INFINITY;
    let mut seq = Sequence::to_evaluate(model.config(), 4);
    let error = model.forward(&[0, 1, 2, 0], &mut seq).unwrap_err();
    assert!(error.to_string().contains("block 0"), "{error}");
}

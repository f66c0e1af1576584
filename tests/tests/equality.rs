//! The same bits, however a prompt is cut, wherever the weights are, whichever kernels run.

use bitnet_formats::{Dtype, ModelConfig, Preset};
use bitnet_runtime::{
    AlignedBuffer, Archive, Kernels, KvType, LoadOptions, LogitsHash, Model, RunError, Step,
    TensorRole, TernaryLayout, Want, WeightHold, argmax, weight_plan,
};
use bitnet_tests::random::Random;
use bitnet_tests::synthetic::{Storage, model, random_config};
use bitnet_tests::{Run, logits_hash, with_session};

const T5: TernaryLayout = TernaryLayout::T5R16;
const T2: TernaryLayout = TernaryLayout::T2R16;

fn held(hold: WeightHold) -> LoadOptions {
    LoadOptions {
        hold,
        ..LoadOptions::default()
    }
}

/// Thirty random shapes and the nano preset, with a prompt each.
fn cases() -> impl Iterator<Item = (ModelConfig, Vec<u32>, u64)> {
    let mut random = Random(1);
    (0..31).map(move |i| {
        let config = if i == 0 {
            Preset::Nano.config()
        } else {
            random_config(&mut random)
        };
        let ids = random.ids(config.max_seq_len.min(23), config.vocab_size);
        (config, ids, random.bits())
    })
}

fn caches(config: &ModelConfig) -> &'static [KvType] {
    match config.attention {
        bitnet_formats::Attention::Grouped { .. } => &[KvType::F16, KvType::F32],
        bitnet_formats::Attention::Latent { .. } => &[KvType::Native],
    }
}

#[test]
fn decode_equals_prefill_equals_any_chunking() {
    for (config, ids, seed) in cases() {
        let file = model(&config, Storage::default(), seed);
        for kv in caches(&config) {
            let run = Run {
                kv: *kv,
                ..Run::default()
            };
            let whole = logits_hash(&file, &ids, run);
            for prefill_batch in [1, 2, 3, 5, 8, 64] {
                let hash = logits_hash(
                    &file,
                    &ids,
                    Run {
                        prefill_batch,
                        ..run
                    },
                );
                assert_eq!(hash, whole, "chunks of {prefill_batch}, {config:?}");
            }
        }
    }
}

#[test]
fn layouts_and_places_of_the_weights_do_not_matter() {
    for (config, ids, seed) in cases() {
        let [t5, t2] = [T5, T2].map(|ternary| {
            model(
                &config,
                Storage {
                    ternary,
                    ..Storage::default()
                },
                seed,
            )
        });
        let expected = logits_hash(&t5, &ids, Run::default());
        for file in [&t5, &t2] {
            for hold in [
                WeightHold::InPlace,
                WeightHold::Copy(T5),
                WeightHold::Copy(T2),
            ] {
                let run = Run {
                    load: held(hold),
                    ..Run::default()
                };
                assert_eq!(
                    logits_hash(file, &ids, run),
                    expected,
                    "{hold:?}, {config:?}"
                );
            }
        }
    }
}

#[test]
fn every_kernel_set_gives_the_same_logits() {
    for (config, ids, seed) in cases().take(12) {
        for dense in [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::I8Rows] {
            let file = model(
                &config,
                Storage {
                    dense,
                    ..Storage::default()
                },
                seed,
            );
            let expected = logits_hash(&file, &ids, Run::default());
            // Few tokens in a chunk, and more than a matrix unit takes at once.
            for (kernels, prefill_batch) in
                Kernels::available().flat_map(|kernels| [4, 32].map(|n| (kernels, n)))
            {
                assert_eq!(
                    hash_with(&file, &ids, kernels, prefill_batch),
                    expected,
                    "{kernels:?} {dense:?}, chunks of {prefill_batch}"
                );
            }
        }
    }
}

fn hash_with(file: &[u8], ids: &[u32], kernels: Kernels, prefill_batch: usize) -> u64 {
    use bitnet_runtime::{AlignedBuffer, Archive, Model, Session, SessionConfig};
    let archive = Archive::open(file).unwrap();
    let model = Model::load(&archive, &mut [], &LoadOptions::default()).unwrap();
    let model = model.with_kernels(kernels);
    let max_seq_len = model.config().max_seq_len;
    let config = SessionConfig {
        max_seq_len,
        prefill_batch,
        kv: KvType::F32,
        threads: 1,
    };
    let plan = model.plan(&config).unwrap();
    let mut kv = AlignedBuffer::zeroed(plan.kv_bytes);
    let mut scratch = AlignedBuffer::zeroed(plan.scratch_bytes);
    let mut session = Session::new(&model, &mut kv, &mut scratch, &config).unwrap();
    let mut hash = LogitsHash::new();
    session.score(ids, |_, logits| hash.update(logits)).unwrap();
    hash.finish()
}

#[test]
fn the_number_of_threads_does_not_matter() {
    for (config, ids, seed) in cases() {
        let file = model(&config, Storage::default(), seed);
        for kv in caches(&config) {
            for prefill_batch in [1, 8] {
                let run = Run {
                    kv: *kv,
                    prefill_batch,
                    ..Run::default()
                };
                let alone = logits_hash(&file, &ids, run);
                for threads in [2, 3, 8] {
                    let hash = logits_hash(&file, &ids, Run { threads, ..run });
                    assert_eq!(hash, alone, "{threads} threads, {config:?}");
                }
            }
        }
    }
}

#[test]
fn budgets_do_not_change_the_result() {
    for (config, ids, seed) in cases().take(8) {
        let file = model(&config, Storage::default(), seed);
        let expected = logits_hash(&file, &ids, Run::default());
        for budget in [1, 7, 64, usize::MAX] {
            let hash = with_session(
                &file,
                Run {
                    prefill_batch: 4,
                    ..Run::default()
                },
                |session| {
                    let mut hash = LogitsHash::new();
                    for chunk in ids.chunks(4) {
                        session.begin(chunk, Want::Each).unwrap();
                        loop {
                            match session.step(budget).unwrap() {
                                Step::Pending => assert!(budget < usize::MAX),
                                Step::Logits { .. } => hash.update(session.logits()),
                                Step::Done => break,
                            }
                        }
                    }
                    hash.finish()
                },
            );
            assert_eq!(hash, expected, "budget {budget}, {config:?}");
        }
    }
}

#[test]
fn a_rewound_sequence_goes_on_as_if_it_had_never_gone_further() {
    for (config, ids, seed) in cases() {
        let file = model(&config, Storage::default(), seed);
        let (keep, rest) = ids.split_at(ids.len() / 2);
        with_session(&file, Run::default(), |session| {
            let straight = session.prefill(&ids).unwrap().to_vec();
            session.truncate(0).unwrap();
            if !keep.is_empty() {
                session.prefill(keep).unwrap();
            }
            session.prefill(&ids[ids.len() - rest.len()..]).unwrap();
            session.truncate(keep.len()).unwrap();
            assert_eq!(session.prefill(rest).unwrap(), straight, "{config:?}");
        });
    }
}

/// Two sequences take turns on one scratch buffer, and neither notices the other.
#[test]
fn sequences_share_a_scratch_buffer() {
    use bitnet_runtime::{AlignedBuffer, Archive, Model, RunError, Session, SessionConfig};
    for (config, ids, seed) in cases() {
        let file = model(&config, Storage::default(), seed);
        let other: Vec<u32> = ids.iter().rev().copied().collect();
        let expected = [&ids, &other].map(|ids| logits_hash(&file, ids, Run::default()));

        let archive = Archive::open(&file).unwrap();
        let model = Model::load(&archive, &mut [], &LoadOptions::default()).unwrap();
        let max_seq_len = config.max_seq_len;
        let options = SessionConfig {
            max_seq_len,
            prefill_batch: 3,
            kv: KvType::F32,
            threads: 1,
        };
        let plan = model.plan(&options).unwrap();
        let mut caches = [0, 1].map(|_| AlignedBuffer::zeroed(plan.kv_bytes));
        let mut scratch = AlignedBuffer::zeroed(plan.scratch_bytes);
        let mut hashes = [LogitsHash::new(); 2];
        for position in 0..ids.len() {
            for (which, ids) in [&ids, &other].into_iter().enumerate() {
                let kv = &mut caches[which];
                let mut session =
                    Session::resume(&model, kv, &mut scratch, &options, position).unwrap();
                hashes[which].update(session.decode(ids[position]).unwrap());
            }
        }
        assert_eq!(hashes.map(LogitsHash::finish), expected, "{config:?}");

        let beyond = max_seq_len + 1;
        let error = Session::resume(&model, &mut caches[0], &mut scratch, &options, beyond).err();
        let full = RunError::ContextFull {
            used: beyond,
            asked: 0,
            max: max_seq_len,
        };
        assert_eq!(error, Some(full));
    }
}

#[test]
fn a_cancelled_chunk_leaves_no_trace() {
    let config = Preset::Nano.config();
    let file = model(&config, Storage::default(), 5);
    let expected = logits_hash(&file, &[3, 1, 4, 1, 5], Run::default());
    let hash = with_session(&file, Run::default(), |session| {
        session.begin(&[9, 9, 9], Want::Last).unwrap();
        session.step(100).unwrap();
        assert!(session.is_busy());
        session.cancel();
        let mut hash = LogitsHash::new();
        session
            .score(&[3, 1, 4, 1, 5], |_, logits| hash.update(logits))
            .unwrap();
        hash.finish()
    });
    assert_eq!(hash, expected);
}

/// The hash of one small file, written down: it may change only with the numerics.
#[test]
fn the_numerics_have_not_moved() {
    let file = model(&Preset::Nano.config(), Storage::default(), 42);
    let ids = Random(7).ids(40, 512);
    assert_eq!(
        format!("{:016x}", logits_hash(&file, &ids, Run::default())),
        "9d840cb6c84712fb"
    );
}

/// The weight passes alone give the same logits wherever the weights are, and leave the sequence as
/// it is.
#[test]
fn a_weight_pass_depends_on_the_weights_alone() {
    for (config, ids, seed) in cases().take(12) {
        let file = model(&config, Storage::default(), seed);
        let expected = logits_hash(&file, &ids, Run::default());
        let passes = [WeightHold::InPlace, WeightHold::Copy(T2)].map(|hold| {
            let load = held(hold);
            let run = Run {
                load,
                ..Run::default()
            };
            with_session(&file, run, |session| {
                let mut pass = || session.weight_pass().expect("finite logits").to_vec();
                let logits = pass();
                assert_eq!(pass(), logits);
                let mut hash = LogitsHash::new();
                for id in &ids {
                    let position = session.position();
                    assert_eq!(session.weight_pass().expect("finite logits"), logits);
                    assert_eq!(session.position(), position);
                    hash.update(session.decode(*id).expect("finite logits"));
                }
                assert_eq!(hash.finish(), expected, "{config:?}");
                logits
            })
        });
        assert_eq!(passes[0], passes[1]);
        assert!(passes[0].iter().any(|logit| *logit != 0.0));
    }
}

/// With a coarse head, the logits that may be the largest are what they always are, the best token is
/// the best, and the others are out. Whatever the threads, the budgets and the kernels.
#[test]
fn the_best_token_of_a_coarse_head_is_the_best_token() {
    let config = ModelConfig {
        vocab_size: 1_003,
        ..Preset::Nano.config()
    };
    let storage = Storage {
        dense: Dtype::I8Rows,
        ..Storage::default()
    };
    let file = model(&config, storage, 5);
    let ids = Random(11).ids(40, config.vocab_size);
    let run = |threads, load| Run {
        threads,
        load,
        prefill_batch: 7,
        ..Run::default()
    };
    let all = with_session(&file, run(1, LoadOptions::default()), |session| {
        let each = ids
            .iter()
            .map(|id| session.decode(*id).expect("finite logits").to_vec());
        each.collect::<Vec<_>>()
    });
    let mut computed = 0;
    for (threads, budget) in [(1, usize::MAX), (1, 1), (2, 13), (3, usize::MAX)] {
        let load = LoadOptions {
            coarse_head: true,
            ..held(WeightHold::Copy(T5))
        };
        with_session(&file, run(threads, load), |session| {
            for (id, all) in ids.iter().zip(&all) {
                session.begin(&[*id], Want::Best).expect("room");
                while session.step(budget).expect("finite logits") == Step::Pending {}
                computed += check_best(session.logits(), all);
            }
        });
    }
    let share = computed as f64 / (4 * ids.len() * config.vocab_size) as f64;
    println!("{:.2} % of the rows were computed", share * 100.0);
    assert!(share < 0.5, "the coarse head decides nothing: {share}");
}

/// Compares what is left of the logits with all of them, and counts it.
fn check_best(best: &[f32], all: &[f32]) -> usize {
    assert_eq!(argmax(best), argmax(all));
    let left = best.iter().zip(all).filter(|(best, _)| best.is_finite());
    left.map(|(best, all)| assert_eq!(best, all)).count()
}

/// Heads that can have no coarse copy are refused, before anything is lent and after.
#[test]
fn a_coarse_head_needs_rows_of_int8() {
    let load = LoadOptions {
        coarse_head: true,
        ..LoadOptions::default()
    };
    let config = Preset::Nano.config();
    let file = model(&config, Storage::default(), 5);
    let archive = Archive::open(&file).expect("a valid file");
    assert_ne!(
        archive.matrix(TensorRole::Embedding).expect("one").dtype,
        Dtype::I8Rows
    );
    let mut weights = AlignedBuffer::zeroed(weight_plan(&archive, &load).expect("a plan"));
    let error = Model::load(&archive, &mut weights, &load).unwrap_err();
    assert_eq!(error, RunError::CoarseHead);
    let narrow = ModelConfig {
        hidden_size: config.hidden_size + 2,
        ..config
    };
    let file = model(&narrow, Storage::default(), 5);
    let archive = Archive::open(&file).expect("a valid file");
    assert_eq!(weight_plan(&archive, &load), Err(RunError::CoarseHead));
}

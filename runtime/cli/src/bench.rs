//! `--bench`: how fast this machine runs the model.
//!
//! Every configuration (where the weights are, threads, kernels) first computes what will be timed
//! and must give the same logits as the others; that warms everything up as well. Then the
//! configurations take turns, so that a change of the machine's speed meets all of them.

mod report;

use std::hint::black_box;
use std::time::Instant;

use anyhow::{Result, ensure};
use bitnet_runtime::{
    AlignedBuffer, Archive, Kernels, LogitsHash, MemoryPlan, Model, Session, SessionConfig,
    TensorRole, TernaryLayout, TernaryView, Threads, Want, argmax,
};

use crate::args::Args;
use crate::bandwidth::ReadLoop;
use crate::model_file::ModelFile;
use crate::output;
use crate::timing::Samples;
use crate::weights::{Decision, Weights};

/// Lengths of the prompts.
const PREFILLS: [usize; 2] = [128, 512];
/// Tokens that are decoded, from an empty context on.
const DECODE: usize = 128;
/// A timing of weight passes reads at least this much, in at most so many passes.
const BYTES_PER_TIMING: usize = 16 << 20;
const MOST_PASSES: usize = 64;

/// What is timed of a session, from an empty context on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Test {
    Prefill(usize),
    Decode(usize),
}

/// One way to run the model, and what was found.
struct Setup<'m, 'w> {
    decision: &'m Decision,
    model: &'m Model<'w>,
    threads: &'m Threads,
    read: ReadLoop<'w>,
    logits_hash: u64,
    /// In the order of the tests.
    tests: Vec<Samples>,
    /// Passes over the weights of a decode step, one after another.
    pass: Samples,
    /// The read loop over as many bytes of T5 and the head.
    reading: Samples,
}

/// What all configurations share.
struct Bench<'a> {
    session: SessionConfig,
    tests: Vec<Test>,
    ids: Vec<u32>,
    kv: &'a mut [u8],
    scratch: &'a mut [u8],
}

pub(crate) fn run(args: &Args, file: &ModelFile) -> Result<()> {
    let archive = file.archive()?;
    file.verified(&archive, args.trust, || Ok(()))?;
    let (session, tests) = plan_tests(args, &archive);
    let plan = MemoryPlan::new(archive.config(), &session)?;
    let mut kv = AlignedBuffer::zeroed(plan.kv_bytes);
    let mut scratch = AlignedBuffer::zeroed(plan.scratch_bytes);
    let mut bench = Bench {
        session,
        tests,
        ids: token_ids(session.max_seq_len, archive.config().vocab_size),
        kv: &mut kv,
        scratch: &mut scratch,
    };
    let mut weights = hold_weights(args, &archive)?;
    let mut held = Vec::new();
    for weights in &mut weights {
        let decision = weights.decision.clone();
        held.push((decision, weights.load(&archive, Kernels::detect())?));
    }
    let pools: Vec<_> = args.bench_threads().into_iter().map(Threads::new).collect();
    let mut models = Vec::new();
    for (decision, model) in &held {
        for threads in &pools {
            models.extend(
                args.bench_kernels()
                    .into_iter()
                    .map(|kernels| (decision, threads, model.with_kernels(kernels))),
            );
        }
    }
    let mut setups = Vec::new();
    for (decision, threads, model) in &models {
        let setup = Setup::new(decision, model, threads, &mut bench)?;
        check(
            setups.first().unwrap_or(&setup).identity(),
            setup.identity(),
        )?;
        setups.push(setup);
    }
    bench.measure(&mut setups, args.repetitions)?;
    report::print(args, file, &bench, &setups)
}

/// The tests as far as the context holds them, and a session that does.
fn plan_tests(args: &Args, archive: &Archive<'_>) -> (SessionConfig, Vec<Test>) {
    let longest = PREFILLS.into_iter().max().unwrap_or(DECODE).max(DECODE);
    let context = args
        .context
        .unwrap_or(longest.min(archive.config().max_seq_len));
    if context < longest {
        output::note(format_args!(
            "a context of {context} positions: longer tests are cut to it"
        ));
    }
    let prefills = PREFILLS.map(|n| Test::Prefill(n.min(context)));
    let mut tests = [&prefills[..], &[Test::Decode(DECODE.min(context))]].concat();
    tests.dedup();
    let session = SessionConfig {
        threads: most_threads(args),
        ..args.session(archive.config(), context)
    };
    (session, tests)
}

fn most_threads(args: &Args) -> usize {
    args.bench_threads().into_iter().max().unwrap_or(1)
}

/// Tokens from all over the vocabulary.
fn token_ids(n: usize, vocab_size: usize) -> Vec<u32> {
    let id = |i: usize| (i * 7_919 + 13) % vocab_size;
    (0..n).map(|i| id(i) as u32).collect()
}

/// One copy for each way that was asked for. `fast` chooses for the most threads.
fn hold_weights(args: &Args, archive: &Archive<'_>) -> Result<Vec<Weights>> {
    let threads = most_threads(args);
    let holds = args.bench_holds(archive).into_iter().map(|hold| {
        let decision = Decision::new(hold, archive, args.kernels(), threads)?;
        Weights::new(decision.for_best_tokens(archive)?, archive)
    });
    holds.collect()
}

impl<'m, 'w> Setup<'m, 'w> {
    /// Runs every test once, and looks at the logits.
    fn new(
        decision: &'m Decision,
        model: &'m Model<'w>,
        threads: &'m Threads,
        bench: &mut Bench<'_>,
    ) -> Result<Self> {
        let mut hash = LogitsHash::new();
        for test in bench.tests.clone() {
            let mut best = Vec::new();
            bench.run((model, threads), test, Want::Last, |logits| {
                hash.update(logits);
                best.push(argmax(logits));
            })?;
            bench.check_best((model, threads), test, &best)?;
        }
        hash.update(bench.new_session(model, threads)?.weight_pass()?);
        Ok(Self {
            decision,
            model,
            threads,
            read: ReadLoop::new(t5_parts(model), threads.count())?,
            logits_hash: hash.finish(),
            tests: vec![Samples::default(); bench.tests.len()],
            pass: Samples::default(),
            reading: Samples::default(),
        })
    }

    /// Its options, and what came of them.
    fn identity(&self) -> (String, u64) {
        let (weights, isa) = (self.decision.name(), self.model.kernels().isa().name());
        let options = format!(
            "--weights {weights} --threads {} --isa {isa}",
            self.threads.count()
        );
        (options, self.logits_hash)
    }

    /// Bytes of weights a decode step reads: all of them, or the coarse head instead of the head.
    fn step_bytes(&self) -> usize {
        let ternary = self.model.ternary_matrices().map(|(_, m)| m.bytes().len());
        let head = match self.model.coarse_head_bytes() {
            0 => self.model.head().bytes().len(),
            bytes => bytes,
        };
        ternary.sum::<usize>() + head
    }
}

/// All configurations compute the same, or nothing is timed.
fn check(first: (String, u64), other: (String, u64)) -> Result<()> {
    ensure!(
        first.1 == other.1,
        "the logits of {} have the hash {:016x}, those of {} {:016x}: they must be equal; please report it",
        first.0,
        first.1,
        other.0,
        other.1
    );
    Ok(())
}

/// What weight passes over T5 read: the matrices of [`Session::weight_pass`], and the head. Where the
/// layout is another, as many bytes of the memory that holds it.
fn t5_parts<'w>(model: &Model<'w>) -> Vec<&'w [u8]> {
    let is_passed = |role: &TensorRole| !matches!(role, TensorRole::KvBKey | TensorRole::KvBValue);
    let first_part = |m: TernaryView<'w>| {
        let t5 = TernaryLayout::T5R16.packed_bytes(m.rows, m.cols) as usize;
        &m.bytes()[..t5.min(m.bytes().len())]
    };
    let matrices = model.ternary_matrices().filter(|(role, _)| is_passed(role));
    let ternary = matrices.map(|(_, m)| first_part(m));
    ternary.chain([model.head().bytes()]).collect()
}

impl Bench<'_> {
    fn new_session<'s, 'w>(
        &'s mut self,
        model: &'s Model<'w>,
        threads: &'s Threads,
    ) -> Result<Session<'s, 'w, 's>> {
        let config = SessionConfig {
            threads: threads.count(),
            ..self.session
        };
        let mut session = Session::new(model, self.kv, self.scratch, &config)?;
        session.lend(threads);
        Ok(session)
    }

    /// A coarse head leaves the best tokens as they are, or nothing is timed.
    fn check_best(
        &mut self,
        (model, threads): (&Model<'_>, &Threads),
        test: Test,
        expected: &[u32],
    ) -> Result<()> {
        if model.coarse_head_bytes() == 0 {
            return Ok(());
        }
        let mut best = Vec::new();
        self.run((model, threads), test, Want::Best, |logits| {
            best.push(argmax(logits));
        })?;
        ensure!(
            best == expected,
            "the coarse head chose other tokens than the head: please report it"
        );
        Ok(())
    }

    /// Runs a test and returns its seconds; `visit` sees the logits that come of it.
    fn run(
        &mut self,
        (model, threads): (&Model<'_>, &Threads),
        test: Test,
        want: Want,
        mut visit: impl FnMut(&[f32]),
    ) -> Result<f64> {
        let ids = std::mem::take(&mut self.ids);
        let mut session = self.new_session(model, threads)?;
        let start = Instant::now();
        match test {
            Test::Prefill(n) => visit(session.read(&ids[..n], want)?),
            Test::Decode(n) => {
                for id in &ids[..n] {
                    visit(session.read(&[*id], want)?);
                }
            }
        }
        let seconds = start.elapsed().as_secs_f64();
        self.ids = ids;
        Ok(seconds)
    }

    /// Seconds of the weight passes of one step.
    fn weight_pass(&mut self, setup: &Setup<'_, '_>) -> Result<f64> {
        let passes = BYTES_PER_TIMING
            .div_ceil(setup.step_bytes())
            .min(MOST_PASSES);
        let mut session = self.new_session(setup.model, setup.threads)?;
        let start = Instant::now();
        for _ in 0..passes {
            black_box(session.weight_pass()?);
        }
        Ok(start.elapsed().as_secs_f64() / passes as f64)
    }

    /// The configurations take turns at each kind of timing.
    fn measure(&mut self, setups: &mut [Setup<'_, '_>], repetitions: usize) -> Result<()> {
        for _ in 0..repetitions {
            for (i, test) in self.tests.clone().into_iter().enumerate() {
                for setup in &mut *setups {
                    let run = (setup.model, setup.threads);
                    let seconds = self.run(run, test, Want::Best, |logits| {
                        black_box(logits);
                    })?;
                    setup.tests[i].push(seconds);
                }
            }
            for setup in &mut *setups {
                let seconds = self.weight_pass(setup)?;
                setup.pass.push(seconds);
                setup.reading.push(setup.read.seconds());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_logits_are_an_error() {
        let setup = |name: &str, hash| (name.to_owned(), hash);
        assert!(check(setup("a", 1), setup("b", 1)).is_ok());
        assert_eq!(
            check(setup("a", 1), setup("b", 2)).unwrap_err().to_string(),
            "the logits of a have the hash 0000000000000001, those of b 0000000000000002: \
             they must be equal; please report it"
        );
    }
}

//! One text at a time, in steps of bounded work.

use bitnet_formats::metadata::SelfTest;
use bitnet_runtime::sampler::Candidate;
use bitnet_runtime::{
    KvType, LogitsHash, Model, RunError, Sampler, SamplerConfig, Session, SessionConfig, Step, Want,
};

use crate::error::Error;

/// What a step achieved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The budget is used up; step again.
    Pending,
    /// A token was chosen.
    Token(u32),
    /// The model ended the text.
    Stop,
    /// The context is full.
    Full,
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing, until there is a prompt.
    Idle,
    /// The prompt: ids from `from` to `to` are still to be read, besides the chunk in progress.
    Prompt { from: usize, to: usize },
    /// The chosen token, which has not been read yet.
    Chosen(u32),
    /// The chosen token, being read.
    Reading,
}

/// Continues prompts. `'m`, `'w` and `'b` are those of [`Session`].
pub struct Generator<'m, 'w, 'b> {
    session: Session<'m, 'w, 'b>,
    batch: usize,
    ids: &'b mut [u32],
    candidates: &'b mut [Candidate],
    sampler: Sampler,
    state: State,
}

impl<'m, 'w, 'b> Generator<'m, 'w, 'b> {
    /// A generator in lent buffers: `ids` has an entry for each position of the context and
    /// `candidates` one for each token of the vocabulary.
    ///
    /// # Errors
    ///
    /// As [`Session::new`].
    pub fn new(
        model: &'m Model<'w>,
        (kv, scratch): (&'b mut [u8], &'b mut [u8]),
        config: &SessionConfig,
        ids: &'b mut [u32],
        candidates: &'b mut [Candidate],
    ) -> Result<Self, Error> {
        Ok(Self {
            session: Session::new(model, kv, scratch, config)?,
            batch: config.prefill_batch,
            ids,
            candidates,
            sampler: Sampler::new(SamplerConfig::default()),
            state: State::Idle,
        })
    }

    /// Room for the ids of a prompt.
    pub fn ids_mut(&mut self) -> &mut [u32] {
        self.ids
    }

    /// That a prompt may be given, and so that [`ids_mut`](Self::ids_mut) may change.
    ///
    /// # Errors
    ///
    /// A prompt or token is being read.
    pub const fn ready(&self) -> Result<(), RunError> {
        match self.state {
            State::Prompt { .. } | State::Reading => Err(RunError::Busy),
            State::Idle | State::Chosen(_) => Ok(()),
        }
    }

    /// Positions in use.
    #[must_use]
    pub const fn position(&self) -> usize {
        self.session.position()
    }

    /// Chooses tokens like this from now on; the seed begins anew.
    pub fn set_sampler(&mut self, config: SamplerConfig) {
        self.sampler = Sampler::new(config);
    }

    /// Forgets everything that was read.
    pub fn reset(&mut self) {
        self.state = State::Idle;
        self.session.cancel();
        // The session is not busy, and it has reached its beginning.
        let _ = self.session.truncate(0);
    }

    /// Begins to read the first `n` of [`ids_mut`](Self::ids_mut), after what was read before.
    ///
    /// # Errors
    ///
    /// A prompt or token is being read, there is no id, one is outside the vocabulary, or they do not
    /// fit the context.
    pub fn prompt(&mut self, n: usize) -> Result<(), Error> {
        self.ready()?;
        self.check(n)?;
        self.begin_chunk(0, n)
    }

    /// All ids of a prompt are legal and fit, or none is read.
    fn check(&self, n: usize) -> Result<(), RunError> {
        let (used, left) = (self.session.position(), self.session.remaining());
        let ids = self.ids.get(..n).filter(|ids| ids.len() <= left);
        let ids = ids.ok_or(RunError::ContextFull {
            used,
            asked: n,
            max: used + left,
        })?;
        let vocab_size = self.candidates.len();
        let illegal = ids.iter().find(|id| **id as usize >= vocab_size);
        illegal.map_or(Ok(()), |id| {
            Err(RunError::Token {
                id: *id,
                vocab_size,
            })
        })
    }

    /// Begins the next chunk of the prompt.
    fn begin_chunk(&mut self, from: usize, to: usize) -> Result<(), Error> {
        let end = to.min(from + self.batch);
        let want = if end == to { Want::Last } else { Want::Nothing };
        self.session.begin(&self.ids[from..end], want)?;
        self.state = State::Prompt { from: end, to };
        Ok(())
    }

    /// Does at most `budget` units of work, as [`Session::step`] counts them.
    ///
    /// # Errors
    ///
    /// There is nothing to continue, or a value is not finite.
    pub fn step(&mut self, budget: usize) -> Result<Progress, Error> {
        let progress = self.advance(budget);
        if progress.is_err() {
            self.session.cancel();
            self.state = State::Idle;
        }
        progress
    }

    fn advance(&mut self, budget: usize) -> Result<Progress, Error> {
        match self.state {
            State::Idle => return Err(Error::Idle),
            State::Chosen(_) if self.session.remaining() == 0 => {
                self.state = State::Idle;
                return Ok(Progress::Full);
            }
            State::Chosen(id) => {
                self.session.begin(&[id], Want::Last)?;
                self.state = State::Reading;
            }
            State::Prompt { .. } | State::Reading => (),
        }
        match (self.session.step(budget)?, self.state) {
            (Step::Logits { .. }, _) => Ok(self.choose()),
            (Step::Done, State::Prompt { from, to }) => {
                self.begin_chunk(from, to)?;
                Ok(Progress::Pending)
            }
            _ => Ok(Progress::Pending),
        }
    }

    /// Chooses a token from the logits of the last position.
    fn choose(&mut self) -> Progress {
        let id = self.sampler.sample(self.session.logits(), self.candidates);
        let tokens = self.session.model().archive().special_tokens();
        if tokens.is_some_and(|tokens| tokens.stop_ids().any(|stop| stop == id)) {
            self.state = State::Idle;
            return Progress::Stop;
        }
        self.state = State::Chosen(id);
        Progress::Token(id)
    }

    /// Number of self-tests in the file for the cache that this module has, the native one.
    #[must_use]
    pub fn self_tests(&self) -> usize {
        native_tests(self.session.model()).count()
    }

    /// Replays one of them; true where the logits are the bits that the converter saw. What was read
    /// before is forgotten.
    ///
    /// # Errors
    ///
    /// There is no such test, or it is longer than the context.
    pub fn self_test(&mut self, index: usize) -> Result<bool, Error> {
        let case = native_tests(self.session.model()).nth(index);
        let case = case.ok_or(Error::SelfTest)?;
        self.reset();
        let ids = self.ids.get_mut(..case.ids().len());
        let ids = ids.ok_or(Error::SelfTest)?;
        ids.iter_mut().zip(case.ids()).for_each(|(to, id)| *to = id);
        let mut hash = LogitsHash::new();
        self.session.score(ids, |_, logits| hash.update(logits))?;
        self.reset();
        Ok(hash.finish() == case.logits_hash)
    }
}

fn native_tests<'w>(model: &Model<'w>) -> impl Iterator<Item = SelfTest<'w>> + use<'w> {
    let tests = model.archive().self_tests();
    tests.filter(|case| case.kv == KvType::Native)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::header::Head;
    use crate::layout::{Layout, Options};
    use bitnet_runtime::{AlignedBuffer, Archive, LoadOptions, argmax};

    const PROMPT: [u32; 7] = [41, 84, 300, 7, 99, 12, 431];

    fn shipped() -> Vec<u8> {
        std::fs::read(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../models/austen-nano.btn"
        ))
        .unwrap()
    }

    /// Gives `body` a generator of the shipped model.
    fn with_generator<T>(
        context: u32,
        batch: u32,
        body: impl FnOnce(&mut Generator<'_, '_, '_>) -> T,
    ) -> T {
        let file = shipped();
        let archive = Archive::open(&file).unwrap();
        let model = Model::load(&archive, &mut [], &LoadOptions::default()).unwrap();
        let options = Options { context, batch };
        let head = Head {
            config: *archive.config(),
            packed: false,
        };
        let layout = Layout::new(&head, file.len() as u32, &options).unwrap();
        let mut kv = AlignedBuffer::zeroed(layout.kv_bytes);
        let mut scratch = AlignedBuffer::zeroed(layout.scratch_bytes);
        let mut ids = vec![0; layout.session.max_seq_len];
        let mut candidates = vec![Candidate::default(); archive.config().vocab_size];
        let buffers = (&mut *kv, &mut *scratch);
        let config = &layout.session;
        body(&mut Generator::new(&model, buffers, config, &mut ids, &mut candidates).unwrap())
    }

    fn generate(generator: &mut Generator<'_, '_, '_>, n: usize, budget: usize) -> Vec<u32> {
        generator.ids_mut()[..PROMPT.len()].copy_from_slice(&PROMPT);
        generator.prompt(PROMPT.len()).unwrap();
        let mut ids = Vec::new();
        while ids.len() < n {
            match generator.step(budget).unwrap() {
                Progress::Pending => (),
                Progress::Token(id) => ids.push(id),
                Progress::Stop | Progress::Full => break,
            }
        }
        ids
    }

    /// The plain way, without steps.
    fn expected(n: usize) -> Vec<u32> {
        let file = shipped();
        let archive = Archive::open(&file).unwrap();
        let model = Model::load(&archive, &mut [], &LoadOptions::default()).unwrap();
        let config = SessionConfig {
            max_seq_len: 64,
            prefill_batch: 7,
            kv: KvType::Native,
            threads: 1,
        };
        let plan = model.plan(&config).unwrap();
        let mut kv = AlignedBuffer::zeroed(plan.kv_bytes);
        let mut scratch = AlignedBuffer::zeroed(plan.scratch_bytes);
        let mut session = Session::new(&model, &mut kv, &mut scratch, &config).unwrap();
        let mut ids = vec![argmax(session.prefill(&PROMPT).unwrap())];
        while ids.len() < n {
            let last = ids[ids.len() - 1];
            ids.push(argmax(session.decode(last).unwrap()));
        }
        ids
    }

    #[test]
    fn tokens_do_not_depend_on_budgets_and_chunks() {
        let expected = expected(20);
        for (batch, budget) in [(1, 1), (3, 7), (7, 64), (32, usize::MAX)] {
            let ids = with_generator(64, batch, |g| generate(g, 20, budget));
            assert_eq!(ids, expected, "{batch} at a time, budget {budget}");
        }
    }

    #[test]
    fn the_context_ends_and_can_be_reset() {
        with_generator(12, 4, |generator| {
            let first = generate(generator, 99, 50);
            // The last token is chosen where nothing more can be read.
            assert_eq!(first.len(), 12 - PROMPT.len() + 1);
            assert_eq!(generator.step(1), Err(Error::Idle));
            assert!(generator.prompt(1).is_err());
            generator.reset();
            assert_eq!(generate(generator, 99, 1), first);
        });
    }

    #[test]
    fn bad_prompts_are_errors_and_change_nothing() {
        with_generator(16, 4, |generator| {
            generator.ids_mut()[15] = 512;
            assert!(matches!(
                generator.prompt(16),
                Err(Error::Run(RunError::Token { id: 512, .. }))
            ));
            assert!(matches!(
                generator.prompt(17),
                Err(Error::Run(RunError::ContextFull { .. }))
            ));
            assert_eq!(generator.prompt(0), Err(Error::Run(RunError::Empty)));
            assert_eq!(generator.step(1), Err(Error::Idle));
            generator.prompt(3).unwrap();
            assert_eq!(generator.prompt(3), Err(Error::Run(RunError::Busy)));
            assert_eq!(generator.position(), 0);
        });
    }

    #[test]
    fn seeds_choose_other_texts() {
        let text = |seed| {
            with_generator(64, 8, |generator| {
                generator.set_sampler(SamplerConfig {
                    temperature: 1.0,
                    seed,
                    ..SamplerConfig::default()
                });
                generate(generator, 20, 999)
            })
        };
        assert_eq!(text(1), text(1));
        assert_ne!(text(1), text(2));
    }

    #[test]
    fn self_tests_hold() {
        with_generator(0, 8, |generator| {
            let n = generator.self_tests();
            assert!(n > 0);
            for index in 0..n {
                assert_eq!(generator.self_test(index), Ok(true));
            }
            assert_eq!(generator.self_test(n), Err(Error::SelfTest));
        });
        with_generator(1, 1, |generator| {
            let last = generator.self_tests() - 1;
            assert_eq!(generator.self_test(last), Err(Error::SelfTest));
        });
    }
}

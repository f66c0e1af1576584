//! Loss and gradient of a batch.

use ndarray::{Axis, s};
use rayon::prelude::*;

use crate::model::attend;
use crate::model::block::Block;
use crate::model::sequence::{Keep, PartGrads, Piece, parts};
use crate::model::{Diverged, Model, Sequence, head_rows};
use crate::ops::bit_linear::{Sum, Term, gradient_jobs, run_jobs};
use crate::ops::dropout::Dropout;
use crate::ops::gemm::{Precision, gemm};
use crate::ops::simd::vectorized;
use crate::ops::target;
use crate::param::{Param, ParamKind};
use crate::real::Real;
use crate::tensor::{flat, flat_mut, row, row_mut, zeros};

use bitnet_formats::ModelConfig;

/// Logits that one job turns into losses.
const SOFTMAX_ELEMENTS: usize = 1 << 14;
/// Elements of a gradient that one job adds.
const ADD_ELEMENTS: usize = 1 << 16;
/// Columns of the gradient of the final norm's output that one job computes.
const HEAD_COLUMNS: usize = 256;

/// Inputs and targets of one sequence of a batch, equally long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// Token ids.
    pub inputs: Vec<u32>,
    /// The id that follows each input, or [`target::IGNORED`].
    pub targets: Vec<u32>,
}

/// Buffers to train on one sequence: its forward pass and its gradients.
#[derive(Clone, Debug)]
pub struct Worker<T> {
    seq: Sequence<T>,
    loss: f64,
    /// Of the rows of a piece.
    losses: Vec<f64>,
    grads: Vec<PartGrads<T>>,
}

impl<T: Real> Worker<T> {
    /// Buffers for `len` tokens, to keep all activations.
    #[must_use]
    pub fn new(config: &ModelConfig, len: usize) -> Self {
        Self::keeping(Keep::Activations, config, len)
    }

    /// Buffers for `len` tokens. What is kept changes no bit of the gradient.
    #[must_use]
    pub fn keeping(keep: Keep, config: &ModelConfig, len: usize) -> Self {
        let grads = parts(len).map(|rows| PartGrads::new(config, rows.len()));
        Self {
            seq: Sequence::to_train(config, len, keep),
            loss: 0.0,
            losses: vec![0.0; head_rows(config, len)],
            grads: grads.collect(),
        }
    }

    /// See [`Sequence::set_dropout`].
    pub fn set_dropout(&mut self, dropout: Dropout) {
        self.seq.set_dropout(dropout);
    }

    /// See [`Sequence::with_heads`].
    #[must_use]
    pub fn with_heads(mut self, heads: usize) -> Self {
        self.seq = self.seq.with_heads(heads);
        self
    }

    /// See [`Sequence::divided_by`].
    #[must_use]
    pub fn divided_by(mut self, end_of_text: Option<u32>) -> Self {
        self.seq = self.seq.divided_by(end_of_text);
        self
    }
}

impl<T: Real> Model<T> {
    /// Adds to every parameter's gradient that of `weight * (sum of losses)`; returns the sum of
    /// losses in nats.
    ///
    /// Runs on the current rayon pool. There are as many workers as examples. The gradient of this
    /// batch is summed on its own before it is added: what two batches give is the sum of what each
    /// gives alone, to the bit.
    ///
    /// # Errors
    ///
    /// [`Diverged`] if an activation is not finite; the gradients are then of no use.
    pub fn accumulate_gradient(
        &mut self,
        batch: &[Example],
        weight: T,
        workers: &mut [Worker<T>],
    ) -> Result<f64, Diverged> {
        assert_eq!(batch.len(), workers.len());
        let sum = match std::mem::replace(&mut self.has_gradient, true) {
            false => Sum::Fresh,
            true => Sum::Onto,
        };
        self.forward_all(batch, workers)?;
        self.set_aside(sum);
        self.head_gradient(batch, weight, workers);
        self.block_gradients(workers, sum)?;
        self.embedding_gradient(batch, workers);
        self.add_set_aside(sum);
        Ok(workers.iter().map(|worker| worker.loss).sum())
    }

    /// Forgets all gradients. What is to be overwritten is left as it is.
    pub fn zero_grad(&mut self) {
        self.has_gradient = false;
        let mut params = self.params_mut();
        params.retain(|param| param.kind == ParamKind::Gain);
        params.into_iter().for_each(Param::zero_grad);
    }

    /// Makes embedding and head ready for the gradient of one batch. Theirs comes in many pieces, so
    /// it needs a place of its own, where that of the blocks needs a tile.
    fn set_aside(&mut self, sum: Sum) {
        let mut params = vec![&mut self.embedding];
        params.extend(&mut self.head);
        if sum == Sum::Onto {
            let spare = |param: &&mut Param<T>| zeros(param.grad.nrows(), param.grad.ncols());
            if self.set_aside.is_empty() {
                self.set_aside = params.iter().map(spare).collect();
            }
            for (param, aside) in params.iter_mut().zip(&mut self.set_aside) {
                std::mem::swap(&mut param.grad, aside);
            }
        }
        // The head's gradient is overwritten; that of an embedding of its own is added to.
        if self.head.is_some() {
            self.embedding.zero_grad();
        }
    }

    /// Adds what [`Model::set_aside`] put aside.
    fn add_set_aside(&mut self, sum: Sum) {
        if sum != Sum::Onto {
            return;
        }
        let params = std::iter::once(&mut self.embedding).chain(&mut self.head);
        for (param, aside) in params.zip(&self.set_aside) {
            let rows = flat_mut(&mut param.grad).par_chunks_mut(ADD_ELEMENTS);
            let rows = rows.zip(flat(aside).par_chunks(ADD_ELEMENTS));
            rows.for_each(|(sum, before)| {
                sum.iter_mut().zip(before).for_each(|(y, x)| *y += *x);
            });
        }
    }

    fn forward_all(&self, batch: &[Example], workers: &mut [Worker<T>]) -> Result<(), Diverged> {
        let results: Vec<_> = workers
            .par_iter_mut()
            .zip(batch)
            .map(|(worker, example)| {
                worker.loss = 0.0;
                self.forward(&example.inputs, &mut worker.seq)
            })
            .collect();
        results.into_iter().collect()
    }

    /// Losses, head gradient and that of the final norm's output, a piece of every sequence at a
    /// time.
    fn head_gradient(&mut self, batch: &[Example], weight: T, workers: &mut [Worker<T>]) {
        let mut sum = Sum::Fresh;
        for piece in workers[0].seq.pieces() {
            let of_worker = |(worker, example): (&mut Worker<T>, &Example)| {
                let targets = &example.targets[piece.positions.clone()];
                self.piece_gradient(&piece, targets, weight, worker);
            };
            workers.par_iter_mut().zip(batch).for_each(of_worker);
            let terms: Vec<_> = workers
                .iter()
                .map(|worker| {
                    let hidden = &worker.seq.parts[piece.part].last.activations;
                    Term {
                        d_y: worker.seq.logits.slice(s![..piece.rows.len(), ..]),
                        scales: &[],
                        x: hidden.codes.operand().rows(piece.rows.clone()),
                    }
                })
                .collect();
            let head = self.head.as_mut().unwrap_or(&mut self.embedding);
            let mut jobs = Vec::new();
            gradient_jobs(&mut head.grad, &terms, Precision::F32, &mut jobs);
            run_jobs(jobs, sum);
            sum = Sum::Further;
        }
    }

    /// Adds the losses of a piece to its worker's; logits become their gradient, and that of the
    /// final norm's output follows.
    fn piece_gradient(&self, piece: &Piece, targets: &[u32], weight: T, worker: &mut Worker<T>) {
        self.piece_logits(piece, &mut worker.seq);
        let vocab_size = self.config.vocab_size;
        let losses = &mut worker.losses[..targets.len()];
        let jobs = flat_mut(&mut worker.seq.logits).par_chunks_mut(vocab_size);
        let jobs = jobs.zip(targets.par_iter()).zip(losses.par_iter_mut());
        jobs.with_min_len(SOFTMAX_ELEMENTS.div_ceil(vocab_size))
            .for_each(|((logits, of_position), loss)| {
                *loss = vectorized!(target::loss_and_gradient(logits, *of_position, weight));
            });
        worker.loss += worker.losses[..targets.len()].iter().sum::<f64>();

        let head = &self.head.as_ref().unwrap_or(&self.embedding).value;
        let d_logits = worker.seq.logits.slice(s![..targets.len(), ..]);
        let d_last = &mut worker.grads[piece.part].last;
        let mut d_last = d_last.slice_mut(s![piece.rows.clone(), ..]);
        let columns = d_last.axis_chunks_iter_mut(Axis(1), HEAD_COLUMNS);
        let jobs = columns.zip(head.axis_chunks_iter(Axis(1), HEAD_COLUMNS));
        let jobs: Vec<_> = jobs.collect();
        jobs.into_par_iter().for_each(|(d_last, head)| {
            gemm(T::one(), d_logits, head, T::zero(), d_last);
        });
    }

    /// Final norm, then the blocks from the last to the first: all sequences through a block, then
    /// its weight gradients.
    fn block_gradients(&mut self, workers: &mut [Worker<T>], sum: Sum) -> Result<(), Diverged> {
        let final_norm = &mut self.final_norm;
        workers.par_iter_mut().for_each(|worker| {
            let parts = worker.seq.parts.par_iter_mut();
            parts.zip(&mut worker.grads).for_each(|(part, grads)| {
                grads.hidden.fill(T::zero());
                let (tape, d_x) = (&mut part.last, &mut grads.hidden);
                final_norm.backward(&part.hidden, &grads.last, tape, d_x);
            });
        });
        let parts = workers.iter().flat_map(|worker| &worker.seq.parts);
        final_norm.collect_gradient(parts.map(|part| &part.last));
        for i in (0..self.blocks.len()).rev() {
            let of_worker = |worker: &mut Worker<T>| self.block_backward(i, worker);
            workers.par_iter_mut().try_for_each(of_worker)?;
            collect_block(&mut self.blocks[i], i, workers, sum);
        }
        Ok(())
    }

    /// Carries the gradient of a sequence's residual stream back through block `i`.
    fn block_backward(&self, i: usize, worker: &mut Worker<T>) -> Result<(), Diverged> {
        let (block, seq, grads) = (&self.blocks[i], &mut worker.seq, &mut worker.grads);
        let tapes = seq.log_sum_exp.len();
        let tape = i % tapes;
        // The one tape of a sequence that keeps inputs only is that of the last block to begin with.
        if tapes < self.blocks.len() && i + 1 < self.blocks.len() {
            self.fill_tape(i, seq)?;
        }
        let parts = seq.parts.par_iter_mut().zip(&mut *grads);
        parts.for_each(|(part, grads)| {
            let tape = &mut part.tapes[tape];
            block.backward_to_heads(&mut grads.hidden, tape, &mut grads.block);
        });
        let (heads, log_sum_exp) = (&mut seq.heads, &seq.log_sum_exp[tape]);
        attend::backward(
            block.attention(),
            &seq.parts,
            grads,
            tape,
            heads,
            log_sum_exp,
        );
        let parts = seq.parts.par_iter_mut().zip(grads);
        parts.for_each(|(part, grads)| {
            let (input, tape) = (&part.inputs[i], &mut part.tapes[tape]);
            let (d_h, grads) = (&mut grads.hidden, &mut grads.block);
            block.backward_from_heads(d_h, input, &self.rope, part.first, tape, grads);
        });
        Ok(())
    }

    /// Adds each position's gradient to the row of its token.
    fn embedding_gradient(&mut self, batch: &[Example], workers: &[Worker<T>]) {
        for (worker, example) in workers.iter().zip(batch) {
            for (part, grads) in worker.seq.parts.iter().zip(&worker.grads) {
                let ids = &example.inputs[part.first..];
                for (t, id) in ids.iter().take(grads.hidden.nrows()).enumerate() {
                    let sum = row_mut(&mut self.embedding.grad, *id as usize);
                    let d_row = row(&grads.hidden, t);
                    vectorized!(sum.iter_mut().zip(d_row).for_each(|(sum, d)| *sum += *d));
                }
            }
        }
    }
}

fn collect_block<T: Real>(block: &mut Block<T>, i: usize, workers: &[Worker<T>], sum: Sum) {
    let parts = |worker: &'_ Worker<T>| worker.seq.parts.len();
    let mut terms = Vec::with_capacity(workers.iter().map(parts).sum());
    for worker in workers {
        let parts = worker.seq.parts.iter().zip(&worker.grads);
        terms.extend(parts.map(|(part, grads)| (&part.tapes[i % part.tapes.len()], &grads.block)));
    }
    let mut jobs = Vec::new();
    block.collect_gradients(&terms, &mut jobs);
    run_jobs(jobs, sum);
}

//! Loss and gradient of a batch.

use ndarray::{Array2, s};
use rayon::prelude::*;

use crate::model::block::{Block, BlockGrads};
use crate::model::{Diverged, Model, Sequence};
use crate::ops::bit_linear::{Term, gradient_jobs, run_jobs};
use crate::ops::cross_entropy;
use crate::ops::gemm::{Precision, gemm};
use crate::ops::simd::vectorized;
use crate::real::Real;
use crate::tensor::{row, row_mut, zeros};

use bitnet_formats::ModelConfig;

/// Inputs and targets of one sequence of a batch, equally long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// Token ids.
    pub inputs: Vec<u32>,
    /// The id that follows each input.
    pub targets: Vec<u32>,
}

/// Buffers to train on one sequence: its forward pass and its gradients.
#[derive(Clone, Debug)]
pub struct Worker<T> {
    seq: Sequence<T>,
    loss: f64,
    /// Gradient of the residual stream, `[len, hidden_size]`.
    d_hidden: Array2<T>,
    /// Gradient of the final norm's output, `[len, hidden_size]`.
    d_last: Array2<T>,
    grads: BlockGrads<T>,
}

impl<T: Real> Worker<T> {
    /// Buffers for `len` tokens.
    #[must_use]
    pub fn new(config: &ModelConfig, len: usize) -> Self {
        Self {
            seq: Sequence::to_train(config, len),
            loss: 0.0,
            d_hidden: zeros(len, config.hidden_size),
            d_last: zeros(len, config.hidden_size),
            grads: BlockGrads::new(config, len),
        }
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
    /// Runs on the current rayon pool. There are as many workers as examples.
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
        self.forward_all(batch, workers)?;
        self.head_gradient(batch, weight, workers);
        self.block_gradients(workers);
        self.embedding_gradient(batch, workers);
        Ok(workers.iter().map(|worker| worker.loss).sum())
    }

    /// Forgets all gradients.
    pub fn zero_grad(&mut self) {
        let mut params = self.params_mut();
        params.par_iter_mut().for_each(|param| param.zero_grad());
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

    /// Losses, head gradient and `d_last`, a piece of every sequence at a time.
    fn head_gradient(&mut self, batch: &[Example], weight: T, workers: &mut [Worker<T>]) {
        let pieces: Vec<_> = workers[0].seq.pieces().collect();
        for piece in pieces {
            workers
                .par_iter_mut()
                .zip(batch)
                .for_each(|(worker, example)| {
                    self.piece_logits(&piece, &mut worker.seq);
                    for (i, target) in example.targets[piece.clone()].iter().enumerate() {
                        let logits = row_mut(&mut worker.seq.logits, i);
                        let target = *target as usize;
                        worker.loss +=
                            vectorized!(cross_entropy::loss_and_gradient(logits, target, weight));
                    }
                    let d_logits = worker.seq.logits.slice(s![..piece.len(), ..]);
                    let d_last = worker.d_last.slice_mut(s![piece.clone(), ..]);
                    let head = self.head.as_ref().unwrap_or(&self.embedding);
                    gemm(T::one(), d_logits, head.value.view(), T::zero(), d_last);
                });
            let terms: Vec<_> = workers
                .iter()
                .map(|worker| Term {
                    d_y: worker.seq.logits.slice(s![..piece.len(), ..]),
                    scales: &[],
                    x: worker
                        .seq
                        .last
                        .activations
                        .codes
                        .operand()
                        .rows(piece.clone()),
                })
                .collect();
            let head = self.head.as_mut().unwrap_or(&mut self.embedding);
            let mut jobs = Vec::new();
            gradient_jobs(&mut head.grad, &terms, Precision::F32, &mut jobs);
            run_jobs(jobs);
        }
    }

    /// Final norm, then the blocks from the last to the first: all sequences through a block, then
    /// its weight gradients.
    fn block_gradients(&mut self, workers: &mut [Worker<T>]) {
        let (final_norm, rope) = (&mut self.final_norm, &self.rope);
        workers.par_iter_mut().for_each(|worker| {
            worker.d_hidden.fill(T::zero());
            let (seq, d_last) = (&mut worker.seq, &worker.d_last);
            final_norm.backward(&seq.hidden, d_last, &mut seq.last, &mut worker.d_hidden);
        });
        for worker in workers.iter() {
            final_norm.collect_gradient(&worker.seq.last);
        }
        for (i, block) in self.blocks.iter_mut().enumerate().rev() {
            workers.par_iter_mut().for_each(|worker| {
                let Sequence { tapes, head, .. } = &mut worker.seq;
                let (d_hidden, grads) = (&mut worker.d_hidden, &mut worker.grads);
                block.backward(d_hidden, rope, &mut tapes[i], head, grads);
            });
            collect_block(block, i, workers);
        }
    }

    /// Adds each position's gradient to the row of its token.
    fn embedding_gradient(&mut self, batch: &[Example], workers: &[Worker<T>]) {
        for (worker, example) in workers.iter().zip(batch) {
            for (t, id) in example.inputs.iter().enumerate() {
                let sum = row_mut(&mut self.embedding.grad, *id as usize);
                let d_row = row(&worker.d_hidden, t);
                sum.iter_mut().zip(d_row).for_each(|(sum, d)| *sum += *d);
            }
        }
    }
}

fn collect_block<T: Real>(block: &mut Block<T>, i: usize, workers: &[Worker<T>]) {
    let terms: Vec<_> = workers
        .iter()
        .map(|worker| (&worker.seq.tapes[i], &worker.grads))
        .collect();
    let mut jobs = Vec::new();
    block.collect_gradients(&terms, &mut jobs);
    run_jobs(jobs);
}

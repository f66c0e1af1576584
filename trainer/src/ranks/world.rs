//! The processes of an MPI launch.
//!
//! All calls are made by the one thread that runs the step, so MPI must allow calls from a thread
//! that is not the first, and no more.

use mpi::Threading;
use mpi::collective::SystemOperation;
use mpi::environment::Universe;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives, Destination, Root, Source};

use crate::error::{Error, Result};
use crate::model::Model;

/// Elements that travel at once: enough to hide the latency, few enough for ranks to work at the
/// same time.
const CHUNK: usize = 1 << 18;

/// This process in the world of a launch. Dropping it leaves MPI.
pub(super) struct World {
    rank: usize,
    count: usize,
    on_this_machine: usize,
    _universe: Universe,
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "rank {} of {}", self.rank, self.count)
    }
}

impl World {
    pub(super) fn join() -> Result<Self> {
        let usage = |message: &str| Error::Usage(message.into());
        let joined = mpi::initialize_with_threading(Threading::Serialized);
        let (universe, threading) = joined.ok_or_else(|| usage("MPI was started before"))?;
        if threading < Threading::Serialized {
            let message = "this MPI cannot be called from a thread of a pool; it must be built with \
                           support for threads";
            return Err(usage(message));
        }
        let world = universe.world();
        Ok(Self {
            rank: world.rank() as usize,
            count: world.size() as usize,
            on_this_machine: world.split_shared(world.rank()).size() as usize,
            _universe: universe,
        })
    }

    pub(super) const fn count(&self) -> usize {
        self.count
    }

    pub(super) const fn rank(&self) -> usize {
        self.rank
    }

    pub(super) const fn on_this_machine(&self) -> usize {
        self.on_this_machine
    }

    pub(super) fn abort(&self, code: u8) -> ! {
        world().abort(code.into())
    }

    pub(super) fn of_first(&self, mut bits: u64) -> u64 {
        world().process_at_rank(0).broadcast_into(&mut bits);
        bits
    }

    pub(super) fn any(&self, flag: bool) -> bool {
        let mut any = 0u8;
        world().all_reduce_into(&u8::from(flag), &mut any, SystemOperation::max());
        any > 0
    }

    /// The numbers of all ranks, rank by rank.
    pub(super) fn gather(&self, own: &[f64]) -> Vec<f64> {
        let mut all = vec![0.0; own.len() * self.count];
        world().all_gather_into(own, &mut all[..]);
        all
    }

    /// Adds the sum of the ranks before to the gradient, and passes it to the next.
    pub(super) fn pass_on(&self, model: &mut Model<f32>) {
        let world = world();
        let mut before = vec![0.0f32; CHUNK];
        for_each_chunk(model, |chunk| {
            if self.rank > 0 {
                let before = &mut before[..chunk.len()];
                world
                    .process_at_rank(self.rank as i32 - 1)
                    .receive_into(before);
                chunk
                    .iter_mut()
                    .zip(before)
                    .for_each(|(own, sum)| *own += *sum);
            }
            if self.rank + 1 < self.count {
                world.process_at_rank(self.rank as i32 + 1).send(chunk);
            }
        });
    }

    pub(super) fn send(&self, model: &mut Model<f32>, to: usize) {
        let world = world();
        let to = world.process_at_rank(to as i32);
        for_each_chunk(model, |chunk| to.send(chunk));
    }

    pub(super) fn receive(&self, model: &mut Model<f32>, from: usize) {
        let world = world();
        let from = world.process_at_rank(from as i32);
        for_each_chunk(model, |chunk| {
            from.receive_into(chunk);
        });
    }

    /// The gradient of rank `from`, to all.
    pub(super) fn hand_out(&self, model: &mut Model<f32>, from: usize) {
        let world = world();
        let from = world.process_at_rank(from as i32);
        for_each_chunk(model, |chunk| from.broadcast_into(chunk));
    }
}

fn world() -> SimpleCommunicator {
    SimpleCommunicator::world()
}

/// All gradients, in the order of parameters, a chunk at a time.
fn for_each_chunk(model: &mut Model<f32>, mut visit: impl FnMut(&mut [f32])) {
    for gradient in model.gradients_mut() {
        gradient.chunks_mut(CHUNK).for_each(&mut visit);
    }
}

//! The processes that train one model together, over an MPI of the machine.
//!
//! Each rank holds the whole model and computes the gradient of its own micro-batches: micro-batch
//! `i` of a step is rank `i mod N`'s. A round of N micro-batches is summed in their order: the sum so
//! far goes from rank to rank, each adds its own, and the last hands it on. A sum of two numbers
//! does not depend on which of them was there first, so N ranks compute the very bits of one rank
//! that takes all micro-batches itself. Every rank then takes the same step.
//!
//! Only the first rank writes files and speaks. An error on any rank ends all.

#[cfg(feature = "mpi")]
#[path = "world.rs"]
mod world;
#[cfg(not(feature = "mpi"))]
#[path = "no_world.rs"]
mod world;

use crate::data::Fingerprint;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::ranks::world::World;

/// What a launcher of several processes tells each of how many there are.
const LAUNCHED: [&str; 3] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS"];

/// This process among those that train together.
#[derive(Debug)]
pub struct Ranks {
    /// None for a process alone.
    world: Option<World>,
}

impl Ranks {
    /// A process that trains by itself.
    #[must_use]
    pub const fn alone() -> Self {
        Self { world: None }
    }

    /// Joins the processes that were launched together. To be called once.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] if there are several and this program cannot speak with them.
    pub fn join() -> Result<Self> {
        let sizes = LAUNCHED.iter().filter_map(|name| std::env::var(name).ok());
        let launched = sizes.filter_map(|size| size.parse::<usize>().ok()).max();
        match launched {
            Some(2..) => World::join().map(|world| Self { world: Some(world) }),
            _ => Ok(Self::alone()),
        }
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.world.as_ref().map_or(1, World::count)
    }

    /// Which this is, from 0.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.world.as_ref().map_or(0, World::rank)
    }

    /// How many share the memory of this machine.
    #[must_use]
    pub fn on_this_machine(&self) -> usize {
        self.world.as_ref().map_or(1, World::on_this_machine)
    }

    /// True for the one that writes files and speaks.
    #[must_use]
    pub fn is_first(&self) -> bool {
        self.rank() == 0
    }

    /// Ends all ranks.
    pub fn abort(&self, code: u8) -> ! {
        match &self.world {
            Some(world) => world.abort(code),
            None => std::process::exit(code.into()),
        }
    }

    /// Checks that all ranks have what the first has; `what` names it in the message.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] on the ranks that do not.
    pub fn agree(&self, what: &str, own: &str) -> Result<()> {
        let Some(world) = &self.world else {
            return Ok(());
        };
        let own = Fingerprint::of(own).value();
        if world.of_first(own) == own {
            return Ok(());
        }
        Err(Error::Usage(format!(
            "rank {}: {what} is not that of rank 0; all ranks must get the same command and see the \
             same files",
            self.rank()
        )))
    }

    /// The first rank's number, on all.
    #[must_use]
    pub fn share(&self, number: Option<f64>) -> Option<f64> {
        let Some(world) = &self.world else {
            return number;
        };
        let bits = world.of_first(number.unwrap_or(f64::NAN).to_bits());
        Some(f64::from_bits(bits)).filter(|number| !number.is_nan())
    }

    /// True on all ranks if it is on one.
    #[must_use]
    pub fn any(&self, flag: bool) -> bool {
        self.world.as_ref().map_or(flag, |world| world.any(flag))
    }

    /// Returns when all ranks have come here: what one may then write, the others have read.
    pub fn wait(&self) {
        let _ = self.any(false);
    }

    /// Micro-batches of a step for each rank.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] if they cannot be shared evenly.
    pub fn rounds(&self, accumulation: usize) -> Result<usize> {
        let n = self.count();
        if accumulation.is_multiple_of(n) {
            return Ok(accumulation / n);
        }
        Err(Error::Usage(format!(
            "train.accumulation is {accumulation}, the micro-batches of a step, which {n} ranks \
             cannot share evenly; --set train.accumulation={} gives each {}",
            accumulation.next_multiple_of(n),
            accumulation.div_ceil(n)
        )))
    }

    /// Before micro-batch `round` of this rank: makes the model's gradient what it is to be added to.
    pub fn begin_round(&self, round: usize, model: &mut Model<f32>) {
        match &self.world {
            // The sum so far comes back from the last rank.
            Some(world) if round > 0 && self.is_first() => world.receive(model, self.count() - 1),
            Some(_) => model.zero_grad(),
            None if round == 0 => model.zero_grad(),
            None => {}
        }
    }

    /// After it: adds up the ranks' gradients in order. After the last round all ranks have the sum.
    pub fn end_round(&self, is_last: bool, model: &mut Model<f32>) {
        let Some(world) = &self.world else {
            return;
        };
        world.pass_on(model);
        match (is_last, self.rank() + 1 == self.count()) {
            (true, _) => world.hand_out(model, self.count() - 1),
            (false, true) => world.send(model, 0),
            (false, false) => {}
        }
    }

    /// The losses of all micro-batches of a step, in order, from those of this rank's.
    #[must_use]
    pub fn losses(&self, own: &[f64]) -> Vec<f64> {
        let Some(world) = &self.world else {
            return own.to_vec();
        };
        let by_rank = world.gather(own);
        let (rounds, n) = (own.len(), self.count());
        (0..rounds * n)
            .map(|i| by_rank[i % n * rounds + i / n])
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_alone_has_nobody_to_wait_for() {
        let ranks = Ranks::alone();
        assert_eq!(
            (ranks.count(), ranks.rank(), ranks.is_first()),
            (1, 0, true)
        );
        assert!(ranks.agree("the text", "x").is_ok());
        assert_eq!(
            (ranks.share(None), ranks.share(Some(2.0))),
            (None, Some(2.0))
        );
        assert!(ranks.any(true) && !ranks.any(false));
        assert_eq!(ranks.rounds(3).unwrap(), 3);
        assert_eq!(ranks.losses(&[1.0, 2.0]), [1.0, 2.0]);
    }
}

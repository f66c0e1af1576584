//! Built without MPI: there are no other processes to speak with.

use crate::error::{Error, Result};
use crate::model::Model;

/// Nothing: a value of this type would prove that this program speaks MPI.
#[derive(Debug)]
pub(super) enum World {}

impl World {
    pub(super) fn join() -> Result<Self> {
        Err(Error::Usage(
            "this program was started as one of several processes, but was built without MPI; build \
             it with --features mpi, or start it alone"
                .into(),
        ))
    }

    pub(super) const fn count(&self) -> usize {
        match *self {}
    }

    pub(super) const fn rank(&self) -> usize {
        match *self {}
    }

    pub(super) const fn on_this_machine(&self) -> usize {
        match *self {}
    }

    pub(super) const fn abort(&self, _code: u8) -> ! {
        match *self {}
    }

    pub(super) const fn of_first(&self, _bits: u64) -> u64 {
        match *self {}
    }

    pub(super) const fn any(&self, _flag: bool) -> bool {
        match *self {}
    }

    pub(super) const fn gather(&self, _own: &[f64]) -> Vec<f64> {
        match *self {}
    }

    pub(super) const fn pass_on(&self, _model: &mut Model<f32>) {
        match *self {}
    }

    pub(super) const fn send(&self, _model: &mut Model<f32>, _to: usize) {
        match *self {}
    }

    pub(super) const fn receive(&self, _model: &mut Model<f32>, _from: usize) {
        match *self {}
    }

    pub(super) const fn hand_out(&self, _model: &mut Model<f32>, _from: usize) {
        match *self {}
    }
}

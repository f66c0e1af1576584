//! Where ternary weights are while running.

use anyhow::Result;
use bitnet_runtime::{
    Archive, Kernels, LoadOptions, Model, TernaryLayout, WeightHold, weight_plan,
};

use crate::args::Hold;
use crate::layout_choice;
use crate::output;
use crate::weight_memory::WeightMemory;

/// How weights are held, decided.
#[derive(Clone, Debug)]
pub(crate) struct Decision {
    asked: Hold,
    hold: WeightHold,
    /// Why `fast` came to this.
    pub(crate) reason: Option<String>,
}

impl Decision {
    /// Decides; `fast` measures. Where there is no room for a copy that was left open, says so.
    pub(crate) fn new(
        asked: Hold,
        archive: &Archive<'_>,
        kernels: Kernels,
        threads: usize,
    ) -> Result<Self> {
        let (hold, reason) = match asked {
            Hold::Low => (WeightHold::InPlace, None),
            Hold::T5 => (WeightHold::Copy(TernaryLayout::T5R16), None),
            Hold::T2 => (WeightHold::Copy(TernaryLayout::T2R16), None),
            Hold::Fast => {
                let choice = layout_choice::choose(archive, kernels, threads)?;
                (choice.hold, Some(choice.reason))
            }
        };
        if let (WeightHold::InPlace, Some(reason)) = (hold, &reason) {
            output::note(format_args!("weights stay in the mapped file: {reason}"));
        }
        Ok(Self {
            asked,
            hold,
            reason,
        })
    }

    pub(crate) const fn options(&self) -> LoadOptions {
        LoadOptions { hold: self.hold }
    }

    /// The option that was given.
    pub(crate) const fn asked(&self) -> &'static str {
        self.asked.name()
    }

    /// The option that names what came of it.
    pub(crate) const fn name(&self) -> &'static str {
        match self.hold {
            WeightHold::InPlace => Hold::Low.name(),
            WeightHold::Copy(layout) => layout.name(),
        }
    }

    /// What is to be said behind the bytes of the copy: its layout, and why.
    pub(crate) fn remark(&self) -> String {
        match (self.hold, &self.reason) {
            (WeightHold::InPlace, _) => String::new(),
            (WeightHold::Copy(layout), None) => format!(" ({})", layout.name()),
            (WeightHold::Copy(layout), Some(reason)) => format!(" ({}; {reason})", layout.name()),
        }
    }

    /// Bytes of the copy.
    pub(crate) fn bytes(&self, archive: &Archive<'_>) -> Result<usize> {
        Ok(weight_plan(archive.config(), &self.options())?)
    }
}

/// The decision and the memory it needs.
pub(crate) struct Weights {
    pub(crate) decision: Decision,
    memory: WeightMemory,
}

impl Weights {
    pub(crate) fn new(decision: Decision, archive: &Archive<'_>) -> Result<Self> {
        let memory = WeightMemory::zeroed(decision.bytes(archive)?)?;
        Ok(Self { decision, memory })
    }

    /// Copies what is to be copied.
    pub(crate) fn load<'w>(
        &'w mut self,
        archive: &Archive<'w>,
        kernels: Kernels,
    ) -> Result<Model<'w>> {
        let model = Model::load(archive, &mut self.memory, &self.decision.options())?;
        Ok(model.with_kernels(kernels))
    }
}

//! Where ternary weights are while running.

use anyhow::{Result, bail};
use bitnet_formats::Dtype;
use bitnet_runtime::{
    Archive, Kernels, LoadOptions, Model, Sampler, TensorRole, TernaryLayout, Threads, Want,
    WeightHold, weight_plan,
};

use crate::args::{Args, Hold};
use crate::layout_choice;
use crate::machine;
use crate::output;
use crate::weight_memory::WeightMemory;

/// How weights are held, decided.
#[derive(Clone, Debug)]
pub(crate) struct Decision {
    asked: Hold,
    hold: WeightHold,
    coarse_head: bool,
    threads: usize,
    /// The file is packed: weights are decoded.
    pub(crate) packed: bool,
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
        if asked == Hold::Low && archive.has_packed() {
            bail!(
                "the file is packed and cannot run in place: use --weights t5, t2 or fast, or convert it \
                 with bitnet-convert --pack t5"
            );
        }
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
            coarse_head: false,
            threads,
            packed: archive.has_packed(),
            reason,
        })
    }

    /// Decides for a run of these options.
    pub(crate) fn of_run(args: &Args, archive: &Archive<'_>) -> Result<Self> {
        Self::new(args.hold(archive), archive, args.kernels(), args.threads())
    }

    /// Decides for a run that continues a prompt.
    pub(crate) fn of_generation(args: &Args, archive: &Archive<'_>) -> Result<Self> {
        let decision = Self::of_run(args, archive)?;
        match Sampler::new(args.sampler()).wants() {
            Want::Best => decision.for_best_tokens(archive),
            _ => Ok(decision),
        }
    }

    /// For a run that wants the best tokens only: with `fast`, a coarse head as well, where the model
    /// can have one and there is room.
    pub(crate) fn for_best_tokens(self, archive: &Archive<'_>) -> Result<Self> {
        if self.asked != Hold::Fast || !has_int8_head(archive) {
            return Ok(self);
        }
        let with_head = Self {
            coarse_head: true,
            ..self.clone()
        };
        let fits = |bytes| machine::spare_memory().is_none_or(|room| bytes <= room);
        let bytes = weight_plan(archive, &with_head.options());
        Ok(match bytes {
            Ok(bytes) if fits(bytes) => with_head,
            _ => self,
        })
    }

    pub(crate) const fn options(&self) -> LoadOptions {
        LoadOptions {
            hold: self.hold,
            coarse_head: self.coarse_head,
        }
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

    /// What is to be said behind the bytes of the copy: its layout, what it is made from, and why.
    pub(crate) fn remark(&self) -> String {
        let layout = match self.hold {
            WeightHold::InPlace => None,
            WeightHold::Copy(layout) => Some(layout.name()),
        };
        let head = self.coarse_head.then_some("coarse head");
        let reason = self.reason.as_deref().filter(|_| layout.is_some());
        let parts = [layout, self.origin(), head, reason];
        let parts: Vec<_> = parts.into_iter().flatten().collect();
        match parts.is_empty() {
            true => String::new(),
            false => format!(" ({})", parts.join("; ")),
        }
    }

    /// What the copy is made from, where that is not to be expected.
    pub(crate) fn origin(&self) -> Option<&'static str> {
        self.packed.then_some("decoded: the file is packed")
    }

    /// Bytes of the copy.
    pub(crate) fn bytes(&self, archive: &Archive<'_>) -> Result<usize> {
        Ok(weight_plan(archive, &self.options())?)
    }
}

fn has_int8_head(archive: &Archive<'_>) -> bool {
    let role = match archive.config().tie_embeddings {
        true => TensorRole::Embedding,
        false => TensorRole::Head,
    };
    let head = archive.matrix(role);
    head.is_some_and(|head| head.dtype == Dtype::I8Rows)
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

    /// Copies what is to be copied, or decodes it, on the threads it is for.
    pub(crate) fn load<'w>(
        &'w mut self,
        archive: &Archive<'w>,
        kernels: Kernels,
    ) -> Result<Model<'w>> {
        let threads = Threads::new(self.decision.threads);
        let options = self.decision.options();
        let model = Model::load_on(&threads, archive, &mut self.memory, &options)?;
        Ok(model.with_kernels(kernels))
    }
}

//! A loaded model: views of its weights.

use bitnet_formats::{
    Archive, MatrixView, ModelConfig, TensorClass, TensorRole, TernaryLayout, TernaryView,
    VectorView,
};

use crate::buffers::lend;
use crate::coarse_head::{self, CoarseHead};
use crate::departures::Gains;
use crate::error::{Buffer, RunError};
use crate::kernels::Kernels;
use crate::load;
#[cfg(feature = "std")]
use crate::parallel::Threads;
use crate::plan::{MemoryPlan, SessionConfig};

/// How ternary weights are held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeightHold {
    /// Where they are, in the layout of the file.
    #[default]
    InPlace,
    /// Copied to a buffer in this layout. No bit of any result depends on it.
    Copy(TernaryLayout),
}

/// Options of [`Model::load`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadOptions {
    /// How ternary weights are held.
    pub hold: WeightHold,
    /// Whether a coarse copy of an int8 head is made, which [`Want::Best`](crate::Want::Best) reads
    /// instead of the head: three quarters of its bytes, and the rows that the copy leaves open.
    pub coarse_head: bool,
}

/// A model ready to run. Shared by any number of sessions; `'w` is the life of the file's bytes and
/// of the weight buffer.
#[derive(Clone, Copy, Debug)]
pub struct Model<'w> {
    archive: Archive<'w>,
    copy: Option<(TernaryLayout, &'w [u8])>,
    coarse_head: Option<CoarseHead<'w>>,
    kernels: Kernels,
}

/// The weights of one block.
#[derive(Clone, Copy)]
pub(crate) struct Block<'w> {
    pub(crate) attn_norm: Option<VectorView<'w>>,
    pub(crate) q: TernaryView<'w>,
    pub(crate) kv: KvProjection<'w>,
    pub(crate) attn_sub_norm: Option<VectorView<'w>>,
    pub(crate) o: TernaryView<'w>,
    pub(crate) ffn_norm: Option<VectorView<'w>>,
    pub(crate) gate: TernaryView<'w>,
    pub(crate) up: TernaryView<'w>,
    pub(crate) ffn_sub_norm: Option<VectorView<'w>>,
    pub(crate) down: TernaryView<'w>,
    pub(crate) in_linear: InLinear<'w>,
    /// Norms of each query head and of each key head.
    pub(crate) qk_norm: Option<[VectorView<'w>; 2]>,
    /// Projections of each rotated query head and key head, and the norms inside them.
    pub(crate) qk_latent: Option<[(TernaryView<'w>, Option<VectorView<'w>>); 2]>,
}

/// Gains of the norms inside the linears of a block, by what the linears read.
#[derive(Clone, Copy, Default)]
pub(crate) struct InLinear<'w> {
    pub(crate) qkv: Gains<'w>,
    pub(crate) o: Gains<'w>,
    pub(crate) gate_up: Gains<'w>,
    pub(crate) down: Gains<'w>,
}

/// How keys and values are made.
#[derive(Clone, Copy)]
pub(crate) enum KvProjection<'w> {
    Grouped {
        k: TernaryView<'w>,
        v: TernaryView<'w>,
    },
    Latent {
        kv_a: TernaryView<'w>,
        kv_a_norm: VectorView<'w>,
        key: TernaryView<'w>,
        value: TernaryView<'w>,
    },
}

impl WeightHold {
    /// What takes the least memory: in place, or T5 where the file is packed.
    #[must_use]
    pub fn smallest(archive: &Archive<'_>) -> Self {
        match archive.has_packed() {
            true => Self::Copy(TernaryLayout::T5R16),
            false => Self::InPlace,
        }
    }
}

impl LoadOptions {
    /// The options that take the least memory.
    #[must_use]
    pub fn smallest(archive: &Archive<'_>) -> Self {
        Self {
            hold: WeightHold::smallest(archive),
            coarse_head: false,
        }
    }
}

/// Bytes the weight buffer of [`Model::load`] needs; zero in place.
///
/// # Errors
///
/// The weights exceed the address space, the file is packed and cannot be used in place, or the model
/// can have no coarse head.
pub fn weight_plan(archive: &Archive<'_>, options: &LoadOptions) -> Result<usize, RunError> {
    if options.hold == WeightHold::InPlace && archive.has_packed() {
        return Err(RunError::PackedInPlace);
    }
    let config = archive.config();
    let copy = copied_bytes(config, options.hold)?;
    let head = match options.coarse_head {
        true => coarse_head::plan(config)?,
        false => 0,
    };
    copy.checked_add(head).ok_or(RunError::TooLarge)
}

fn copied_bytes(config: &ModelConfig, hold: WeightHold) -> Result<usize, RunError> {
    match hold {
        WeightHold::InPlace => Ok(0),
        WeightHold::Copy(layout) => copy_plan(config, layout),
    }
}

/// Bytes of a copy of the ternary weights in a layout: what [`weight_plan`] comes to while there is no
/// more of a file than its configuration.
///
/// # Errors
///
/// The weights exceed the address space.
pub fn copy_plan(config: &ModelConfig, layout: TernaryLayout) -> Result<usize, RunError> {
    let bytes = ternary_shapes(config).map(|(rows, cols)| layout.packed_bytes(rows, cols));
    usize::try_from(bytes.sum::<u64>()).map_err(|_| RunError::TooLarge)
}

fn ternary_shapes(config: &ModelConfig) -> impl Iterator<Item = (usize, usize)> + '_ {
    let ternary = config
        .tensors()
        .filter(|t| t.role.class() == TensorClass::Ternary);
    ternary.map(|t| (t.rows, t.cols))
}

impl<'w> Model<'w> {
    /// Loads a model. `buffer` is lent for weights that are not used in place and has
    /// [`weight_plan`] bytes, aligned to 64.
    ///
    /// # Errors
    ///
    /// The buffer is too small or not aligned; the file is packed and the weights were to be used in
    /// place, or a packed tensor is damaged; or a coarse head was asked for and the head is not of int8
    /// rows.
    pub fn load(
        archive: &Archive<'w>,
        buffer: &'w mut [u8],
        options: &LoadOptions,
    ) -> Result<Self, RunError> {
        Self::load_by(archive, buffer, options, load::copy_weights)
    }

    /// As [`load`](Self::load), with weights decoded and copied on all threads of a pool. Not a bit
    /// depends on their number.
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load).
    #[cfg(feature = "std")]
    pub fn load_on(
        threads: &Threads,
        archive: &Archive<'w>,
        buffer: &'w mut [u8],
        options: &LoadOptions,
    ) -> Result<Self, RunError> {
        Self::load_by(archive, buffer, options, |archive, layout, weights| {
            load::copy_weights_on(threads, archive, layout, weights)
        })
    }

    fn load_by(
        archive: &Archive<'w>,
        buffer: &'w mut [u8],
        options: &LoadOptions,
        copy_weights: impl FnOnce(&Archive<'w>, TernaryLayout, &mut [u8]) -> Result<(), RunError>,
    ) -> Result<Self, RunError> {
        let needed = weight_plan(archive, options)?;
        let buffer = match needed {
            0 => &mut [],
            _ => lend(Buffer::Weights, buffer, needed)?,
        };
        let (weights, head) = buffer.split_at_mut(copied_bytes(archive.config(), options.hold)?);
        let copy = match options.hold {
            WeightHold::InPlace => None,
            WeightHold::Copy(layout) => {
                copy_weights(archive, layout, weights)?;
                Some((layout, &*weights))
            }
        };
        let model = Self {
            archive: *archive,
            copy,
            coarse_head: None,
            kernels: Kernels::detect(),
        };
        match options.coarse_head {
            true => model.with_coarse_head(head),
            false => Ok(model),
        }
    }

    fn with_coarse_head(self, buffer: &'w mut [u8]) -> Result<Self, RunError> {
        let coarse_head = Some(CoarseHead::new(&self.head(), buffer)?);
        Ok(Self {
            coarse_head,
            ..self
        })
    }

    /// The same model on another set of kernels.
    #[must_use]
    pub fn with_kernels(self, kernels: Kernels) -> Self {
        Self { kernels, ..self }
    }

    /// The model's shape.
    #[must_use]
    pub const fn config(&self) -> &ModelConfig {
        self.archive.config()
    }

    /// The file it was loaded from.
    #[must_use]
    pub const fn archive(&self) -> &Archive<'w> {
        &self.archive
    }

    /// The kernels it runs on.
    #[must_use]
    pub const fn kernels(&self) -> &Kernels {
        &self.kernels
    }

    /// The exact bytes a session needs.
    ///
    /// # Errors
    ///
    /// The options do not fit the model.
    pub fn plan(&self, session: &SessionConfig) -> Result<MemoryPlan, RunError> {
        MemoryPlan::new(self.config(), session)
    }

    pub(crate) fn block(&self, layer: usize) -> Block<'w> {
        use TensorRole as R;
        let ternary = |role| self.ternary(role, Some(layer));
        let vector = |role| self.vector(role, Some(layer));
        let optional = |role| self.config().has(role).then(|| vector(role));
        let config = self.config();
        let kv = if self.config().has(R::KvA) {
            KvProjection::Latent {
                kv_a: ternary(R::KvA),
                kv_a_norm: vector(R::KvANorm),
                key: ternary(R::KvBKey),
                value: ternary(R::KvBValue),
            }
        } else {
            KvProjection::Grouped {
                k: ternary(R::K),
                v: ternary(R::V),
            }
        };
        Block {
            attn_norm: optional(R::AttnNorm),
            q: ternary(R::Q),
            kv,
            attn_sub_norm: optional(R::AttnSubNorm),
            o: ternary(R::O),
            ffn_norm: optional(R::FfnNorm),
            gate: ternary(R::Gate),
            up: ternary(R::Up),
            ffn_sub_norm: optional(R::FfnSubNorm),
            down: ternary(R::Down),
            in_linear: InLinear {
                qkv: [
                    optional(R::QInputNorm),
                    optional(R::KInputNorm),
                    optional(R::VInputNorm),
                ],
                o: [optional(R::OInputNorm), None, None],
                gate_up: [optional(R::GateInputNorm), optional(R::UpInputNorm), None],
                down: [optional(R::DownInputNorm), None, None],
            },
            qk_norm: config
                .norms
                .qk_norm
                .then(|| [R::QHeadNorm, R::KHeadNorm].map(vector)),
            qk_latent: config.qk_latent_dim.map(|_| {
                let roles = [
                    (R::LatentQ, R::LatentQInputNorm),
                    (R::LatentK, R::LatentKInputNorm),
                ];
                roles.map(|(weights, norm)| (ternary(weights), optional(norm)))
            }),
        }
    }

    /// The BitLinear that makes the logits, and the gain inside it; `None` where that is dense.
    pub(crate) fn ternary_head(&self) -> Option<(TernaryView<'w>, Option<VectorView<'w>>)> {
        let norm = TensorRole::HeadInputNorm;
        let head = self.config().has(TensorRole::TernaryHead);
        head.then(|| {
            let gain = self.config().has(norm).then(|| self.vector(norm, None));
            (self.ternary(TensorRole::TernaryHead, None), gain)
        })
    }

    pub(crate) fn embedding(&self) -> MatrixView<'w> {
        self.archive.matrix(TensorRole::Embedding).expect(PRESENT)
    }

    /// The matrix that makes logits, `[vocab_size, hidden_size]`: the embedding where they are tied.
    #[must_use]
    pub fn head(&self) -> MatrixView<'w> {
        let role = match self.config().tie_embeddings {
            true => TensorRole::Embedding,
            false => TensorRole::Head,
        };
        self.archive.matrix(role).expect(PRESENT)
    }

    /// The coarse copy of the head. Machines without room for it are known to have none.
    #[inline(always)]
    pub(crate) fn coarse_head(&self) -> Option<CoarseHead<'w>> {
        self.coarse_head.filter(|_| !cfg!(small_core))
    }

    /// Bytes of the coarse copy of the head; zero where there is none.
    #[must_use]
    pub fn coarse_head_bytes(&self) -> usize {
        let bytes = |_| coarse_head::plan(self.config()).unwrap_or(0);
        self.coarse_head.map_or(0, bytes)
    }

    /// Every ternary matrix as it is held, block by block.
    pub fn ternary_matrices(&self) -> impl Iterator<Item = (TensorRole, TernaryView<'w>)> + '_ {
        let tensors = self.config().tensors();
        let ternary = tensors.filter(|spec| spec.role.class() == TensorClass::Ternary);
        ternary.map(|spec| (spec.role, self.ternary(spec.role, spec.layer)))
    }

    pub(crate) fn rope_inv_freq(&self) -> VectorView<'w> {
        self.vector(TensorRole::RopeInvFreq, None)
    }

    pub(crate) fn final_norm(&self) -> VectorView<'w> {
        self.vector(TensorRole::FinalNorm, None)
    }

    fn vector(&self, role: TensorRole, layer: Option<usize>) -> VectorView<'w> {
        self.archive.vector(role, layer).expect(PRESENT)
    }

    fn ternary(&self, role: TensorRole, layer: Option<usize>) -> TernaryView<'w> {
        let stored = self.archive.ternary(role, layer);
        match self.copy {
            None => stored.expect(PRESENT),
            Some((layout, bytes)) => {
                let shape_and_scale = match stored {
                    Some(view) => Some(((view.rows, view.cols), view.scale)),
                    None if cfg!(feature = "packed") => self.archive.ternary_shape(role, layer),
                    None => None,
                };
                let (shape, scale) = shape_and_scale.expect(PRESENT);
                let start = copy_offset(self.config(), layout, role, layer);
                let bytes = &bytes[start..][..layout.packed_bytes(shape.0, shape.1) as usize];
                TernaryView::new(layout, shape, scale, bytes).expect(PRESENT)
            }
        }
    }
}

/// `Archive::open` accepts only files with every tensor of their configuration.
const PRESENT: &str = "opened archives have every tensor";

/// Where a tensor stands in the weight buffer: tensors in file order, end to end.
fn copy_offset(
    config: &ModelConfig,
    layout: TernaryLayout,
    role: TensorRole,
    layer: Option<usize>,
) -> usize {
    let bytes = |role| {
        let (rows, cols) = config.shape(role);
        layout.packed_bytes(rows, cols) as usize
    };
    let ternary = || {
        config
            .block_roles()
            .filter(|r| r.class() == TensorClass::Ternary)
    };
    let block: usize = ternary().map(bytes).sum();
    let Some(layer) = layer else {
        // The one ternary tensor outside the blocks is the head, after them.
        return config.n_layers * block;
    };
    layer * block
        + ternary()
            .take_while(|r| *r != role)
            .map(bytes)
            .sum::<usize>()
}

//! Weights into the weight buffer: packed again in another layout, or decoded.

#[cfg(feature = "packed")]
use bitnet_formats::PackedView;
use bitnet_formats::{Archive, TensorClass, TernaryLayout, TernaryView};

use crate::error::RunError;
#[cfg(feature = "std")]
use crate::parallel::Threads;
#[cfg(feature = "packed")]
use crate::repack::expand_in_place;
use crate::repack::repack;

/// A part of the weights that is brought into the buffer on its own.
enum Part<'w> {
    /// A whole matrix.
    Matrix(TernaryView<'w>),
    /// A chunk of a packed matrix.
    #[cfg(feature = "packed")]
    Chunk {
        view: PackedView<'w>,
        index: usize,
        /// The matrix's place in the tensor table.
        tensor: usize,
    },
}

impl Part<'_> {
    fn bring(&self, layout: TernaryLayout, to: &mut [u8]) -> Result<(), RunError> {
        match self {
            Self::Matrix(from) => repack(from, layout, to),
            #[cfg(feature = "packed")]
            Self::Chunk {
                view,
                index,
                tensor,
            } => {
                let decoded = view.decode_chunk(*index, &view.tables(), to);
                decoded.map_err(|_| RunError::Packed { tensor: *tensor })?;
                if layout == TernaryLayout::T2R16 {
                    let groups = to.chunks_exact_mut(layout.group_bytes(view.cols()));
                    groups.for_each(|group| expand_in_place(group, view.cols()));
                }
            }
        }
        Ok(())
    }
}

/// Fills the weight buffer: tensors in file order, each where one of the configuration's full shape has
/// room.
pub(crate) fn copy_weights(
    archive: &Archive<'_>,
    layout: TernaryLayout,
    buffer: &mut [u8],
) -> Result<(), RunError> {
    for_each_part(archive, layout, buffer, |part, to| part.bring(layout, to))
}

/// The same on all threads of a pool.
#[cfg(feature = "std")]
pub(crate) fn copy_weights_on(
    threads: &Threads,
    archive: &Archive<'_>,
    layout: TernaryLayout,
    buffer: &mut [u8],
) -> Result<(), RunError> {
    use std::sync::{Mutex, PoisonError};

    let mut parts = std::vec::Vec::new();
    for_each_part(archive, layout, buffer, |part, to| {
        parts.push((part, to));
        Ok(())
    })?;
    let queue = Mutex::new(parts.into_iter());
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    let failed = Mutex::new(None);
    threads.run(&|_| {
        while let Some((part, to)) = next() {
            if let Err(error) = part.bring(layout, to) {
                *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            }
        }
    });
    let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    failed.map_or(Ok(()), Err)
}

/// Visits all parts, each with the bytes that become of it.
fn for_each_part<'w, 'b>(
    archive: &Archive<'w>,
    layout: TernaryLayout,
    mut buffer: &'b mut [u8],
    mut visit: impl FnMut(Part<'w>, &'b mut [u8]) -> Result<(), RunError>,
) -> Result<(), RunError> {
    let config = archive.config();
    let tensors = archive.tensors().enumerate();
    for (tensor, (spec, _)) in
        tensors.filter(|(_, (spec, _))| spec.role.class() == TensorClass::Ternary)
    {
        let (rows, cols) = config.shape(spec.role);
        let room = layout.packed_bytes(rows, cols) as usize;
        let (room, rest) = core::mem::take(&mut buffer).split_at_mut(room);
        buffer = rest;
        let to = &mut room[..layout.packed_bytes(spec.rows, spec.cols) as usize];
        if let Some(from) = archive.ternary(spec.role, spec.layer) {
            visit(Part::Matrix(from), to)?;
            continue;
        }
        #[cfg(feature = "packed")]
        {
            let packed = archive.packed(spec.role, spec.layer);
            let Some(Ok(view)) = packed else {
                return Err(RunError::Packed { tensor });
            };
            for_each_chunk(view, tensor, layout, to, &mut visit)?;
        }
        #[cfg(not(feature = "packed"))]
        let _ = tensor;
    }
    Ok(())
}

#[cfg(feature = "packed")]
fn for_each_chunk<'w, 'b>(
    view: PackedView<'w>,
    tensor: usize,
    layout: TernaryLayout,
    mut to: &'b mut [u8],
    visit: &mut impl FnMut(Part<'w>, &'b mut [u8]) -> Result<(), RunError>,
) -> Result<(), RunError> {
    for index in 0..view.n_chunks() {
        let bytes = view.chunk_groups(index).len() * layout.group_bytes(view.cols());
        let (chunk, rest) = core::mem::take(&mut to).split_at_mut(bytes);
        to = rest;
        let part = Part::Chunk {
            view,
            index,
            tensor,
        };
        visit(part, chunk)?;
    }
    Ok(())
}

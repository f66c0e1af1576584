//! Files with their ternary tensors packed.

use std::io::{Cursor, Write};

use bitnet_formats::packed::encode;
use bitnet_formats::{Archive, ArchiveWriter, SectionKind, TernaryView};
use bitnet_runtime::{TernaryLayout, repack};

/// The same file with every ternary tensor packed.
///
/// # Panics
///
/// If the file is not valid.
#[must_use]
pub fn packed(file: &[u8]) -> Vec<u8> {
    let archive = Archive::open(file).expect("a valid file");
    let widths: Vec<usize> = (0..archive.config().n_layers)
        .map(|layer| archive.ffn_width(layer))
        .collect();
    let kinds = archive
        .sections()
        .map(|entry| SectionKind::from_code(entry.kind));
    let sections: Vec<(SectionKind, &[u8])> = kinds
        .map(|kind| kind.expect("known sections"))
        .filter(|kind| !kind.is_required())
        .map(|kind| (kind, archive.section(kind).expect("listed")))
        .collect();
    let sink = Cursor::new(Vec::new());
    let writer = ArchiveWriter::with_ffn_widths(sink, archive.config(), &widths, &sections);
    let mut writer = writer.expect("the same file");
    for (spec, entry) in archive.tensors() {
        if let Some(view) = archive.ternary(spec.role, spec.layer) {
            let payload = encode_any(&view);
            let bytes = payload.len() as u64;
            writer
                .begin_packed(bytes, view.scale)
                .expect("a legal tensor");
            writer.write_all(&payload).expect("room for the payload");
        } else {
            let dtype = bitnet_formats::Dtype::from_code(entry.dtype).expect("a type");
            let payload = &file[entry.offset as usize..][..entry.bytes as usize];
            writer
                .begin_tensor(dtype, entry.scale)
                .expect("a legal tensor");
            writer.write_all(payload).expect("room for the payload");
        }
    }
    let sink = writer.finish().expect("all tensors").into_inner();
    sink.into_inner()
}

fn encode_any(view: &TernaryView<'_>) -> Vec<u8> {
    let layout = TernaryLayout::T5R16;
    let mut t5 = vec![0; layout.packed_bytes(view.rows, view.cols) as usize];
    repack(view, layout, &mut t5);
    let shape = (view.rows, view.cols);
    encode(&TernaryView::new(layout, shape, view.scale, &t5).expect("repacked to fit"))
}

//! Reading a `.btn` file from borrowed bytes.

use core::ops::Range;

use crate::chat::ChatTables;
use crate::config::ModelConfig;
use crate::dtype::{Dtype, MatrixView, VectorView, align_up};
#[cfg(feature = "packed")]
use crate::error::PackedError;
use crate::error::{Covered, FormatError, TensorProblem};
use crate::header::{
    MAGIC, NO_LAYER, PREAMBLE_BYTES, Preamble, SECTION_ENTRY_BYTES, SectionEntry,
    TENSOR_ENTRY_BYTES, TensorEntry, check_crc, header_bytes,
};
use crate::metadata::{self, SelfTests, SpecialTokens};
#[cfg(feature = "packed")]
use crate::packed::PackedView;
use crate::schema::{FfnAxis, TensorClass, TensorRole, TensorSpec};
use crate::section::SectionKind;
use crate::ternary::TernaryView;
use crate::tokenizer::TokenizerTables;

/// An opened file. Owns nothing: `'w` is the life of the mapped file, flash or array.
///
/// [`open`](Self::open) checks everything that later accesses rely on, in time linear in the
/// number of tensors; [`verify`](Self::verify) reads every byte.
///
/// ```
/// use bitnet_formats::Archive;
/// let error = Archive::open(b"not a model").unwrap_err();
/// assert!(error.to_string().contains("not a .btn file"));
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Archive<'w> {
    bytes: &'w [u8],
    preamble: Preamble,
    config: ModelConfig,
}

impl<'w> Archive<'w> {
    /// Opens a file: preamble, tables, configuration, and the place, shape and type of all tensors.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong. Nothing is allocated, and no input can make it panic.
    pub fn open(bytes: &'w [u8]) -> Result<Self, FormatError> {
        let preamble = open_preamble(bytes)?;
        let tables = bytes
            .get(PREAMBLE_BYTES..index(preamble.header_bytes(), bytes)?)
            .ok_or(truncated(preamble.header_bytes(), bytes))?;
        check_crc(
            Covered::Tables,
            preamble.tables_crc,
            crc32fast::hash(tables),
        )?;
        check_sections(bytes, &preamble)?;
        let config = metadata::decode_config(required(bytes, &preamble, SectionKind::Config)?)?;
        let archive = Self {
            bytes,
            preamble,
            config,
        };
        archive.check_tensors()?;
        archive.check_metadata()?;
        Ok(archive)
    }

    /// The model's shape.
    #[must_use]
    pub const fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The whole file.
    #[must_use]
    pub const fn bytes(&self) -> &'w [u8] {
        self.bytes
    }

    /// The preamble.
    #[must_use]
    pub const fn preamble(&self) -> &Preamble {
        &self.preamble
    }

    /// The section table.
    pub fn sections(&self) -> impl Iterator<Item = SectionEntry> + 'w {
        section_table(self.bytes, &self.preamble)
    }

    /// The tensor table, each entry with what the configuration says it is.
    pub fn tensors(&self) -> impl Iterator<Item = (TensorSpec, TensorEntry)> + '_ {
        let entries = self.tensor_table().map(TensorEntry::read);
        let mut width = self.config.intermediate_size;
        self.config
            .tensors()
            .zip(entries)
            .map(move |(spec, entry)| {
                width = block_width(&self.config, &spec, &entry, width);
                (spec.with_ffn_width(width), entry)
            })
    }

    /// Feed-forward neurons of a block.
    #[must_use]
    pub fn ffn_width(&self, layer: usize) -> usize {
        let full = self.config.intermediate_size;
        if !self.config.pruned_ffn {
            return full;
        }
        let gate = self.payload(TensorRole::Gate, Some(layer));
        gate.map_or(full, |(entry, _)| entry.rows as usize)
    }

    fn shape(&self, role: TensorRole, layer: Option<usize>) -> (usize, usize) {
        let (rows, cols) = self.config.shape(role);
        match (role.ffn_axis(), layer) {
            (Some(FfnAxis::Rows), Some(layer)) => (self.ffn_width(layer), cols),
            (Some(FfnAxis::Cols), Some(layer)) => (rows, self.ffn_width(layer)),
            _ => (rows, cols),
        }
    }

    /// The bytes of a section.
    #[must_use]
    pub fn section(&self, kind: SectionKind) -> Option<&'w [u8]> {
        find_section(self.bytes, &self.preamble, kind)
    }

    /// A section that is UTF-8 text; `None` where there is none or the kind is not text.
    #[must_use]
    pub fn text(&self, kind: SectionKind) -> Option<&'w str> {
        let bytes = kind.is_text().then(|| self.section(kind))??;
        core::str::from_utf8(bytes).ok()
    }

    /// Begin-of-text and stop ids.
    #[must_use]
    pub fn special_tokens(&self) -> Option<SpecialTokens<'w>> {
        SpecialTokens::decode(self.section(SectionKind::SpecialTokens)?).ok()
    }

    /// The tokenizer, where the file has one. It is opened here and not with the file: a program that
    /// is given token ids carries no code for it.
    ///
    /// # Errors
    ///
    /// As [`TokenizerTables::open`].
    pub fn tokenizer(&self) -> Result<Option<TokenizerTables<'w>>, FormatError> {
        let section = self.section(SectionKind::Tokenizer);
        section.map(TokenizerTables::open).transpose()
    }

    /// The chat template, where the file has one that is compiled.
    ///
    /// # Errors
    ///
    /// As [`ChatTables::open`].
    pub fn chat(&self) -> Result<Option<ChatTables<'w>>, FormatError> {
        self.section(SectionKind::Chat)
            .map(ChatTables::open)
            .transpose()
    }

    /// The self-test vectors; none where the file has no such section.
    #[must_use]
    pub fn self_tests(&self) -> SelfTests<'w> {
        let bytes = self.section(SectionKind::SelfTest).unwrap_or(&[]);
        SelfTests::decode(bytes, &self.config).expect("checked by open")
    }

    /// A ternary tensor in a layout that runs in place, or `None` where the model has no such tensor or
    /// it is packed.
    #[must_use]
    pub fn ternary(&self, role: TensorRole, layer: Option<usize>) -> Option<TernaryView<'w>> {
        let (entry, payload) = self.payload(role, layer)?;
        match Dtype::from_code(entry.dtype)? {
            Dtype::Ternary(layout) => {
                TernaryView::new(layout, self.shape(role, layer), entry.scale, payload)
            }
            _ => None,
        }
    }

    /// A packed ternary tensor, or `None` where the model has no such tensor or it is not packed.
    ///
    /// # Errors
    ///
    /// The head of its payload cannot be read: what [`open`](Self::open) leaves to decoding.
    #[cfg(feature = "packed")]
    #[must_use]
    pub fn packed(
        &self,
        role: TensorRole,
        layer: Option<usize>,
    ) -> Option<Result<PackedView<'w>, PackedError>> {
        let (entry, payload) = self.payload(role, layer)?;
        let packed = entry.dtype == Dtype::Packed.code();
        packed.then(|| PackedView::new(self.shape(role, layer), entry.scale, payload))
    }

    /// True where a ternary tensor is packed, so that weights cannot be used in place.
    #[must_use]
    pub fn has_packed(&self) -> bool {
        let packed = |(_, entry): (_, TensorEntry)| entry.dtype == Dtype::Packed.code();
        cfg!(feature = "packed") && self.tensors().any(packed)
    }

    /// Shape `(rows, cols)` and scale of a ternary tensor, however it is stored.
    #[must_use]
    pub fn ternary_shape(
        &self,
        role: TensorRole,
        layer: Option<usize>,
    ) -> Option<((usize, usize), f32)> {
        let (entry, _) = self.payload(role, layer)?;
        let ternary = role.class() == TensorClass::Ternary;
        ternary.then(|| (self.shape(role, layer), entry.scale))
    }

    /// A dense matrix, or `None` where the model has no such tensor.
    #[must_use]
    pub fn matrix(&self, role: TensorRole) -> Option<MatrixView<'w>> {
        let (entry, payload) = self.payload(role, None)?;
        MatrixView::new(
            Dtype::from_code(entry.dtype)?,
            self.config.shape(role),
            payload,
        )
    }

    /// A vector, or `None` where the model has no such tensor.
    #[must_use]
    pub fn vector(&self, role: TensorRole, layer: Option<usize>) -> Option<VectorView<'w>> {
        let (entry, payload) = self.payload(role, layer)?;
        (entry.dtype == Dtype::F32.code()).then(|| VectorView::new(payload))
    }

    fn payload(&self, role: TensorRole, layer: Option<usize>) -> Option<(TensorEntry, &'w [u8])> {
        let index = self.config.tensor_index(role, layer)?;
        let entry = TensorEntry::read(self.tensor_table_slice().get(index)?);
        Some((entry, range(self.bytes, entry.offset, entry.bytes).ok()?))
    }

    fn tensor_table_slice(&self) -> &'w [[u8; TENSOR_ENTRY_BYTES]] {
        let start = header_bytes(u64::from(self.preamble.n_sections), 0) as usize;
        let table = self.bytes.get(start..self.preamble.header_bytes() as usize);
        table.unwrap_or(&[]).as_chunks().0
    }

    fn tensor_table(&self) -> impl Iterator<Item = &'w [u8; TENSOR_ENTRY_BYTES]> {
        self.tensor_table_slice().iter()
    }

    /// The table must be exactly the tensors of the configuration, end to end.
    fn check_tensors(&self) -> Result<(), FormatError> {
        let (expected, found) = (self.config.tensor_count(), self.preamble.n_tensors as usize);
        if expected != found {
            return Err(FormatError::TensorCount { expected, found });
        }
        let weights = section_entry(self.bytes, &self.preamble, SectionKind::Weights)
            .ok_or(FormatError::MissingSection(SectionKind::Weights))?;
        let mut end = weights.offset;
        let table = header_bytes(u64::from(self.preamble.n_sections), 0);
        let mut width = self.config.intermediate_size;
        for (index, (spec, bytes)) in self.config.tensors().zip(self.tensor_table()).enumerate() {
            let base = table + (index * TENSOR_ENTRY_BYTES) as u64;
            let entry = TensorEntry::decode(bytes, base)?;
            let problem = |problem| FormatError::Tensor { index, problem };
            width = block_width(&self.config, &spec, &entry, width);
            let spec = spec.with_ffn_width(width);
            let place = check_tensor(&spec, &entry, end).map_err(problem)?;
            end = place.end;
        }
        if end != weights.offset + weights.bytes {
            return Err(FormatError::SectionContent(SectionKind::Weights));
        }
        Ok(())
    }

    /// Sections that accessors decode again, and text, are decoded once here.
    fn check_metadata(&self) -> Result<(), FormatError> {
        if let Some(bytes) = self.section(SectionKind::SpecialTokens) {
            SpecialTokens::decode(bytes)?;
        }
        if let Some(bytes) = self.section(SectionKind::SelfTest) {
            SelfTests::decode(bytes, &self.config)?;
        }
        for kind in SectionKind::ALL.into_iter().filter(|kind| kind.is_text()) {
            if self.section(kind).is_some() && self.text(kind).is_none() {
                return Err(FormatError::SectionContent(kind));
            }
        }
        Ok(())
    }
}

/// Feed-forward neurons of the block a tensor belongs to: the rows of its gate, which stands before all
/// others that count them, where they are some and no more than the configuration allows.
fn block_width(
    config: &ModelConfig,
    spec: &TensorSpec,
    entry: &TensorEntry,
    width: usize,
) -> usize {
    let (full, rows) = (config.intermediate_size, entry.rows as usize);
    if spec.role != TensorRole::Gate {
        return width;
    }
    if config.pruned_ffn && (1..=full).contains(&rows) {
        rows
    } else {
        full
    }
}

fn open_preamble(bytes: &[u8]) -> Result<Preamble, FormatError> {
    let found = bytes.len() as u64;
    let Some(first) = bytes.first_chunk() else {
        let signed = bytes.starts_with(&MAGIC[..bytes.len().min(MAGIC.len())]);
        let cut = truncated(PREAMBLE_BYTES as u64, bytes);
        return Err(if signed { cut } else { FormatError::NotBtn });
    };
    let preamble = Preamble::decode(first)?;
    match preamble.file_bytes {
        needed if needed > found => Err(truncated(needed, bytes)),
        stated if stated < found => Err(FormatError::TrailingBytes { stated, found }),
        _ => Ok(preamble),
    }
}

/// Sections must follow each other, each on the next multiple of 64, to the end of the file.
fn check_sections(bytes: &[u8], preamble: &Preamble) -> Result<(), FormatError> {
    let mut end = preamble.header_bytes();
    let mut seen = [false; SectionKind::ALL.len()];
    let table = bytes.get(PREAMBLE_BYTES..).unwrap_or(&[]).as_chunks().0;
    for (index, raw) in table.iter().take(preamble.n_sections as usize).enumerate() {
        let entry = SectionEntry::decode(raw, index)?;
        let expected = align_up(end).unwrap_or(u64::MAX);
        if entry.offset != expected {
            let found = entry.offset;
            return Err(FormatError::SectionPlace {
                index,
                expected,
                found,
            });
        }
        range(bytes, entry.offset, entry.bytes)?;
        end = entry.offset + entry.bytes;
        check_kind(&entry, &mut seen)?;
    }
    if end != preamble.file_bytes {
        let (stated, found) = (end, preamble.file_bytes);
        return Err(FormatError::TrailingBytes { stated, found });
    }
    Ok(())
}

fn check_kind(
    entry: &SectionEntry,
    seen: &mut [bool; SectionKind::ALL.len()],
) -> Result<(), FormatError> {
    match SectionKind::ALL
        .iter()
        .position(|kind| *kind as u32 == entry.kind)
    {
        None if entry.required => Err(FormatError::UnknownSection { kind: entry.kind }),
        None => Ok(()),
        Some(i) if seen[i] => Err(FormatError::DuplicateSection(SectionKind::ALL[i])),
        Some(i) => {
            seen[i] = true;
            Ok(())
        }
    }
}

/// Checks one entry against its specification; returns the range it occupies.
fn check_tensor(
    spec: &TensorSpec,
    entry: &TensorEntry,
    end: u64,
) -> Result<Range<u64>, TensorProblem> {
    let layer = spec.layer.map_or(NO_LAYER, |layer| layer as u16);
    if (entry.role, entry.layer) != (spec.role as u16, layer) {
        return Err(TensorProblem::Identity);
    }
    if (entry.rows as usize, entry.cols as usize) != (spec.rows, spec.cols) {
        let (expected, found) = ((spec.rows, spec.cols), (entry.rows, entry.cols));
        return Err(TensorProblem::Shape { expected, found });
    }
    let class = spec.role.class();
    let dtype = Dtype::from_code(entry.dtype)
        .filter(|dtype| dtype.fits(class))
        .ok_or(TensorProblem::Dtype(entry.dtype))?;
    if entry.granularity != 0 {
        return Err(TensorProblem::Granularity(entry.granularity));
    }
    check_scale(class, entry.scale)?;
    if dtype == Dtype::Packed && !cfg!(feature = "packed") {
        return Err(TensorProblem::NoPacked);
    }
    let offset = align_up(end).unwrap_or(u64::MAX);
    let most = dtype.payload_bytes(spec.rows, spec.cols);
    let bytes = match dtype {
        Dtype::Packed => {
            let least = dtype.min_payload_bytes(spec.rows, spec.cols);
            entry.bytes.clamp(least, most)
        }
        _ => most,
    };
    if (entry.offset, entry.bytes) != (offset, bytes) {
        let (expected, found) = ((offset, bytes), (entry.offset, entry.bytes));
        return Err(TensorProblem::Place { expected, found });
    }
    // Shapes are capped, so a payload is far below 2^60; only the offset could overflow.
    let end = offset.checked_add(bytes).ok_or(TensorProblem::Identity)?;
    Ok(offset..end)
}

fn check_scale(class: TensorClass, scale: f32) -> Result<(), TensorProblem> {
    let valid = match class {
        TensorClass::Ternary => scale.is_finite() && scale > 0.0,
        TensorClass::Matrix | TensorClass::Vector => scale.to_bits() == 0,
    };
    if valid {
        Ok(())
    } else {
        Err(TensorProblem::Scale(scale))
    }
}

fn section_table<'w>(
    bytes: &'w [u8],
    preamble: &Preamble,
) -> impl Iterator<Item = SectionEntry> + use<'w> {
    let table: &[[u8; SECTION_ENTRY_BYTES]] =
        bytes.get(PREAMBLE_BYTES..).unwrap_or(&[]).as_chunks().0;
    let entries = table.iter().take(preamble.n_sections as usize).enumerate();
    entries.filter_map(|(index, raw)| SectionEntry::decode(raw, index).ok())
}

fn section_entry(bytes: &[u8], preamble: &Preamble, kind: SectionKind) -> Option<SectionEntry> {
    section_table(bytes, preamble).find(|entry| entry.kind == kind as u32)
}

fn find_section<'w>(bytes: &'w [u8], preamble: &Preamble, kind: SectionKind) -> Option<&'w [u8]> {
    let entry = section_entry(bytes, preamble, kind)?;
    range(bytes, entry.offset, entry.bytes).ok()
}

fn required<'w>(
    bytes: &'w [u8],
    preamble: &Preamble,
    kind: SectionKind,
) -> Result<&'w [u8], FormatError> {
    find_section(bytes, preamble, kind).ok_or(FormatError::MissingSection(kind))
}

/// The bytes at an offset of the file.
pub(crate) fn range(bytes: &[u8], offset: u64, len: u64) -> Result<&[u8], FormatError> {
    let end = offset.saturating_add(len);
    let range = index(offset, bytes)?..index(end, bytes)?;
    bytes.get(range).ok_or(truncated(end, bytes))
}

fn index(at: u64, bytes: &[u8]) -> Result<usize, FormatError> {
    usize::try_from(at).map_err(|_| truncated(at, bytes))
}

fn truncated(needed: u64, bytes: &[u8]) -> FormatError {
    FormatError::Truncated {
        needed,
        found: bytes.len() as u64,
    }
}

#[cfg(all(test, not(feature = "packed")))]
mod without_packed {
    use super::*;

    /// The shipped model, with a tensor that claims to be packed.
    #[test]
    fn a_packed_tensor_is_refused_by_the_name_of_the_feature() {
        let mut file = include_bytes!("../../models/austen-nano.btn").to_vec();
        let archive = Archive::open(&file).unwrap();
        let mut preamble = archive.preamble;
        let ternary = |(spec, _): (TensorSpec, _)| spec.role.class() == TensorClass::Ternary;
        let index = archive.tensors().position(ternary).unwrap();
        let entry = header_bytes(u64::from(preamble.n_sections), index as u64) as usize;
        file[entry + 4] = Dtype::Packed.code();
        let tables = PREAMBLE_BYTES..preamble.header_bytes() as usize;
        preamble.tables_crc = crc32fast::hash(&file[tables]);
        file[..PREAMBLE_BYTES].copy_from_slice(&preamble.encode());
        let problem = TensorProblem::NoPacked;
        let error = Archive::open(&file).unwrap_err();
        assert_eq!(error, FormatError::Tensor { index, problem });
        let message = std::format!("{error}");
        assert!(message.contains("the feature packed"), "{message}");
    }
}

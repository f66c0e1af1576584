//! Writing a `.btn` file as a stream.

use std::io::{self, Seek, SeekFrom, Write};
use std::vec::Vec;

use crc32fast::Hasher;

use crate::config::ModelConfig;
use crate::dtype::{ALIGNMENT, Dtype};
use crate::header::{NO_LAYER, PREAMBLE_BYTES, Preamble, SectionEntry, TensorEntry, header_bytes};
use crate::metadata::{MAX_CONFIG_BYTES, encode_config};
use crate::schema::{TensorClass, TensorSpec};
use crate::section::SectionKind;

/// Writes one file: small sections first, then the tensors in the order of
/// [`ModelConfig::tensors`], then the header over the room left for it.
///
/// Equal calls give equal bytes. Writing to a temporary file, reading it back and renaming it is
/// the caller's part.
///
/// ```
/// # use std::io::{Cursor, Write};
/// use bitnet_formats::{Archive, ArchiveWriter, Dtype, Preset, TensorClass, TernaryLayout};
///
/// let mut writer = ArchiveWriter::new(Cursor::new(Vec::new()), &Preset::Nano.config(), &[])?;
/// while let Some(spec) = writer.next_tensor() {
///     let (dtype, scale) = match spec.role.class() {
///         TensorClass::Ternary => (Dtype::Ternary(TernaryLayout::T5R16), 1.0),
///         _ => (Dtype::F32, 0.0),
///     };
///     writer.begin_tensor(dtype, scale)?;
///     writer.write_all(&vec![0; dtype.payload_bytes(spec.rows, spec.cols) as usize])?;
/// }
/// let file = writer.finish()?.into_inner().into_inner();
/// Archive::open(&file)?.verify()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct ArchiveWriter<W> {
    out: W,
    specs: Vec<TensorSpec>,
    sections: Vec<SectionEntry>,
    tensors: Vec<TensorEntry>,
    /// Checksum of the sections and their padding so far.
    body: Hasher,
    /// Checksum of the weights so far.
    weights: Hasher,
    /// Bytes written so far, header room included.
    position: u64,
    /// Payload bytes the current tensor still needs.
    missing: u64,
}

impl<W: Write + Seek> ArchiveWriter<W> {
    /// Begins a file with the configuration and these sections.
    ///
    /// # Errors
    ///
    /// The configuration is not valid, a section is one the writer makes itself or comes twice, or
    /// writing fails.
    pub fn new(
        out: W,
        config: &ModelConfig,
        sections: &[(SectionKind, &[u8])],
    ) -> io::Result<Self> {
        let widths = std::vec![config.intermediate_size; config.n_layers];
        Self::with_ffn_widths(out, config, &widths, sections)
    }

    /// The same for blocks with these numbers of feed-forward neurons; they may differ from
    /// `intermediate_size` where `pruned_ffn` is set.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new), or the widths do not fit the configuration.
    pub fn with_ffn_widths(
        mut out: W,
        config: &ModelConfig,
        widths: &[usize],
        sections: &[(SectionKind, &[u8])],
    ) -> io::Result<Self> {
        config.validate().map_err(invalid)?;
        let full = config.intermediate_size;
        let legal =
            |width: &usize| *width == full || (config.pruned_ffn && (1..=full).contains(width));
        if widths.len() != config.n_layers || !widths.iter().all(legal) {
            return Err(invalid(
                "the widths of the blocks do not fit the configuration",
            ));
        }
        let width = |spec: &TensorSpec| spec.layer.map_or(full, |layer| widths[layer]);
        let tensors = config.tensors();
        let specs: Vec<_> = tensors
            .map(|spec| spec.with_ffn_width(width(&spec)))
            .collect();
        let header = header_bytes(sections.len() as u64 + 2, specs.len() as u64);
        out.seek(SeekFrom::Start(header))?;
        let mut writer = Self {
            out,
            tensors: Vec::with_capacity(specs.len()),
            specs,
            sections: Vec::new(),
            body: Hasher::new(),
            weights: Hasher::new(),
            position: header,
            missing: 0,
        };
        let mut buf = [0; MAX_CONFIG_BYTES];
        writer.section(SectionKind::Config, encode_config(config, &mut buf))?;
        for (kind, bytes) in sections {
            if kind.is_required() || writer.sections.iter().any(|s| s.kind == *kind as u32) {
                return Err(invalid(format!("the {kind} section cannot be added here")));
            }
            writer.section(*kind, bytes)?;
        }
        writer.begin_section(SectionKind::Weights)?;
        Ok(writer)
    }

    /// The tensor that comes next, or `None` after the last.
    #[must_use]
    pub fn next_tensor(&self) -> Option<TensorSpec> {
        self.specs.get(self.tensors.len()).copied()
    }

    /// Begins the next tensor, a packed one of so many bytes; see [`encode`](crate::packed::encode).
    ///
    /// # Errors
    ///
    /// As [`begin_tensor`](Self::begin_tensor), or no payload of its shape has so many bytes.
    pub fn begin_packed(&mut self, bytes: u64, scale: f32) -> io::Result<()> {
        self.begin(Dtype::Packed, Some(bytes), scale)
    }

    /// Begins the next tensor; its payload follows by [`Write`]. `scale` is that of a ternary
    /// tensor, zero for others.
    ///
    /// # Errors
    ///
    /// The tensor before it is incomplete, there is none left, the type does not fit its role, the
    /// scale is not valid, or writing fails.
    pub fn begin_tensor(&mut self, dtype: Dtype, scale: f32) -> io::Result<()> {
        self.begin(dtype, None, scale)
    }

    /// `bytes` are those of the payload where the type does not say.
    fn begin(&mut self, dtype: Dtype, bytes: Option<u64>, scale: f32) -> io::Result<()> {
        self.check_complete()?;
        let spec = self
            .next_tensor()
            .ok_or_else(|| invalid("all tensors are written"))?;
        let class = spec.role.class();
        let scale_fits = match class {
            TensorClass::Ternary => scale.is_finite() && scale > 0.0,
            _ => scale.to_bits() == 0,
        };
        let (rows, cols) = (spec.rows, spec.cols);
        let (least, most) = (
            dtype.min_payload_bytes(rows, cols),
            dtype.payload_bytes(rows, cols),
        );
        let bytes = bytes.or((least == most).then_some(most));
        let bytes = bytes.filter(|bytes| (least..=most).contains(bytes));
        if !dtype.fits(class) || !scale_fits {
            let name = spec.role.name();
            return Err(invalid(format!(
                "{name}: {} with scale {scale} does not fit",
                dtype.name()
            )));
        }
        let bytes = bytes.ok_or_else(|| {
            invalid(format!(
                "{}: no payload has that many bytes",
                spec.role.name()
            ))
        })?;
        self.pad_weights()?;
        self.missing = bytes;
        self.tensors
            .push(entry(&spec, dtype, scale, self.position, self.missing));
        Ok(())
    }

    /// Writes the header.
    ///
    /// # Errors
    ///
    /// A tensor is missing or incomplete, or writing fails.
    pub fn finish(mut self) -> io::Result<FinishedArchive<W>> {
        self.check_complete()?;
        if let Some(spec) = self.next_tensor() {
            return Err(invalid(format!("{} is missing", spec.role.name())));
        }
        let weights = self.sections.last_mut().expect("begun in new");
        weights.bytes = self.position - weights.offset;
        weights.crc = self.weights.clone().finalize();
        self.body.combine(&self.weights);
        let mut file = FinishedArchive {
            out: self.out,
            sections: self.sections,
            tensors: self.tensors,
            body: self.body,
            file_bytes: self.position,
        };
        file.write_header()?;
        Ok(file)
    }

    fn section(&mut self, kind: SectionKind, bytes: &[u8]) -> io::Result<()> {
        self.begin_section(kind)?;
        let entry = self.sections.last_mut().expect("just begun");
        entry.bytes = bytes.len() as u64;
        entry.crc = crc32fast::hash(bytes);
        self.body.update(bytes);
        self.position += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    fn begin_section(&mut self, kind: SectionKind) -> io::Result<()> {
        let pad = padding(self.position);
        self.out.write_all(pad)?;
        self.body.update(pad);
        self.position += pad.len() as u64;
        let required = kind.is_required();
        let offset = self.position;
        self.sections.push(SectionEntry {
            kind: kind as u32,
            required,
            offset,
            bytes: 0,
            crc: 0,
        });
        Ok(())
    }

    fn pad_weights(&mut self) -> io::Result<()> {
        let pad = padding(self.position);
        self.out.write_all(pad)?;
        self.weights.update(pad);
        self.position += pad.len() as u64;
        Ok(())
    }

    fn check_complete(&self) -> io::Result<()> {
        if self.missing != 0 {
            let index = self.tensors.len() - 1;
            let missing = self.missing;
            return Err(invalid(format!(
                "tensor {index} lacks {missing} bytes of its payload"
            )));
        }
        Ok(())
    }
}

/// Payload of the current tensor.
impl<W: Write> Write for ArchiveWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() as u64 > self.missing {
            return Err(invalid("more payload than the tensor has room for"));
        }
        let n = self.out.write(bytes)?;
        self.weights.update(&bytes[..n]);
        self.position += n as u64;
        self.missing -= n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// A complete file, of which a section can still be replaced by one of the same length: self-test
/// hashes are known only once the model can run.
pub struct FinishedArchive<W> {
    out: W,
    sections: Vec<SectionEntry>,
    tensors: Vec<TensorEntry>,
    /// Checksum of everything after the header.
    body: Hasher,
    file_bytes: u64,
}

impl<W: Write + Seek + io::Read> FinishedArchive<W> {
    /// Replaces the bytes of a section and everything that depends on them.
    ///
    /// # Errors
    ///
    /// There is no such section, its length is another, or reading or writing fails.
    pub fn replace_section(&mut self, kind: SectionKind, bytes: &[u8]) -> io::Result<()> {
        let entry = self
            .sections
            .iter_mut()
            .find(|entry| entry.kind == kind as u32);
        let entry = entry.ok_or_else(|| invalid(format!("there is no {kind} section")))?;
        if entry.bytes != bytes.len() as u64 {
            return Err(invalid(format!("the {kind} section has another length")));
        }
        entry.crc = crc32fast::hash(bytes);
        let offset = entry.offset;
        self.out.seek(SeekFrom::Start(offset))?;
        self.out.write_all(bytes)?;
        self.body = self.hash_body()?;
        self.write_header()
    }

    fn hash_body(&mut self) -> io::Result<Hasher> {
        let mut body = Hasher::new();
        self.out.seek(SeekFrom::Start(self.header_bytes()))?;
        let mut buf = std::vec![0; 1 << 16];
        loop {
            match self.out.read(&mut buf)? {
                0 => return Ok(body),
                n => body.update(&buf[..n]),
            }
        }
    }
}

impl<W: Write + Seek> FinishedArchive<W> {
    /// The sink, with the whole file in it.
    pub fn into_inner(self) -> W {
        self.out
    }

    /// The sink, for reading back.
    pub const fn get_ref(&self) -> &W {
        &self.out
    }

    fn header_bytes(&self) -> u64 {
        header_bytes(self.sections.len() as u64, self.tensors.len() as u64)
    }

    fn write_header(&mut self) -> io::Result<()> {
        let sections = self.sections.iter().flat_map(SectionEntry::encode);
        let tables: Vec<u8> = sections
            .chain(self.tensors.iter().flat_map(TensorEntry::encode))
            .collect();
        let mut body = Hasher::new();
        body.update(&tables);
        body.combine(&self.body);
        let preamble = Preamble {
            file_bytes: self.file_bytes,
            features: 0,
            n_sections: self.sections.len() as u32,
            n_tensors: self.tensors.len() as u32,
            tables_crc: crc32fast::hash(&tables),
            body_crc: body.finalize(),
        };
        debug_assert_eq!(self.header_bytes(), (PREAMBLE_BYTES + tables.len()) as u64);
        self.out.seek(SeekFrom::Start(0))?;
        self.out.write_all(&preamble.encode())?;
        self.out.write_all(&tables)?;
        self.out.flush()
    }
}

fn entry(spec: &TensorSpec, dtype: Dtype, scale: f32, offset: u64, bytes: u64) -> TensorEntry {
    TensorEntry {
        role: spec.role as u16,
        layer: spec.layer.map_or(NO_LAYER, |layer| layer as u16),
        dtype: dtype.code(),
        granularity: 0,
        rows: spec.rows as u32,
        cols: spec.cols as u32,
        offset,
        bytes,
        scale,
    }
}

/// Zeros from `position` to the next multiple of [`ALIGNMENT`].
fn padding(position: u64) -> &'static [u8] {
    const ZEROS: [u8; ALIGNMENT] = [0; ALIGNMENT];
    let pad = position.next_multiple_of(ALIGNMENT as u64) - position;
    &ZEROS[..pad as usize]
}

fn invalid(message: impl Into<std::boxed::Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;
    use crate::presets::Preset;
    use crate::ternary::TernaryLayout;

    const T5: Dtype = Dtype::Ternary(TernaryLayout::T5R16);

    fn writer() -> ArchiveWriter<Cursor<Vec<u8>>> {
        ArchiveWriter::new(Cursor::new(Vec::new()), &Preset::Nano.config(), &[]).unwrap()
    }

    fn message<T>(result: io::Result<T>) -> String {
        result.err().expect("an error").to_string()
    }

    #[test]
    fn misuse_is_an_error() {
        let config = Preset::Nano.config();
        let new = |sections: &[(SectionKind, &[u8])]| {
            ArchiveWriter::new(Cursor::new(Vec::new()), &config, sections)
        };
        let twice = (SectionKind::Licence, &b""[..]);
        assert_eq!(
            message(new(&[twice, twice])),
            "the licence section cannot be added here"
        );
        let weights = (SectionKind::Weights, &b""[..]);
        assert_eq!(
            message(new(&[weights])),
            "the weights section cannot be added here"
        );
        assert_eq!(message(writer().finish()), "embedding is missing");
        let mut w = writer();
        assert_eq!(
            message(w.begin_tensor(T5, 1.0)),
            "embedding: t5 with scale 1 does not fit"
        );
        assert_eq!(
            message(w.begin_tensor(Dtype::F32, 1.0)),
            "embedding: f32 with scale 1 does not fit"
        );
        w.begin_tensor(Dtype::F32, 0.0).unwrap();
        assert_eq!(
            message(w.begin_tensor(Dtype::F32, 0.0)),
            "tensor 0 lacks 262144 bytes of its payload"
        );
        let long = vec![0; 262_145];
        assert_eq!(
            message(w.write_all(&long)),
            "more payload than the tensor has room for"
        );
    }

    #[test]
    fn a_replaced_section_gives_the_file_that_was_never_replaced() {
        let build = |licence: &[u8]| {
            let sections = [(SectionKind::Licence, licence)];
            let sink = Cursor::new(Vec::new());
            let mut w = ArchiveWriter::new(sink, &Preset::Nano.config(), &sections).unwrap();
            while let Some(spec) = w.next_tensor() {
                let ternary = spec.role.class() == TensorClass::Ternary;
                let (dtype, scale) = if ternary {
                    (T5, 2.0)
                } else {
                    (Dtype::F32, 0.0)
                };
                w.begin_tensor(dtype, scale).unwrap();
                let bytes = dtype.payload_bytes(spec.rows, spec.cols) as usize;
                w.write_all(&vec![0; bytes]).unwrap();
            }
            w.finish().unwrap()
        };
        let mut file = build(b"aaaa");
        assert!(file.replace_section(SectionKind::Licence, b"bbb").is_err());
        assert!(file.replace_section(SectionKind::Provenance, b"").is_err());
        file.replace_section(SectionKind::Licence, b"bbbb").unwrap();
        assert!(file.into_inner().into_inner() == build(b"bbbb").into_inner().into_inner());
    }
}

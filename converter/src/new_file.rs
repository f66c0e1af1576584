//! The output before it has its name: packed, run, read back, compared.

use std::fs::File;
use std::io;
use std::path::Path;

use bitnet_formats::{
    Archive, ArchiveWriter, FinishedArchive, FormatError, ModelConfig, SectionKind,
};

use crate::convert::FileBytes;
use crate::error::ConvertError;
use crate::output::PartialFile;
use crate::pages::Pages;
use crate::report::Report;
use crate::sections::Sections;
use crate::selftest::{self, Vector};
use crate::source::Source;
use crate::verify::{self, Verified};
use crate::write::{PackOptions, Progress, WriteError, write_tensors};

/// The temporary file, and the name that errors give it.
pub(crate) struct NewFile<'f> {
    file: &'f File,
    output: &'f Path,
    read_back: fn(&File) -> io::Result<FileBytes>,
}

impl<'f> NewFile<'f> {
    pub(crate) fn new(
        partial: &'f PartialFile,
        output: &'f Path,
        read_back: fn(&File) -> io::Result<FileBytes>,
    ) -> Self {
        Self {
            file: partial.file(),
            output,
            read_back,
        }
    }

    /// Writes all there is, self-test vectors as they come.
    pub(crate) fn pack(
        &self,
        source: &dyn Source,
        sections: &Sections,
        options: &PackOptions,
        progress: Progress<'_>,
    ) -> Result<(FinishedArchive<&'f File>, Report), ConvertError> {
        let written = write_archive(self.file, source, sections, options, progress);
        written.map_err(|e| match e {
            WriteError::Source(e) => e,
            WriteError::Sink(e) => ConvertError::io("write", self.output)(e),
        })
    }

    /// Runs the file and replaces its zero hashes by the true ones.
    pub(crate) fn self_test(
        &self,
        mut finished: FinishedArchive<&'f File>,
        vectors: &mut [Vector],
    ) -> Result<(), ConvertError> {
        self.run(vectors)?;
        finished
            .replace_section(SectionKind::SelfTest, &selftest::encode(vectors))
            .map_err(ConvertError::io("write", self.output))
    }

    /// What the self-test's prompts give.
    pub(crate) fn hashes(&self, config: &ModelConfig) -> Result<Vec<Vector>, ConvertError> {
        let mut vectors = selftest::prompts(config);
        self.run(&mut vectors)?;
        Ok(vectors)
    }

    fn run(&self, vectors: &mut [Vector]) -> Result<(), ConvertError> {
        let bytes = self.bytes()?;
        selftest::run(&Archive::open(&bytes)?, vectors, &|| bytes.release())?;
        Ok(())
    }

    /// Reads every byte as a user of the file would; returns its size.
    pub(crate) fn check(&self) -> Result<u64, ConvertError> {
        let bytes = self.bytes()?;
        verify_bytes(&Archive::open(&bytes)?, &bytes)?;
        Ok(bytes.len() as u64)
    }

    /// Compares the file with what it was made of.
    pub(crate) fn verify(&self, source: &dyn Source) -> Result<Verified, ConvertError> {
        let bytes = self.bytes()?;
        let release = || bytes.release();
        verify::verify(&Archive::open(&bytes)?, source, &Pages::new(&release))
    }

    fn bytes(&self) -> Result<FileBytes, ConvertError> {
        (self.read_back)(self.file).map_err(ConvertError::io("read", self.output))
    }
}

/// Verifies an opened file, giving its pages back on the way.
pub(crate) fn verify_bytes(archive: &Archive<'_>, bytes: &FileBytes) -> Result<(), FormatError> {
    let release = || bytes.release();
    let pages = Pages::new(&release);
    archive.verify_with(|read| pages.read(read as u64))
}

fn write_archive<'f>(
    file: &'f File,
    source: &dyn Source,
    sections: &Sections,
    options: &PackOptions,
    progress: Progress<'_>,
) -> Result<(FinishedArchive<&'f File>, Report), WriteError> {
    let (widths, sections) = (source.ffn_widths(), sections.list());
    let mut writer = ArchiveWriter::with_ffn_widths(file, source.config(), &widths, &sections)?;
    let report = write_tensors(&mut writer, source, options, progress)?;
    Ok((writer.finish()?, report))
}

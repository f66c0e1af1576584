//! An unfinished output: a file beside the final one that appears whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};

use crate::error::ConvertError;

/// A temporary file in the folder of the output. Dropping it removes it.
#[derive(Debug)]
pub struct PartialFile {
    file: File,
    path: PathBuf,
    target: PathBuf,
    kept: bool,
}

impl PartialFile {
    /// Creates the temporary file of an output.
    ///
    /// # Errors
    ///
    /// The output is a folder, or its folder cannot be written to.
    pub fn create(target: &Path) -> Result<Self, ConvertError> {
        let output = |reason| {
            let path = target.to_owned();
            ConvertError::Output { path, reason }
        };
        if target.is_dir() {
            return Err(output("is a folder; name a file in it"));
        }
        let name = target.file_name().ok_or_else(|| output("names no file"))?;
        let mut partial = name.to_owned();
        partial.push(format!(".{}.part", std::process::id()));
        let path = target.with_file_name(partial);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(ConvertError::io("create", &path))?;
        Ok(Self {
            file,
            path,
            target: target.to_owned(),
            kept: false,
        })
    }

    /// The open file.
    #[must_use]
    pub const fn file(&self) -> &File {
        &self.file
    }

    /// Where the unfinished file is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the file its final name, once its bytes are on the disk.
    ///
    /// # Errors
    ///
    /// The disk is full, or the name cannot be taken.
    pub fn persist(mut self) -> Result<(), ConvertError> {
        self.file
            .sync_all()
            .map_err(ConvertError::io("write", &self.target))?;
        fs::rename(&self.path, &self.target).map_err(ConvertError::io("write", &self.target))?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for PartialFile {
    fn drop(&mut self) {
        if !self.kept {
            // Nothing can be done about a failure here, and the first error is the one to report.
            _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap();
        entries
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    #[test]
    fn only_a_persisted_file_stays() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("m.btn");
        fs::write(&target, "old").unwrap();
        let partial = PartialFile::create(&target).unwrap();
        assert_eq!(names(dir.path()).len(), 2);
        drop(partial);
        assert_eq!(names(dir.path()), ["m.btn"]);
        assert_eq!(fs::read(&target).unwrap(), b"old");
        let partial = PartialFile::create(&target).unwrap();
        partial.file().write_all(b"new").unwrap();
        partial.persist().unwrap();
        assert_eq!(names(dir.path()), ["m.btn"]);
        assert_eq!(fs::read(&target).unwrap(), b"new");
    }

    #[test]
    fn outputs_that_cannot_be_files() {
        let dir = tempfile::tempdir().unwrap();
        let message = |path: &Path| PartialFile::create(path).unwrap_err().to_string();
        let is_dir = format!("{} is a folder; name a file in it", dir.path().display());
        assert_eq!(message(dir.path()), is_dir);
        let nowhere = message(&dir.path().join("none/m.btn"));
        assert!(nowhere.starts_with("cannot create "), "{nowhere}");
        assert!(names(dir.path()).is_empty());
    }
}

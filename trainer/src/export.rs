//! `fit --export`: the finished run as a `.btn` file, as `bitnet-convert` would write it.

use std::path::Path;

use bitnet_converter::{Conversion, convert};

use crate::error::{Error, Result};
use crate::settings::Settings;

/// Says before the training what would make the export fail after it.
///
/// # Errors
///
/// [`Error::Usage`].
pub fn check(out: &Path, settings: &Settings) -> Result<()> {
    let usage = |what: &str| Err(Error::Usage(format!("--export {}: {what}", out.display())));
    if !settings.train.quantize {
        return usage("train.quantize is false, and a .btn file holds ternary weights");
    }
    let folder = out.parent().filter(|folder| !folder.as_os_str().is_empty());
    if folder.is_some_and(|folder| !folder.is_dir()) {
        return usage("there is no such folder");
    }
    match out.is_dir() {
        true => usage("this is a folder; name a file"),
        false => Ok(()),
    }
}

/// Packs the model in `run`, with a self-test. A file that is there is replaced.
///
/// # Errors
///
/// [`Error::Export`].
pub fn export(run: &Path, out: &Path) -> Result<()> {
    convert(run, out, Conversion::default()).map_err(|e| Error::Export(Box::new(e)))?;
    Ok(())
}

//! The program, run in a folder of its own.

use std::fs;
use std::path::PathBuf;

use assert_cmd::Command;
use tempfile::TempDir;

/// A folder to run the program in.
pub(crate) struct Place(TempDir);

/// What the program said, and how it exited.
pub(crate) struct Outcome {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Place {
    /// A folder with these files, in folders of their own where their names say so.
    pub(crate) fn new(files: &[(&str, &[u8])]) -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        for (name, bytes) in files {
            let path = place.path(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        place
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    /// Runs the program without input.
    pub(crate) fn run(&self, args: &[&str]) -> Outcome {
        self.run_with(args, "")
    }

    /// Runs the program with `stdin` as its standard input.
    pub(crate) fn run_with(&self, args: &[&str], stdin: &str) -> Outcome {
        let output = Command::new(assert_cmd::cargo::cargo_bin!("bitnet-trainer"))
            .current_dir(self.0.path())
            .args(args)
            .write_stdin(stdin)
            .output()
            .unwrap();
        Outcome {
            code: output.status.code().unwrap(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Runs the program, which must exit with 0.
    pub(crate) fn succeeds(&self, args: &[&str]) -> Outcome {
        self.succeeds_with(args, "")
    }

    /// As [`Place::succeeds`], with `stdin` as its standard input.
    pub(crate) fn succeeds_with(&self, args: &[&str], stdin: &str) -> Outcome {
        let outcome = self.run_with(args, stdin);
        assert_eq!(outcome.code, 0, "{args:?}: {}", outcome.stderr);
        outcome
    }
}

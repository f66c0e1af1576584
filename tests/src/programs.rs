//! The workspace's programs, to run them as a user does.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The three programs, built from the sources as they are now.
#[derive(Clone, Debug)]
pub struct Programs {
    /// `bitnet-trainer`.
    pub trainer: PathBuf,
    /// `bitnet-convert`.
    pub convert: PathBuf,
    /// `bitnet-run`.
    pub run: PathBuf,
}

impl Programs {
    /// Builds what is not yet built, with the profile and into the folder of the calling test.
    ///
    /// Cargo names a program to the tests of its own package only. A package with a test named
    /// `cli` has a program, and building that test builds the program: the same units, features
    /// included, that `cargo test --workspace` has already built, so that nothing is left to do.
    ///
    /// # Panics
    ///
    /// If a program cannot be built.
    #[must_use]
    pub fn build() -> Self {
        let test = std::env::current_exe().expect("a path of this test");
        // target/PROFILE/deps/test
        let profile = test.ancestors().nth(2).expect("a profile's folder");
        let target = profile.parent().expect("a target folder");
        let mut cargo = Command::new(env!("CARGO"));
        cargo
            .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
            .args(["test", "--no-run", "--workspace", "--test", "cli"])
            .args(["--message-format", "json-render-diagnostics"])
            .arg("--target-dir")
            .arg(target)
            .stdin(Stdio::null())
            .stderr(Stdio::inherit());
        match profile.file_name().and_then(|name| name.to_str()) {
            Some("debug") => (),
            Some(name) => _ = cargo.args(["--profile", name]),
            None => panic!("{} is no profile", profile.display()),
        }
        let output = cargo.output().expect("cargo runs");
        assert!(output.status.success(), "the programs cannot be built");
        let messages = String::from_utf8(output.stdout).expect("JSON lines");
        let program = |name| find(&messages, name).unwrap_or_else(|| panic!("no program {name}"));
        Self {
            trainer: program("bitnet-trainer"),
            convert: program("bitnet-convert"),
            run: program("bitnet-run"),
        }
    }
}

/// The executable of a program in Cargo's messages.
fn find(messages: &str, name: &str) -> Option<PathBuf> {
    let mut artifacts = messages.lines().filter_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let target = &message["target"];
        let is_program = target["kind"][0] == "bin" && target["name"] == name;
        let is_test = message["profile"]["test"] == true;
        let path = message["executable"].as_str()?;
        (is_program && !is_test).then(|| PathBuf::from(path))
    });
    artifacts.next_back()
}

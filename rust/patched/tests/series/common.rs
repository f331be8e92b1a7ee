//! A made-up release and a series for it, in a directory that goes away with the value.

use std::fs;
use std::path::{Path, PathBuf};

use connlib_patched::{Error, Replay, Series, Sources, assemble, read, replay, sha256};
use tempfile::TempDir;

/// Eight lines, so that a hunk has a before, a middle and an after.
pub const LIB: &str = "mod a;\nmod b;\nfn one() {}\nfn two() {}\nfn three() {}\nfn four() {}\nfn five() {}\nfn six() {}\n";
pub const A: &str = "pub fn a() {}\n";
pub const B: &str = "pub fn b() {}\n";

pub struct Fixture {
    dir: TempDir,
}

impl Fixture {
    /// A release with `src/lib.rs`, `src/a.rs` and `src/b.rs`, and a series without patches.
    pub fn new() -> Self {
        let fixture = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        for (path, text) in [("src/lib.rs", LIB), ("src/a.rs", A), ("src/b.rs", B)] {
            fixture.release(path, text);
        }
        let hashes: String = [("src/a.rs", A), ("src/b.rs", B), ("src/lib.rs", LIB)]
            .iter()
            .map(|(path, text)| format!("\"{path}\" = \"{}\"\n", sha256(text)))
            .collect();
        fixture.series(
            "series.toml",
            &format!("crate = \"demo\"\nversion = \"1.2.3\"\n[pristine]\n{hashes}"),
        );
        fixture
    }

    /// Writes a file of the release.
    pub fn release(&self, path: &str, text: &str) {
        put(&self.root(), path, text);
    }

    /// Writes a file of the series.
    pub fn series(&self, path: &str, text: &str) {
        put(&self.series_dir(), path, text);
    }

    /// Writes a patch with a header.
    pub fn patch(&self, name: &str, diff: &str) {
        self.series(
            name,
            &format!("A title.\n\nWhy, and which test shows it.\n\n{diff}"),
        );
    }

    pub fn root(&self) -> PathBuf {
        self.dir.path().join("demo-1.2.3")
    }

    pub fn series_dir(&self) -> PathBuf {
        self.dir.path().join("patches/demo")
    }

    pub fn build(&self) -> Result<Sources, Error> {
        assemble(&Series::load(&self.series_dir())?, &self.root())
    }

    /// The message that the build stops with.
    pub fn stops(&self) -> String {
        self.build()
            .expect_err("the build should have stopped")
            .to_string()
    }

    pub fn replay(&self) -> Replay {
        replay(
            &Series::load(&self.series_dir()).unwrap(),
            &read(&self.root()).unwrap(),
        )
    }
}

fn put(dir: &Path, path: &str, text: &str) {
    let file = dir.join(path);
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(file, text).unwrap();
}

/// A diff of one file with the given hunks, as git writes it.
pub fn diff(path: &str, hunks: &str) -> String {
    format!(
        "diff --git a/{path} b/{path}\nindex 1111111..2222222 100644\n--- a/{path}\n+++ b/{path}\n{hunks}"
    )
}

#[track_caller]
pub fn assert_says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
    assert!(!message.contains('\n'), "more than one line: {message}");
}

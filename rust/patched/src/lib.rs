//! Builds a crate from a registry release and a series of patches, without a copy of other people's source.
//!
//! A thin crate has this one as its build-dependency. Its `build.rs` calls [`build`] with the directory of the series,
//! and its `lib.rs` includes the result: `include!(concat!(env!("OUT_DIR"), "/NAME/src/lib.rs"))`. Modules that the
//! included file declares are found beside it. The thin crate has to repeat the release's dependencies, edition and
//! inner attributes, and has to make the release visible to cargo (a dev-dependency is enough, and costs nothing).
//!
//! The directory of a series holds
//! - `series.toml`: the crate, its version, what the fork leaves out, and the SHA-256 of every source of the release;
//! - `NNNN-name.patch`: header text, then a git diff; applied in order, each hunk exactly at its line;
//! - `overlay/`: whole files of ours, laid over the patched sources;
//! - `overlay.toml`: for each of those, `scenarios` (what needs it) and, when it replaces a file of the release,
//!   `replaces_sha256`.
//!
//! Whatever does not fit stops the build with one message. `cargo run -p connlib-patched --bin rebase-patches` tries a
//! series on another release and counts what it changes.

pub mod counts;
mod diff;
mod error;
mod pristine;
mod replay;
mod series;

use std::path::{Component, Path, PathBuf};

pub use diff::{Change, FileDiff, Hunk, Placement};
pub use error::Error;
pub use pristine::{Sources, locate, read, sha256};
pub use replay::{Outcome, Replay, Step, replay};
pub use series::{Overlay, Patch, Release, Series};

/// Called by a build script: writes the fork to `OUT_DIR/NAME/src`, or tells cargo to stop the build with a message.
///
/// `series` is the directory of the series, relative to the package that is being built.
pub fn build(series: &str) {
    if let Err(error) = try_build(series) {
        println!("cargo::error={error}");
    }
}

fn try_build(series: &str) -> Result<(), Error> {
    let package = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let dir = package.join(series);
    // Cargo looks at everything below a directory, so a patch that is added counts too.
    println!("cargo::rerun-if-changed={}", dir.display());
    let series = Series::load(&dir)?;
    let Release { name, version, .. } = &series.release;
    let target = variable("TARGET")?;
    let root = locate(
        &package.join("Cargo.toml"),
        name,
        version,
        Some(&target),
        true,
    )?;
    println!(
        "cargo::rerun-if-changed={}",
        watchable(&root.join("src")).display()
    );
    let fork = assemble(&series, &root)?;
    write(&fork, &PathBuf::from(variable("OUT_DIR")?).join(name))
}

/// The same path by a detour, because cargo takes what is below its own directory for unchangeable and does not look.
fn watchable(path: &Path) -> PathBuf {
    let mut detour = PathBuf::new();
    let mut taken = false;
    for part in path.components() {
        detour.push(part);
        if !taken && matches!(part, Component::Normal(_)) {
            taken = true;
            detour.push("..");
            detour.push(part);
        }
    }
    // Where the first directory is a link, its parent is another one.
    if detour.exists() {
        detour
    } else {
        path.to_owned()
    }
}

/// The fork's sources, from a series and the directory of the release that it is for.
///
/// # Errors
/// When the release is not what was recorded, or anything of the series does not fit it exactly.
pub fn assemble(series: &Series, root: &Path) -> Result<Sources, Error> {
    let pristine = read(root)?;
    series.verify(&pristine, root)?;
    replay(series, &pristine).strict(series)
}

/// Writes `sources` below `dir`, and removes what an earlier build left there.
///
/// # Errors
/// When the file system refuses.
pub fn write(sources: &Sources, dir: &Path) -> Result<(), Error> {
    if dir.exists() {
        std::fs::remove_dir_all(dir).map_err(|error| Error::io("remove", dir, &error))?;
    }
    for (path, text) in sources {
        let file = dir.join(path);
        let parent = file.parent().unwrap_or(dir);
        std::fs::create_dir_all(parent).map_err(|error| Error::io("create", parent, &error))?;
        std::fs::write(&file, text).map_err(|error| Error::io("write", &file, &error))?;
    }
    Ok(())
}

fn variable(name: &str) -> Result<String, Error> {
    std::env::var(name).map_err(|_| {
        Error::new(format!(
            "{name} is not set: this runs in a build script of cargo"
        ))
    })
}

//! The registry release: where cargo put it, what is in it, and whether it is still what was released.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use cargo_metadata::MetadataCommand;
use sha2::{Digest, Sha256};

use crate::error::Error;

/// The Rust sources of a crate: path inside the crate (`src/lib.rs`) to text.
pub type Sources = BTreeMap<String, String>;

/// Asks cargo where the sources of `name` `version` are, for the package whose manifest is given.
///
/// With `target`, only what that platform needs is fetched; with `locked`, cargo has to agree with Cargo.lock. Cargo may
/// use the network: whether it may is for the person who runs the build to say, not for us.
///
/// # Errors
/// When cargo fails, or when the package does not depend on that version.
pub fn locate(
    manifest: &Path,
    name: &str,
    version: &str,
    target: Option<&str>,
    locked: bool,
) -> Result<PathBuf, Error> {
    let mut options = Vec::new();
    if let Some(target) = target {
        options.extend(["--filter-platform".to_owned(), target.to_owned()]);
    }
    if locked {
        options.push("--locked".to_owned());
    }
    let metadata = MetadataCommand::new()
        .manifest_path(manifest)
        .other_options(options)
        .exec()
        .map_err(|error| {
            Error::new(format!(
                "`cargo metadata` cannot tell where {name} {version} is: {}",
                one_line(&error)
            ))
        })?;
    let mut found = Vec::new();
    for package in metadata
        .packages
        .iter()
        .filter(|package| *package.name == name && package.source.is_some())
    {
        if package.version.to_string() == version {
            return Ok(package
                .manifest_path
                .parent()
                .map_or_else(PathBuf::new, Into::into));
        }
        found.push(package.version.to_string());
    }
    let found = if found.is_empty() {
        "no version of it".to_owned()
    } else {
        found.join(", ")
    };
    Err(Error::new(format!(
        "the patches are for {name} {version}, but Cargo.lock has {found}: pin `{name} = \"={version}\"` in Cargo.toml, or \
         move the series with `make rebase-patches`"
    )))
}

/// Cargo's own complaint without its progress lines and line breaks.
fn one_line(error: &cargo_metadata::Error) -> String {
    let text = match error {
        cargo_metadata::Error::CargoMetadata { stderr } => stderr.clone(),
        other => other.to_string(),
    };
    let complaint = text
        .lines()
        .skip_while(|line| !line.starts_with("error: "))
        .flat_map(str::split_whitespace);
    let words: Vec<&str> = complaint.collect();
    if words.is_empty() {
        text
    } else {
        words.join(" ")
    }
}

/// Reads every `.rs` file below `src/` of the crate at `root`.
///
/// # Errors
/// When a file cannot be read or is no UTF-8.
pub fn read(root: &Path) -> Result<Sources, Error> {
    let mut sources = Sources::new();
    for path in files(root, Path::new("src"))? {
        if path.ends_with(".rs") {
            let file = root.join(&path);
            let text =
                std::fs::read_to_string(&file).map_err(|error| Error::io("read", &file, &error))?;
            sources.insert(path, text);
        }
    }
    Ok(sources)
}

/// The files below `root`/`dir`, as sorted paths from `root` with forward slashes.
pub(crate) fn files(root: &Path, dir: &Path) -> Result<Vec<String>, Error> {
    let here = root.join(dir);
    let fail = |error: std::io::Error| Error::io("list", &here, &error);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&here).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let path = dir.join(entry.file_name());
        if entry.path().is_dir() {
            found.extend(files(root, &path)?);
        } else {
            let parts: Vec<_> = path.iter().map(|part| part.to_string_lossy()).collect();
            found.push(parts.join("/"));
        }
    }
    found.sort();
    Ok(found)
}

/// SHA-256 in lower-case hexadecimal.
#[must_use]
pub fn sha256(text: &str) -> String {
    format!("{:x}", Sha256::digest(text))
}

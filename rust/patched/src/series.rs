//! The series as it lies in its directory: `series.toml`, `overlay.toml`, `NNNN-name.patch` and `overlay/`.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use crate::diff::{self, FileDiff};
use crate::error::Error;
use crate::pristine::{self, Sources};

/// Everything that turns a release into the fork. See the crate's documentation for the files it is read from.
#[derive(Debug, Clone)]
pub struct Series {
    /// Name of the directory, for messages: `patches/boringtun`.
    pub label: String,
    pub release: Release,
    /// In the order in which they apply.
    pub patches: Vec<Patch>,
    /// Path inside the crate to the file of ours.
    pub overlays: BTreeMap<String, Overlay>,
}

/// `series.toml`: the release that the series is written for.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Release {
    #[serde(rename = "crate")]
    pub name: String,
    pub version: String,
    /// Sources that the fork does without: a file, or a directory with a slash at its end.
    #[serde(default)]
    pub leave_out: Vec<String>,
    /// SHA-256 of every source of the release.
    #[serde(default)]
    pub pristine: BTreeMap<String, String>,
}

/// One `NNNN-name.patch`.
#[derive(Debug, Clone)]
pub struct Patch {
    pub name: String,
    /// What it changes, why, and which test shows it: the text before the diff.
    pub header: String,
    pub files: Vec<FileDiff>,
}

/// One file below `overlay/` and what `overlay.toml` says about it.
#[derive(Debug, Clone)]
pub struct Overlay {
    pub text: String,
    /// What needs it.
    pub scenarios: String,
    /// SHA-256 of the file that it replaces; none for a file that the release does not have.
    pub replaces_sha256: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct OverlayEntry {
    replaces_sha256: Option<String>,
    scenarios: String,
}

impl Series {
    /// Reads the series in `dir`.
    ///
    /// # Errors
    /// When a file cannot be read, or says something that it may not.
    pub fn load(dir: &Path) -> Result<Self, Error> {
        let names: Vec<_> = dir.iter().map(|part| part.to_string_lossy()).collect();
        let label = names
            .get(names.len().saturating_sub(2)..)
            .unwrap_or_default()
            .join("/");
        let fail = |file: &str, problem: String| Error::new(format!("{label}/{file}: {problem}"));

        let mut patches = Vec::new();
        let mut texts = BTreeMap::new();
        let mut overlays = BTreeMap::new();
        for path in pristine::files(dir, Path::new(""))? {
            let file = dir.join(&path);
            let text =
                std::fs::read_to_string(&file).map_err(|error| Error::io("read", &file, &error))?;
            if let Some(inside) = path.strip_prefix("overlay/") {
                texts.insert(inside.to_owned(), text);
            } else if is_patch_name(&path) {
                let files = diff::parse(&text).map_err(|error| fail(&path, error.to_string()))?;
                let header = header(&text);
                if header.is_empty() {
                    let problem = "has no header: say above the diff what it changes, why, and which test shows it";
                    return Err(fail(&path, problem.to_owned()));
                }
                patches.push(Patch {
                    name: path,
                    header,
                    files,
                });
            } else if path != "series.toml" && path != "overlay.toml" {
                let expected = "expected series.toml, overlay.toml, NNNN-name.patch or overlay/; move it elsewhere";
                return Err(fail(
                    &path,
                    format!("this file is no part of a series: {expected}"),
                ));
            }
        }
        if let Some(pair) = patches
            .windows(2)
            .find(|pair| pair[0].name.get(..4) == pair[1].name.get(..4))
        {
            return Err(fail(
                &pair[1].name,
                format!("has the number of {}; give it another", pair[0].name),
            ));
        }

        let release: Release = read_toml(&dir.join("series.toml"))?;
        let recorded = dir.join("overlay.toml");
        let entries: BTreeMap<String, OverlayEntry> = if recorded.exists() {
            read_toml(&recorded)?
        } else {
            BTreeMap::new()
        };
        for (path, entry) in entries {
            let missing = || {
                fail(
                    "overlay.toml",
                    format!("overlay/{path} does not exist; remove its entry"),
                )
            };
            let text = texts.remove(&path).ok_or_else(missing)?;
            if entry.scenarios.trim().is_empty() {
                return Err(fail(
                    "overlay.toml",
                    format!("{path}: `scenarios` has to say what needs this file"),
                ));
            }
            let OverlayEntry {
                replaces_sha256,
                scenarios,
            } = entry;
            overlays.insert(
                path,
                Overlay {
                    text,
                    scenarios,
                    replaces_sha256,
                },
            );
        }
        if let Some(path) = texts.keys().next() {
            let entry = format!(
                "[\"{path}\"] with `scenarios` and, if it replaces a file, `replaces_sha256`"
            );
            return Err(fail(
                &format!("overlay/{path}"),
                format!("is not in overlay.toml; add {entry}"),
            ));
        }
        Ok(Self {
            label,
            release,
            patches,
            overlays,
        })
    }

    /// Compares the `sources` that cargo unpacked at `root` with what `series.toml` recorded of the release.
    ///
    /// Cargo checks the archive when it downloads it, and never again what it unpacked.
    ///
    /// # Errors
    /// Names every file that was changed, added or removed.
    pub fn verify(&self, sources: &Sources, root: &Path) -> Result<(), Error> {
        let Release {
            name,
            version,
            pristine,
            ..
        } = &self.release;
        let mut wrong = Vec::new();
        for (path, recorded) in pristine {
            match sources.get(path).map(|text| pristine::sha256(text)) {
                None => wrong.push(format!("{path} is missing")),
                Some(found) if found != *recorded => {
                    wrong.push(format!(
                        "{path} was changed (SHA-256 {found}, expected {recorded})"
                    ));
                }
                Some(_) => {}
            }
        }
        wrong.extend(
            sources
                .keys()
                .filter(|path| !pristine.contains_key(*path))
                .map(|path| format!("{path} is not of it")),
        );
        if wrong.is_empty() {
            return Ok(());
        }
        Err(Error::new(format!(
            "the source of {name} {version} is not what {}/series.toml recorded of the release: {}; delete {}, so that \
             cargo unpacks the archive again",
            self.label,
            wrong.join("; "),
            root.display()
        )))
    }

    /// Whether the fork does without this source.
    #[must_use]
    pub fn leaves_out(&self, path: &str) -> bool {
        self.release
            .leave_out
            .iter()
            .any(|out| path == out || (out.ends_with('/') && path.starts_with(out.as_str())))
    }
}

/// The text above the diff, without what `git format-patch` puts around a message.
fn header(text: &str) -> String {
    let mail = text.starts_with("From ");
    let lines = text
        .lines()
        .take_while(|line| !line.starts_with("diff --git ") && *line != "---")
        .filter(|line| {
            !(mail
                && ["From ", "From: ", "Date: "]
                    .iter()
                    .any(|field| line.starts_with(field)))
        })
        .map(|line| match line.strip_prefix("Subject: ") {
            Some(subject) if mail => subject
                .split_once("] ")
                .map_or(subject, |(_, subject)| subject),
            _ => line,
        });
    lines.collect::<Vec<_>>().join("\n").trim().to_owned()
}

fn is_patch_name(path: &str) -> bool {
    let digits = path.bytes().take_while(u8::is_ascii_digit).count();
    digits == 4 && path.get(4..5) == Some("-") && path.ends_with(".patch") && !path.contains('/')
}

fn read_toml<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, Error> {
    let text = std::fs::read_to_string(path).map_err(|error| Error::io("read", path, &error))?;
    toml::from_str(&text).map_err(|error| {
        let line = error.span().map_or(0, |span| {
            text.get(..span.start).unwrap_or("").matches('\n').count() + 1
        });
        Error::new(format!("{}:{line}: {}", path.display(), error.message()))
    })
}

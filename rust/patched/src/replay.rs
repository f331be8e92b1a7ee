//! Doing what a series says to the sources of a release.
//!
//! The build and `rebase-patches` share this: it goes on past a failure and reports everything, and the build takes the
//! first thing that is not exactly right as its error.

use std::fmt;

use crate::diff::{self, Change, Placement};
use crate::error::Error;
use crate::pristine::{self, Sources};
use crate::series::{Release, Series};

/// What became of one hunk, one overlay, or one file as a whole.
#[derive(Debug, Clone)]
pub struct Step {
    /// The patch, or `overlay/` and the path.
    pub part: String,
    /// Path of the file inside the crate.
    pub path: String,
    /// `hunk 2 of 3 (@@ -1,3 +1,4 @@)`; empty when the step is about the whole file.
    pub hunk: String,
    pub outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Applies,
    /// Applies this many lines further down; the number of other places with the same context.
    Offset {
        lines: isize,
        others: usize,
    },
    /// Does not apply: what was expected, what was found, what to do.
    Fails(String),
}

/// The fork's sources, and what happened on the way to them.
#[derive(Debug, Clone)]
pub struct Replay {
    pub sources: Sources,
    pub steps: Vec<Step>,
}

/// Applies the patches of `series` in order, then lays its overlays over the result.
#[must_use]
pub fn replay(series: &Series, pristine: &Sources) -> Replay {
    let mut sources = pristine.clone();
    sources.retain(|path, _| !series.leaves_out(path));
    let mut steps = Vec::new();
    for patch in &series.patches {
        for file in &patch.files {
            let mut say = |hunk: String, outcome| {
                steps.push(Step {
                    part: patch.name.clone(),
                    path: file.path.clone(),
                    hunk,
                    outcome,
                });
            };
            let text = match (file.change, sources.get(&file.path)) {
                (Change::Create, Some(_)) => {
                    Err("the patch creates this file, but it exists".to_owned())
                }
                (Change::Create, None) => Ok(""),
                (_, None) => Err(absent(series, pristine, &file.path)),
                (_, Some(_)) if series.overlays.contains_key(&file.path) => Err(format!(
                    "overlay/{} replaces this file: drop the patch or the overlay",
                    file.path
                )),
                (_, Some(text)) => Ok(text.as_str()),
            };
            let text = match text {
                Ok(text) => text,
                Err(problem) => {
                    say(String::new(), Outcome::Fails(problem));
                    continue;
                }
            };
            let (result, placements) = diff::apply(text, &file.hunks);
            let count = file.hunks.len();
            for (index, (hunk, placement)) in file.hunks.iter().zip(placements).enumerate() {
                let hunk = format!("hunk {} of {count} ({})", index + 1, hunk.header);
                say(
                    hunk,
                    match placement {
                        Placement::Exact => Outcome::Applies,
                        Placement::Offset { lines, others } => Outcome::Offset { lines, others },
                        Placement::Fails(reason) => Outcome::Fails(reason),
                    },
                );
            }
            if file.change != Change::Delete {
                sources.insert(file.path.clone(), result);
            } else if result.is_empty() {
                sources.remove(&file.path);
            } else {
                say(
                    String::new(),
                    Outcome::Fails("the patch deletes this file, but lines are left".to_owned()),
                );
            }
        }
    }
    for (path, overlay) in &series.overlays {
        let outcome = match (
            &overlay.replaces_sha256,
            pristine.get(path).map(|text| pristine::sha256(text)),
        ) {
            (None, None) => Outcome::Applies,
            (Some(recorded), Some(found)) if *recorded == found => Outcome::Applies,
            (Some(recorded), Some(found)) => Outcome::Fails(format!(
                "expected to replace a file of SHA-256 {recorded}, found {found}: carry what changed in that file over into \
                 the overlay, then record the new hash in overlay.toml"
            )),
            (Some(_), None) => Outcome::Fails(format!(
                "{}; if it is gone for good, remove `replaces_sha256` from overlay.toml",
                absent(series, pristine, path)
            )),
            (None, Some(found)) => Outcome::Fails(format!(
                "the release has this file, and overlay.toml says it is new: record replaces_sha256 = \"{found}\""
            )),
        };
        sources.insert(path.clone(), overlay.text.clone());
        steps.push(Step {
            part: format!("overlay/{path}"),
            path: path.clone(),
            hunk: String::new(),
            outcome,
        });
    }
    Replay { sources, steps }
}

fn absent(series: &Series, pristine: &Sources, path: &str) -> String {
    let release = &series.release;
    if pristine.contains_key(path) {
        return "`leave_out` in series.toml lists this file".to_owned();
    }
    format!(
        "{} {} has no such file, nor does a patch before this one make it",
        release.name, release.version
    )
}

impl Replay {
    /// The sources, if every step was exactly right.
    ///
    /// # Errors
    /// The first step that was not: the patch, the file, the hunk, what was expected, and what to do.
    pub fn strict(self, series: &Series) -> Result<Sources, Error> {
        let Some(step) = self
            .steps
            .iter()
            .find(|step| step.outcome != Outcome::Applies)
        else {
            return Ok(self.sources);
        };
        let mut message = format!("{}/{step}: {}", series.label, step.outcome);
        if !step.hunk.is_empty() {
            let Release { name, version, .. } = &series.release;
            message.push_str(&format!(
                ". Each hunk has to fit {name} {version} at its line: restore the patch, or make it anew as \
                 patches/README.md says"
            ));
        }
        Err(Error::new(message))
    }
}

/// The place only: what became of it is [`Step::outcome`].
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.part)?;
        if !self.part.starts_with("overlay/") {
            write!(f, ": {}", self.path)?;
        }
        if !self.hunk.is_empty() {
            write!(f, ": {}", self.hunk)?;
        }
        Ok(())
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Applies => f.write_str("applies"),
            Self::Offset { lines, others: 0 } => {
                write!(f, "applies at an offset of {lines:+} lines only")
            }
            Self::Offset { lines, others } => {
                write!(
                    f,
                    "applies at an offset of {lines:+} lines only, and {others} other places look the same"
                )
            }
            Self::Fails(reason) => write!(f, "does not apply: {reason}"),
        }
    }
}

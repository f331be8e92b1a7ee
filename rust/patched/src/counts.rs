//! What a series holds, and how much of the release it leaves as it was: the part of the README that is written by
//! `rebase-patches counts --write`, so that it cannot grow old.

use std::collections::BTreeSet;

use crate::error::Error;
use crate::pristine::Sources;
use crate::series::Series;

const BEGIN: &str = "<!-- counts: begin -->";
const END: &str = "<!-- counts: end -->";

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Counts {
    /// Lines of the release: `kept + removed + replaced`.
    upstream: usize,
    kept: usize,
    /// By patches.
    removed: usize,
    /// By patches.
    added: usize,
    /// In files that an overlay replaces as a whole.
    replaced: usize,
    /// Lines of the overlay.
    overlay: usize,
}

/// The patches with their headers, the overlays with what needs them, and the table of lines kept, patched and replaced.
///
/// `pristine` is the release's sources, `fork` the result.
#[must_use]
pub fn summary(series: &Series, pristine: &Sources, fork: &Sources) -> String {
    let mut text = String::from("\n");
    for patch in &series.patches {
        let header = patch.header.lines().map(|line| {
            if line.is_empty() {
                "\n".to_owned()
            } else {
                format!("  {line}\n")
            }
        });
        text.push_str(&format!(
            "- `{}`\n\n{}\n",
            patch.name,
            header.collect::<String>()
        ));
    }
    for (path, overlay) in &series.overlays {
        let kind = if overlay.replaces_sha256.is_some() {
            "replaces the file"
        } else {
            "a new file"
        };
        text.push_str(&format!(
            "- `overlay/{path}` ({kind}): {}\n",
            overlay.scenarios.trim()
        ));
    }
    text.push('\n');
    text.push_str(&table(series, pristine, fork));
    text.push('\n');
    text
}

/// The table of what `series` makes of the release.
fn table(series: &Series, pristine: &Sources, fork: &Sources) -> String {
    let mut text = String::from(
        "| file | upstream | kept | removed | added | replaced | overlay |\n|---|---:|---:|---:|---:|---:|---:|\n",
    );
    let mut total = Counts::default();
    let paths: BTreeSet<&String> = pristine
        .keys()
        .filter(|path| !series.leaves_out(path))
        .chain(fork.keys())
        .collect();
    for path in paths {
        let counts = count(series, path, pristine, fork);
        total = total.plus(counts);
        text.push_str(&counts.row(&format!("`{path}`")));
    }
    text.push_str(&total.row("**all**"));
    let out = pristine.iter().filter(|(path, _)| series.leaves_out(path));
    let (files, lines) = out.fold((0, 0), |(files, lines), (_, text)| {
        (files + 1, lines + text.lines().count())
    });
    text.push_str(&format!("\nLeft out: {files} files of {lines} lines.\n"));
    text
}

fn count(series: &Series, path: &str, pristine: &Sources, fork: &Sources) -> Counts {
    let before = pristine.get(path).map_or("", String::as_str);
    let after = fork.get(path).map_or("", String::as_str);
    let upstream = before.lines().count();
    if series.overlays.contains_key(path) {
        return Counts {
            upstream,
            replaced: upstream,
            overlay: after.lines().count(),
            ..Counts::default()
        };
    }
    let patch = diffy::create_patch(before, after);
    let lines = || patch.hunks().iter().flat_map(diffy::Hunk::lines);
    let removed = lines()
        .filter(|line| matches!(line, diffy::Line::Delete(_)))
        .count();
    let added = lines()
        .filter(|line| matches!(line, diffy::Line::Insert(_)))
        .count();
    Counts {
        upstream,
        kept: upstream.saturating_sub(removed),
        removed,
        added,
        ..Counts::default()
    }
}

impl Counts {
    fn plus(self, other: Self) -> Self {
        Self {
            upstream: self.upstream + other.upstream,
            kept: self.kept + other.kept,
            removed: self.removed + other.removed,
            added: self.added + other.added,
            replaced: self.replaced + other.replaced,
            overlay: self.overlay + other.overlay,
        }
    }

    fn row(self, name: &str) -> String {
        let Self {
            upstream,
            kept,
            removed,
            added,
            replaced,
            overlay,
        } = self;
        format!("| {name} | {upstream} | {kept} | {removed} | {added} | {replaced} | {overlay} |\n")
    }
}

/// The summary that `readme` has between its markers.
///
/// # Errors
/// When the markers are missing.
pub fn current(readme: &str) -> Result<&str, Error> {
    split(readme).map(|(_, summary, _)| summary)
}

/// `readme` with `summary` between its markers.
///
/// # Errors
/// When the markers are missing.
pub fn renew(readme: &str, summary: &str) -> Result<String, Error> {
    let (before, _, after) = split(readme)?;
    Ok(format!("{before}{BEGIN}\n{summary}{END}{after}"))
}

fn split(readme: &str) -> Result<(&str, &str, &str), Error> {
    let missing = || {
        Error::new(format!(
            "the README has no lines `{BEGIN}` and `{END}` to write between"
        ))
    };
    let (before, rest) = readme.split_once(BEGIN).ok_or_else(missing)?;
    let (summary, after) = rest.split_once(END).ok_or_else(missing)?;
    Ok((before, summary.strip_prefix('\n').unwrap_or(summary), after))
}

//! Reading a patch, and finding the place of each of its hunks.
//!
//! `diffy` parses the diff. Two things are added to what its `apply` does, because a build must not guess:
//! every line of the patch has to be accounted for (git's format lets junk between hunks hide a lost hunk), and the
//! place of a hunk is told apart into "at its line", "at an offset" and "nowhere, because of this line".

use diffy::patch_set::{FileOperation, ParseOptions, PatchKind, PatchSet};

use crate::error::Error;

/// What one patch does to one file.
#[derive(Debug, Clone)]
pub struct FileDiff {
    /// Path inside the crate, such as `src/lib.rs`.
    pub path: String,
    pub change: Change,
    pub hunks: Vec<Hunk>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    Create,
    Modify,
    Delete,
}

#[derive(Debug, Clone)]
pub struct Hunk {
    /// The header as the patch has it, without what git adds after the second `@@`.
    pub header: String,
    /// Index of the first line that the hunk covers in the file as it was before this patch.
    start: usize,
    lines: Vec<Line>,
}

#[derive(Debug, Clone)]
enum Line {
    Keep(String),
    Remove(String),
    Add(String),
}

/// Where a hunk belongs in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placement {
    /// At the line that its header says.
    Exact,
    /// Its context is whole, but so many lines further down; `others` more places would do as well.
    Offset { lines: isize, others: usize },
    /// Nowhere: the first line that differs at the place that the header says.
    Fails(String),
}

impl Hunk {
    /// The lines that the hunk expects to find.
    fn before(&self) -> Vec<&str> {
        self.lines
            .iter()
            .filter_map(|line| match line {
                Line::Keep(text) | Line::Remove(text) => Some(text.as_str()),
                Line::Add(_) => None,
            })
            .collect()
    }

    fn after(&self) -> Vec<String> {
        self.lines
            .iter()
            .filter_map(|line| match line {
                Line::Keep(text) | Line::Add(text) => Some(text.clone()),
                Line::Remove(_) => None,
            })
            .collect()
    }
}

/// Reads the text of a patch.
///
/// # Errors
/// Says what is wrong with the text, without the name of the patch.
pub(crate) fn parse(text: &str) -> Result<Vec<FileDiff>, Error> {
    let promised = account_for_every_line(text)?;
    let mut files = Vec::new();
    for parsed in PatchSet::parse(text, ParseOptions::gitdiff()) {
        let parsed = parsed.map_err(|error| Error::new(error.to_string()))?;
        let operation = parsed.operation().strip_prefix(1);
        let (path, change) = match &operation {
            FileOperation::Create(path) => (path, Change::Create),
            FileOperation::Delete(path) => (path, Change::Delete),
            FileOperation::Modify { original, modified } if original == modified => {
                (original, Change::Modify)
            }
            FileOperation::Modify {
                original: from,
                modified: to,
            }
            | FileOperation::Rename { from, to }
            | FileOperation::Copy { from, to } => {
                return Err(Error::new(format!(
                    "{from} -> {to}: write a rename as a deletion and a creation"
                )));
            }
        };
        let PatchKind::Text(patch) = parsed.patch() else {
            return Err(Error::new(format!(
                "{path}: a binary patch cannot be reviewed; write an overlay"
            )));
        };
        files.push(FileDiff {
            path: path.to_string(),
            change,
            hunks: patch.hunks().iter().map(own).collect(),
        });
    }
    let read: usize = files.iter().map(|file| file.hunks.len()).sum();
    if files.is_empty() || read != promised {
        return Err(Error::new(format!(
            "{promised} hunks are written, {read} can be read"
        )));
    }
    Ok(files)
}

fn own(hunk: &diffy::Hunk<'_, str>) -> Hunk {
    // A range without lines is written as the line before it, any other by its first line, counted from one.
    let old = hunk.old_range();
    let start = if old.is_empty() {
        old.start()
    } else {
        old.start().saturating_sub(1)
    };
    Hunk {
        header: format!("@@ -{} +{} @@", hunk.old_range(), hunk.new_range()),
        start,
        lines: hunk
            .lines()
            .iter()
            .map(|line| match *line {
                diffy::Line::Context(text) => Line::Keep(text.to_owned()),
                diffy::Line::Delete(text) => Line::Remove(text.to_owned()),
                diffy::Line::Insert(text) => Line::Add(text.to_owned()),
            })
            .collect(),
    }
}

/// Checks that each line is header text, part of a file's header or part of a hunk, and counts the hunks.
fn account_for_every_line(text: &str) -> Result<usize, Error> {
    const FILE_HEADER: [&str; 7] = [
        "diff --git a/",
        "index ",
        "--- ",
        "+++ ",
        "new file mode ",
        "deleted file mode ",
        "\\ No newline at end of file",
    ];
    let mut hunks = 0;
    let mut in_diff = false;
    // Lines that the hunk being read still owes on each side.
    let (mut old, mut new) = (0_usize, 0_usize);
    for (index, line) in text.lines().enumerate() {
        let number = index + 1;
        if old + new > 0 {
            match line.as_bytes().first() {
                Some(b' ') | None => (old, new) = (old.wrapping_sub(1), new.wrapping_sub(1)),
                Some(b'-') => old = old.wrapping_sub(1),
                Some(b'+') => new = new.wrapping_sub(1),
                Some(b'\\') => {}
                Some(_) => {
                    return Err(Error::new(format!(
                        "line {number} is no line of hunk {hunks}: {line}"
                    )));
                }
            }
            if old == usize::MAX || new == usize::MAX {
                return Err(Error::new(format!(
                    "line {number}: hunk {hunks} is longer than its header says"
                )));
            }
        } else if line.starts_with("@@ ") {
            hunks += 1;
            (old, new) = ranges(line).filter(|_| in_diff).ok_or_else(|| {
                Error::new(format!(
                    "line {number} is no hunk header that git writes: {line}"
                ))
            })?;
        } else if line.starts_with("diff --git a/") {
            in_diff = true;
        } else if in_diff && !FILE_HEADER.iter().any(|prefix| line.starts_with(prefix)) {
            // What `git format-patch` closes with is the one thing that may follow.
            if line == "-- " {
                break;
            }
            return Err(Error::new(format!(
                "line {number} belongs to no hunk: {line}"
            )));
        } else if !in_diff && (line.starts_with("--- a/") || line.starts_with("+++ b/")) {
            return Err(Error::new(format!(
                "line {number} has no `diff --git` line before it: {line}"
            )));
        }
    }
    if old + new > 0 {
        return Err(Error::new(format!(
            "hunk {hunks} is shorter than its header says"
        )));
    }
    Ok(hunks)
}

/// The two line counts of `@@ -a,b +c,d @@`.
fn ranges(header: &str) -> Option<(usize, usize)> {
    let (ranges, _) = header.strip_prefix("@@ -")?.split_once(" @@")?;
    let (old, new) = ranges.split_once(" +")?;
    let count = |range: &str| match range.split_once(',') {
        Some((_, count)) => count.parse().ok(),
        None => Some(1),
    };
    Some((count(old)?, count(new)?))
}

/// Applies `hunks` to the text of a file, and says for each where it went. A hunk without a place leaves no trace.
pub(crate) fn apply(text: &str, hunks: &[Hunk]) -> (String, Vec<Placement>) {
    let mut lines: Vec<String> = text.split_inclusive('\n').map(str::to_owned).collect();
    let mut placements = Vec::new();
    // The first line that the hunks so far have not touched, what they added to the length, and how far off they were.
    let (mut floor, mut growth, mut drift) = (0_usize, 0_isize, 0_isize);
    for hunk in hunks {
        let (old, new) = (hunk.before(), hunk.after());
        let written = hunk.start.saturating_add_signed(growth);
        let expected = written.saturating_add_signed(drift);
        let Some((at, others)) = find(&lines, &old, expected, floor) else {
            placements.push(Placement::Fails(first_difference(&lines, &old, expected)));
            continue;
        };
        drift = at.cast_signed() - written.cast_signed();
        placements.push(match drift {
            0 => Placement::Exact,
            lines => Placement::Offset { lines, others },
        });
        floor = at + new.len();
        growth += new.len().cast_signed() - old.len().cast_signed();
        lines.splice(at..at + old.len(), new);
    }
    (lines.concat(), placements)
}

/// The place nearest to `wanted` where `old` stands in full, and how many more there are.
fn find(lines: &[String], old: &[&str], wanted: usize, floor: usize) -> Option<(usize, usize)> {
    if old.is_empty() {
        // Nothing to recognize the place by, so only the line in the header counts.
        return (wanted >= floor && wanted <= lines.len()).then_some((wanted, 0));
    }
    let mut places: Vec<usize> = lines
        .windows(old.len())
        .enumerate()
        .skip(floor)
        .filter(|(_, window)| window.iter().eq(old.iter()))
        .map(|(at, _)| at)
        .collect();
    places.sort_by_key(|at| at.abs_diff(wanted));
    Some((*places.first()?, places.len() - 1))
}

fn first_difference(lines: &[String], old: &[&str], at: usize) -> String {
    for (index, expected) in old.iter().enumerate() {
        let number = at + index + 1;
        let expected = expected.trim_end_matches('\n');
        match lines
            .get(at + index)
            .map(|line| line.trim_end_matches('\n'))
        {
            None => {
                return format!(
                    "expected line {number} `{expected}`, but the file has {} lines",
                    lines.len()
                );
            }
            Some(found) if found != expected => {
                return format!("expected line {number} `{expected}`, found `{found}`");
            }
            Some(_) => {}
        }
    }
    format!("line {} was already changed by the hunk before", at + 1)
}

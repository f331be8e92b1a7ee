//! The series of this repository, on the release that cargo fetched.

use std::fs;
use std::path::{Path, PathBuf};

use connlib_patched::{Error, Series, Sources, assemble, counts, locate, read, sha256};
use diffy::patch_set::{ParseOptions, PatchSet};

fn repository(path: &str) -> PathBuf {
    // Asked of cargo when the test runs: it may have been built in another checkout, with the same target folder.
    let package = std::env::var_os("CARGO_MANIFEST_DIR").unwrap();
    Path::new(&package).join("../..").join(path)
}

fn release() -> PathBuf {
    let series = Series::load(&repository("patches/boringtun"))
        .unwrap()
        .release;
    locate(
        &repository("rust/boringtun/Cargo.toml"),
        &series.name,
        &series.version,
        None,
        true,
    )
    .unwrap()
}

fn build(dir: &Path) -> Result<Sources, Error> {
    assemble(&Series::load(dir)?, &release())
}

/// A copy to damage, in a directory of the same name.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// Where the context lines of a patch are: the position of each one's first byte, and the number of its hunk in the file.
fn context_lines(text: &str) -> Vec<(usize, usize)> {
    let (mut at, mut hunk, mut found) = (0, 0, Vec::new());
    for line in text.split_inclusive('\n') {
        match line.as_bytes()[0] {
            b'd' if line.starts_with("diff --git ") => hunk = 0,
            b'@' if line.starts_with("@@ ") => hunk += 1,
            b' ' if hunk > 0 && line.is_ascii() && line.trim().len() > 1 => {
                found.push((at + 1, hunk))
            }
            _ => {}
        }
        at += line.len();
    }
    found
}

#[test]
fn the_series_applies_as_diffy_applies_it() {
    let dir = repository("patches/boringtun");
    let sources = build(&dir).unwrap();
    let series = Series::load(&dir).unwrap();
    let mut expected = read(&release()).unwrap();
    for patch in &series.patches {
        let text = fs::read_to_string(dir.join(&patch.name)).unwrap();
        for (file, parsed) in patch
            .files
            .iter()
            .zip(PatchSet::parse(&text, ParseOptions::gitdiff()))
        {
            let before = expected.get(&file.path).cloned().unwrap_or_default();
            let after = diffy::apply(&before, parsed.unwrap().patch().as_text().unwrap()).unwrap();
            expected.insert(file.path.clone(), after);
        }
    }
    for (path, text) in sources
        .iter()
        .filter(|(path, _)| !series.overlays.contains_key(*path))
    {
        assert_eq!(*text, expected[path], "{path}");
    }
}

#[test]
fn one_byte_of_the_context_of_any_patch_stops_the_build() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path().join("patches/boringtun");
    copy(&repository("patches/boringtun"), &dir);
    for patch in Series::load(&dir).unwrap().patches {
        let file = dir.join(&patch.name);
        let good = fs::read_to_string(&file).unwrap();
        let lines = context_lines(&good);
        // A patch that only creates files has no context.
        let Some(&(at, hunk)) = lines.get(lines.len() / 2) else {
            continue;
        };
        let mut bytes = good.clone().into_bytes();
        bytes[at] ^= 1;
        fs::write(&file, bytes).unwrap();
        let message = build(&dir).expect_err(&patch.name).to_string();
        fs::write(&file, good).unwrap();
        let found = patch.files.iter().any(|changed| {
            let place = format!(
                "patches/boringtun/{}: {}: hunk {hunk} of {} (@@ -",
                patch.name,
                changed.path,
                changed.hunks.len()
            );
            message.starts_with(&place)
        });
        assert!(
            found && message.contains("expected line "),
            "hunk {hunk} of {}: {message}",
            patch.name
        );
    }
    build(&dir).unwrap();
}

#[test]
fn one_byte_of_any_source_of_the_release_stops_the_build() {
    let series = Series::load(&repository("patches/boringtun")).unwrap();
    let pristine = read(&release()).unwrap();
    for (path, text) in &pristine {
        let mut changed = pristine.clone();
        changed.insert(path.clone(), format!("?{}", &text[1..]));
        let message = series
            .verify(&changed, Path::new("unpacked"))
            .expect_err(path)
            .to_string();
        assert!(
            message.contains(&format!("{path} was changed")) && message.contains(&sha256(text)),
            "{message}"
        );
    }
}

#[test]
fn another_release_is_refused() {
    let message = locate(
        &repository("rust/boringtun/Cargo.toml"),
        "boringtun",
        "9.9.9",
        None,
        true,
    )
    .unwrap_err()
    .to_string();
    assert!(
        message.contains("for boringtun 9.9.9, but Cargo.lock has 0."),
        "{message}"
    );
}

#[test]
fn the_readme_counts_what_the_series_gives() {
    let dir = repository("patches/boringtun");
    let series = Series::load(&dir).unwrap();
    let expected = counts::summary(&series, &read(&release()).unwrap(), &build(&dir).unwrap());
    let readme = fs::read_to_string(repository("patches/README.md")).unwrap();
    let run = "run `cargo run -p connlib-patched --bin rebase-patches -- counts --write`";
    assert_eq!(counts::current(&readme).unwrap(), expected, "{run}");
}

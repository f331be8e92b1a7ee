//! For the person who moves a series to another release, or changes it: see `USAGE`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use connlib_patched::{Error, Outcome, Series, Sources, counts, locate, read, replay, sha256};

const USAGE: &str = "\
usage: rebase-patches [--series DIR] COMMAND, from the root of the workspace (DIR: patches/boringtun)
  try VERSION      apply the series to that release, and say what becomes of each hunk and overlay; 1 if any fails
  record VERSION   write that release and the SHA-256 of its sources to the series' series.toml
  counts           print what the series holds, and the lines kept, patched and replaced; 1 if DIR/../README.md
                   says something else
  counts --write   write them to DIR/../README.md";

fn main() -> ExitCode {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut dir = PathBuf::from("patches/boringtun");
    if arguments.first().is_some_and(|first| first == "--series") && arguments.len() > 2 {
        dir = PathBuf::from(&arguments[1]);
        arguments.drain(..2);
    }
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words[..] {
        ["try" | "record", version] if !is_version(version) => {
            eprintln!(
                "rebase-patches: {version:?} is not a release: give it as x.y.z, such as 0.7.1"
            );
            return ExitCode::from(2);
        }
        ["try", version] => try_release(&dir, version),
        ["record", version] => record(&dir, version),
        ["counts"] => count(&dir, false),
        ["counts", "--write"] => count(&dir, true),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("rebase-patches: {error}");
            ExitCode::FAILURE
        }
    }
}

fn try_release(dir: &Path, version: &str) -> Result<bool, Error> {
    let mut series = Series::load(dir)?;
    let sources = fetch(&series.release.name, version)?;
    println!(
        "{} {version}, with {}:\n",
        series.release.name, series.label
    );
    let known = std::mem::take(&mut series.release.pristine);
    for path in sources
        .keys()
        .filter(|path| !known.contains_key(*path) && !series.leaves_out(path))
    {
        println!(
            "new       {path}: the fork gets this file unless `leave_out` in series.toml lists it"
        );
    }
    for path in known.keys().filter(|path| !sources.contains_key(*path)) {
        println!("gone      {path}");
    }
    series.release.version = version.to_owned();
    let (mut applies, mut offset, mut fails) = (0, 0, 0);
    for step in replay(&series, &sources).steps {
        let (word, count) = match step.outcome {
            Outcome::Applies => ("applies", &mut applies),
            Outcome::Offset { .. } => ("offset", &mut offset),
            Outcome::Fails(_) => ("FAILS", &mut fails),
        };
        *count += 1;
        match step.outcome {
            Outcome::Applies => println!("{word:<9} {step}"),
            ref outcome => println!("{word:<9} {step}: {outcome}"),
        }
    }
    println!("\n{applies} apply, {offset} apply at an offset, {fails} fail.");
    if fails + offset > 0 {
        println!(
            "The build takes only hunks that apply at their line: see \"Moving to another release\" in the README."
        );
    }
    Ok(fails == 0)
}

fn record(dir: &Path, version: &str) -> Result<bool, Error> {
    let series = Series::load(dir)?;
    let path = dir.join("series.toml");
    let text = std::fs::read_to_string(&path).map_err(|error| Error::io("read", &path, &error))?;
    let mut written: String = text
        .lines()
        .take_while(|line| *line != "[pristine]")
        .map(|line| {
            if line.starts_with("version = ") {
                format!("version = \"{version}\"\n")
            } else {
                format!("{line}\n")
            }
        })
        .collect();
    written.push_str("[pristine]\n");
    for (path, text) in fetch(&series.release.name, version)? {
        written.push_str(&format!("\"{path}\" = \"{}\"\n", sha256(&text)));
    }
    std::fs::write(&path, written).map_err(|error| Error::io("write", &path, &error))?;
    println!(
        "{} records {} {version}",
        path.display(),
        series.release.name
    );
    Ok(true)
}

fn count(dir: &Path, write: bool) -> Result<bool, Error> {
    let series = Series::load(dir)?;
    let root = locate(
        Path::new("Cargo.toml"),
        &series.release.name,
        &series.release.version,
        None,
        true,
    )?;
    let pristine = read(&root)?;
    series.verify(&pristine, &root)?;
    let fork = replay(&series, &pristine).strict(&series)?;
    let summary = counts::summary(&series, &pristine, &fork);
    print!("{summary}");
    let path = dir.join("../README.md");
    let readme =
        std::fs::read_to_string(&path).map_err(|error| Error::io("read", &path, &error))?;
    if write {
        let readme = counts::renew(&readme, &summary)?;
        std::fs::write(&path, readme).map_err(|error| Error::io("write", &path, &error))?;
    } else if counts::current(&readme)? != summary {
        eprintln!(
            "rebase-patches: {} says something else: run `counts --write`",
            path.display()
        );
        return Ok(false);
    }
    Ok(true)
}

/// Whether it looks like `0.7.1` or `0.8.0-rc.1`: cargo would answer anything else with a page about a manifest.
fn is_version(text: &str) -> bool {
    let (numbers, suffix) = text.split_once('-').unwrap_or((text, "0"));
    let numbers: Vec<&str> = numbers.split('.').collect();
    numbers.len() == 3
        && numbers
            .iter()
            .all(|number| !number.is_empty() && number.bytes().all(|c| c.is_ascii_digit()))
        && !suffix.is_empty()
        && suffix
            .bytes()
            .all(|c| c.is_ascii_alphanumeric() || c == b'.' || c == b'-')
}

/// The sources of any release, by way of a package that depends on it.
fn fetch(name: &str, version: &str) -> Result<Sources, Error> {
    let scratch =
        Scratch(std::env::temp_dir().join(format!("rebase-patches-{}", std::process::id())));
    let manifest = scratch.0.join("Cargo.toml");
    let text = format!(
        "[package]\nname = \"scratch\"\nversion = \"0.0.0\"\nedition = \"2021\"\n[workspace]\n[lib]\npath = \"lib.rs\"\n\
         [dependencies]\n{name} = {{ version = \"={version}\", default-features = false }}\n"
    );
    std::fs::create_dir_all(&scratch.0)
        .and_then(|()| std::fs::write(scratch.0.join("lib.rs"), ""))
        .and_then(|()| std::fs::write(&manifest, text))
        .map_err(|error| Error::io("write", &manifest, &error))?;
    read(&locate(&manifest, name, version, None, false)?)
}

/// A directory that goes away with the value.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        // Nothing depends on it, and the system clears its temporary directory.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

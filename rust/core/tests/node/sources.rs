//! What the lint of `clippy.toml` cannot see.

use std::fs;
use std::path::Path;

/// Ways to a clock or to the system's randomness. A lint on types misses a value that is named by its full path.
const BANNED: [&str; 6] = [
    "OsRng",
    "getrandom",
    "thread_rng",
    "SystemTime",
    "std::time::Instant",
    "Instant::now",
];

#[test]
fn no_source_names_a_clock_or_a_random_source_of_the_system() {
    // Asked of cargo when the test runs: it may have been built in another checkout, with the same target folder.
    let package = std::env::var_os("CARGO_MANIFEST_DIR").unwrap();
    let mut directories = vec![Path::new(&package).join("src")];
    let mut seen = 0;
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
                continue;
            }
            seen += 1;
            let source = fs::read_to_string(&path).unwrap();
            for word in BANNED {
                assert!(!source.contains(word), "{} names {word}", path.display());
            }
        }
    }
    assert!(seen > 10);
}

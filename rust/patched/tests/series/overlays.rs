//! Overlays, and the check that the release is still what it was.

use crate::common::{A, Fixture, assert_says, diff};
use connlib_patched::{counts, replay, sha256, write};

fn entry(path: &str, replaces: Option<&str>) -> String {
    let replaces = replaces
        .map(|hash| format!("replaces_sha256 = \"{hash}\"\n"))
        .unwrap_or_default();
    format!("[\"{path}\"]\nscenarios = \"7, 24\"\n{replaces}")
}

#[test]
fn an_overlay_adds_or_replaces_a_file() {
    let fixture = Fixture::new();
    fixture.series("overlay/src/a.rs", "pub fn ours() {}\n");
    fixture.series("overlay/src/deep/new.rs", "//! New.\n");
    fixture.series(
        "overlay.toml",
        &(entry("src/a.rs", Some(&sha256(A))) + &entry("src/deep/new.rs", None)),
    );
    let sources = fixture.build().unwrap();
    assert_eq!(sources["src/a.rs"], "pub fn ours() {}\n");
    assert_eq!(sources["src/deep/new.rs"], "//! New.\n");
}

#[test]
fn an_overlay_for_another_file_is_named() {
    let fixture = Fixture::new();
    fixture.series("overlay/src/a.rs", "pub fn ours() {}\n");
    fixture.series(
        "overlay.toml",
        &entry("src/a.rs", Some(&sha256("something else"))),
    );
    assert_says(
        &fixture.stops(),
        &[
            "demo/overlay/src/a.rs: ",
            &sha256("something else"),
            &sha256(A),
            "overlay.toml",
        ],
    );
}

#[test]
fn an_overlay_that_replaces_nothing_says_so_and_the_other_way_round() {
    let fixture = Fixture::new();
    fixture.series("overlay/src/a.rs", "pub fn ours() {}\n");
    fixture.series("overlay.toml", &entry("src/a.rs", None));
    assert_says(
        &fixture.stops(),
        &[
            "overlay/src/a.rs: ",
            "the release has this file",
            &sha256(A),
        ],
    );

    let fixture = Fixture::new();
    fixture.series("overlay/src/c.rs", "pub fn ours() {}\n");
    fixture.series("overlay.toml", &entry("src/c.rs", Some(&sha256(A))));
    assert_says(
        &fixture.stops(),
        &["overlay/src/c.rs: ", "no such file", "replaces_sha256"],
    );
}

#[test]
fn an_overlay_and_its_entry_need_each_other() {
    let fixture = Fixture::new();
    fixture.series("overlay/src/a.rs", "pub fn ours() {}\n");
    assert_says(
        &fixture.stops(),
        &["demo/overlay/src/a.rs: is not in overlay.toml"],
    );
    fixture.series(
        "overlay.toml",
        &(entry("src/a.rs", Some(&sha256(A))) + &entry("src/c.rs", None)),
    );
    assert_says(
        &fixture.stops(),
        &["demo/overlay.toml: overlay/src/c.rs does not exist"],
    );
    fixture.series(
        "overlay.toml",
        &entry("src/a.rs", Some(&sha256(A))).replace("7, 24", " "),
    );
    assert_says(
        &fixture.stops(),
        &["demo/overlay.toml: src/a.rs: `scenarios`"],
    );
    fixture.series("overlay.toml", "[\"src/a.rs\"]\nscenario = \"7\"\n");
    assert_says(&fixture.stops(), &["overlay.toml:2: ", "scenario"]);
}

#[test]
fn a_file_is_patched_or_replaced_but_not_both() {
    let fixture = Fixture::new();
    fixture.patch(
        "0001-both.patch",
        &diff("src/a.rs", "@@ -1 +1 @@\n-pub fn a() {}\n+pub fn b() {}\n"),
    );
    fixture.series("overlay/src/a.rs", "pub fn ours() {}\n");
    fixture.series("overlay.toml", &entry("src/a.rs", Some(&sha256(A))));
    assert_says(
        &fixture.stops(),
        &[
            "0001-both.patch: src/a.rs: ",
            "overlay/src/a.rs replaces this file",
        ],
    );
}

#[test]
fn a_changed_missing_or_additional_source_of_the_release_is_named() {
    let fixture = Fixture::new();
    fixture.release("src/a.rs", "pub fn b() {}\n");
    assert_says(
        &fixture.stops(),
        &[
            "demo 1.2.3",
            "src/a.rs was changed",
            &sha256(A),
            "demo/series.toml",
        ],
    );
    std::fs::remove_file(fixture.root().join("src/a.rs")).unwrap();
    assert_says(&fixture.stops(), &["src/a.rs is missing"]);
    fixture.release("src/a.rs", A);
    fixture.release("src/x/y.rs", "");
    assert_says(&fixture.stops(), &["src/x/y.rs is not of it"]);
}

#[test]
fn the_counts_add_up() {
    let fixture = Fixture::new();
    fixture.patch(
        "0001-lib.patch",
        &diff(
            "src/lib.rs",
            "@@ -1,2 +1,3 @@\n mod a;\n-mod b;\n+mod c;\n+mod d;\n",
        ),
    );
    fixture.series("overlay/src/a.rs", "1\n2\n3\n");
    fixture.series("overlay.toml", &entry("src/a.rs", Some(&sha256(A))));
    let series = connlib_patched::Series::load(&fixture.series_dir()).unwrap();
    let pristine = connlib_patched::read(&fixture.root()).unwrap();
    let summary = counts::summary(&series, &pristine, &replay(&series, &pristine).sources);
    for row in [
        "| `src/lib.rs` | 8 | 7 | 1 | 2 | 0 | 0 |",
        "| `src/a.rs` | 1 | 0 | 0 | 0 | 1 | 3 |",
        "| `src/b.rs` | 1 | 1 | 0 | 0 | 0 | 0 |",
        "| **all** | 10 | 8 | 1 | 2 | 1 | 3 |",
        "- `overlay/src/a.rs` (replaces the file): 7, 24",
        "- `0001-lib.patch`\n\n  A title.\n\n  Why, and which test shows it.\n",
    ] {
        assert!(summary.contains(row), "`{row}` is not in:\n{summary}");
    }

    let readme = "before\n<!-- counts: begin -->\nold\n<!-- counts: end -->\nafter\n";
    let renewed = counts::renew(readme, &summary).unwrap();
    assert_eq!(counts::current(&renewed).unwrap(), summary);
    assert!(renewed.starts_with("before\n") && renewed.ends_with("-->\nafter\n"));
    assert!(counts::renew("no markers", &summary).is_err());
}

#[test]
fn nothing_of_an_earlier_build_stays() {
    let fixture = Fixture::new();
    let out = fixture.root().join("out");
    let mut sources = fixture.build().unwrap();
    write(&sources, &out).unwrap();
    assert_eq!(connlib_patched::read(&out).unwrap(), sources);
    sources.remove("src/b.rs");
    write(&sources, &out).unwrap();
    assert_eq!(connlib_patched::read(&out).unwrap(), sources);
}

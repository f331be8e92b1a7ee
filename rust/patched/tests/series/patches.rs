//! What a patch may do, and how the build stops when it does not fit.

use crate::common::{Fixture, LIB, assert_says, diff};
use connlib_patched::Outcome;

const TWO: &str =
    "@@ -3,3 +3,3 @@ mod b;\n fn one() {}\n-fn two() {}\n+fn second() {}\n fn three() {}\n";
const SIX: &str = "@@ -7,2 +7,3 @@ fn four() {}\n fn five() {}\n fn six() {}\n+fn seven() {}\n";

#[test]
fn hunks_of_several_files_apply() {
    let fixture = Fixture::new();
    let a = diff(
        "src/a.rs",
        "@@ -1 +1,2 @@\n pub fn a() {}\n+pub fn aa() {}\n",
    );
    fixture.patch(
        "0001-both.patch",
        &format!("{}{a}", diff("src/lib.rs", &format!("{TWO}{SIX}"))),
    );
    let sources = fixture.build().unwrap();
    assert_eq!(
        sources["src/lib.rs"],
        format!("{}fn seven() {{}}\n", LIB.replace("two", "second"))
    );
    assert_eq!(sources["src/a.rs"], "pub fn a() {}\npub fn aa() {}\n");
}

#[test]
fn an_empty_series_is_the_release() {
    let sources = Fixture::new().build().unwrap();
    assert_eq!(sources["src/lib.rs"], LIB);
    assert_eq!(sources.len(), 3);
}

#[test]
fn patches_apply_in_the_order_of_their_numbers() {
    let fixture = Fixture::new();
    let second = TWO
        .replace("fn two", "fn second")
        .replace("+fn second", "+fn deuxieme");
    fixture.patch("0002-later.patch", &diff("src/lib.rs", &second));
    fixture.patch("0001-first.patch", &diff("src/lib.rs", TWO));
    assert_eq!(
        fixture.build().unwrap()["src/lib.rs"],
        LIB.replace("two", "deuxieme")
    );
}

#[test]
fn a_patch_creates_and_deletes_files() {
    let fixture = Fixture::new();
    let create = "diff --git a/src/new.rs b/src/new.rs\nnew file mode 100644\nindex 0000000..1111111\n--- /dev/null\n\
                  +++ b/src/new.rs\n@@ -0,0 +1,2 @@\n+//! New.\n+fn new() {}\n";
    let delete = "diff --git a/src/b.rs b/src/b.rs\ndeleted file mode 100644\nindex 1111111..0000000\n--- a/src/b.rs\n\
                  +++ /dev/null\n@@ -1 +0,0 @@\n-pub fn b() {}\n";
    fixture.patch("0001-files.patch", &format!("{create}{delete}"));
    let sources = fixture.build().unwrap();
    assert_eq!(sources["src/new.rs"], "//! New.\nfn new() {}\n");
    assert!(!sources.contains_key("src/b.rs"));
}

#[test]
fn a_changed_context_names_patch_file_and_hunk() {
    let fixture = Fixture::new();
    let hunks = format!("{TWO}{}", SIX.replace(" fn five", " fn fivf"));
    fixture.patch("0007-names.patch", &diff("src/lib.rs", &hunks));
    let hunk = "0007-names.patch: src/lib.rs: hunk 2 of 2 (@@ -7,2 +7,3 @@)";
    assert_says(
        &fixture.stops(),
        &[
            hunk,
            "expected line 7 `fn fivf() {}`, found `fn five() {}`",
            "demo 1.2.3",
        ],
    );
}

#[test]
fn every_single_byte_of_the_context_counts() {
    let whole = diff("src/lib.rs", &format!("{TWO}{SIX}"));
    for line in [
        "\n fn one() {}\n",
        "\n-fn two() {}\n",
        "\n fn three() {}\n",
        "\n fn six() {}\n",
    ] {
        let start = whole.find(line).unwrap() + 2;
        for at in start..start + line.len() - 3 {
            let mut bytes = whole.clone().into_bytes();
            bytes[at] ^= 1;
            let fixture = Fixture::new();
            fixture.patch("0001-flip.patch", &String::from_utf8(bytes).unwrap());
            assert_says(
                &fixture.stops(),
                &["0001-flip.patch", "src/lib.rs", " of 2 (@@ -"],
            );
        }
    }
}

#[test]
fn a_hunk_at_an_offset_stops_the_build_and_is_told_to_who_rebases() {
    let fixture = Fixture::new();
    fixture.patch(
        "0001-off.patch",
        &diff("src/lib.rs", &TWO.replace("-3,3 +3,3", "-5,3 +5,3")),
    );
    assert_says(
        &fixture.stops(),
        &[
            "0001-off.patch: src/lib.rs: hunk 1 of 1 (@@ -5,3 +5,3 @@)",
            "offset of -2 lines",
        ],
    );
    assert_eq!(
        fixture.replay().steps[0].outcome,
        Outcome::Offset {
            lines: -2,
            others: 0
        }
    );
    assert_eq!(
        fixture.replay().sources["src/lib.rs"],
        LIB.replace("two", "second")
    );
}

#[test]
fn places_that_look_the_same_are_counted() {
    let fixture = Fixture::new();
    fixture.release("src/b.rs", "a\nb\n\na\nb\n");
    fixture.patch(
        "0001-twice.patch",
        &diff("src/b.rs", "@@ -3,2 +3,2 @@\n a\n-b\n+c\n"),
    );
    let replay = fixture.replay();
    assert_eq!(
        replay.steps[0].outcome,
        Outcome::Offset {
            lines: 1,
            others: 1
        }
    );
    assert_eq!(replay.sources["src/b.rs"], "a\nb\n\na\nc\n");
}

#[test]
fn who_rebases_sees_every_failure() {
    let fixture = Fixture::new();
    let hunks = format!("{}{SIX}", TWO.replace("fn one", "fn eins"));
    fixture.patch("0001-one.patch", &diff("src/lib.rs", &hunks));
    fixture.patch("0002-two.patch", &diff("src/c.rs", "@@ -1 +1 @@\n-a\n+b\n"));
    let steps = fixture.replay().steps;
    let fails: Vec<bool> = steps
        .iter()
        .map(|step| matches!(step.outcome, Outcome::Fails(_)))
        .collect();
    assert_eq!(fails, [true, false, true]);
}

#[test]
fn a_file_that_the_release_does_not_have_is_named() {
    let fixture = Fixture::new();
    fixture.patch(
        "0001-ghost.patch",
        &diff("src/ghost.rs", "@@ -1 +1 @@\n-a\n+b\n"),
    );
    assert_says(
        &fixture.stops(),
        &[
            "0001-ghost.patch: src/ghost.rs:",
            "demo 1.2.3 has no such file",
        ],
    );
}

#[test]
fn a_file_that_is_left_out_cannot_be_patched() {
    let fixture = Fixture::new();
    let toml = std::fs::read_to_string(fixture.series_dir().join("series.toml")).unwrap();
    fixture.series(
        "series.toml",
        &format!("leave_out = [\"src/a.rs\"]\n{toml}"),
    );
    assert!(!fixture.build().unwrap().contains_key("src/a.rs"));
    fixture.patch(
        "0001-out.patch",
        &diff("src/a.rs", "@@ -1 +1 @@\n-pub fn a() {}\n+b\n"),
    );
    assert_says(
        &fixture.stops(),
        &[
            "0001-out.patch: src/a.rs:",
            "`leave_out` in series.toml lists this file",
        ],
    );
}

#[test]
fn a_file_cannot_be_created_twice() {
    let fixture = Fixture::new();
    let create = "diff --git a/src/a.rs b/src/a.rs\nnew file mode 100644\n--- /dev/null\n+++ b/src/a.rs\n@@ -0,0 +1 @@\n+a\n";
    fixture.patch("0001-again.patch", create);
    assert_says(
        &fixture.stops(),
        &["0001-again.patch: src/a.rs:", "it exists"],
    );
}

#[test]
fn damage_that_hides_a_hunk_is_found() {
    let whole = diff("src/lib.rs", &format!("{TWO}{SIX}"));
    for (from, to, says) in [
        ("diff --git", "diff -git", "no `diff --git` line"),
        ("@@ -7,2", "@A -7,2", "belongs to no hunk"),
        ("@@ -7,2", "@@ -7,x", "no hunk header"),
        ("-3,3", "-3,2", "longer than its header"),
        ("@@ -7,2 +7,3", "@@ -7,3 +7,4", "shorter than its header"),
        (" fn five", "xfn five", "no line of hunk 2"),
        ("+fn seven", " fn seven", "longer than its header"),
    ] {
        let fixture = Fixture::new();
        fixture.patch("0001-damaged.patch", &whole.replace(from, to));
        assert_says(&fixture.stops(), &["demo/0001-damaged.patch: ", says]);
    }
}

#[test]
fn renames_and_binary_patches_are_refused() {
    let rename = "diff --git a/src/a.rs b/src/c.rs\nsimilarity index 100%\nrename from src/a.rs\nrename to src/c.rs\n";
    let binary = "diff --git a/src/a.rs b/src/a.rs\nindex 1..2 100644\nBinary files a/src/a.rs and b/src/a.rs differ\n";
    for text in [rename, binary] {
        let fixture = Fixture::new();
        fixture.patch("0001-odd.patch", text);
        assert_says(&fixture.stops(), &["demo/0001-odd.patch: "]);
    }
}

#[test]
fn a_patch_needs_a_header_and_a_number_of_its_own() {
    let fixture = Fixture::new();
    fixture.series("0001-bare.patch", &diff("src/lib.rs", TWO));
    assert_says(&fixture.stops(), &["demo/0001-bare.patch: has no header"]);
    fixture.patch("0001-bare.patch", &diff("src/lib.rs", TWO));
    fixture.patch("0001-other.patch", &diff("src/lib.rs", SIX));
    assert_says(
        &fixture.stops(),
        &["demo/0001-other.patch: has the number of 0001-bare.patch"],
    );
}

#[test]
fn the_closing_line_of_format_patch_is_no_part_of_a_hunk() {
    let fixture = Fixture::new();
    let mail = "From 0123 Mon Sep 17 00:00:00 2001\nFrom: A <a@b>\nDate: today\nSubject: [PATCH 1/2] Title\n\nWhy.\n---\n 1 file\n\n";
    fixture.series(
        "0001-mail.patch",
        &format!("{mail}{}-- \n2.39.0\n\n", diff("src/lib.rs", TWO)),
    );
    assert_eq!(
        fixture.build().unwrap()["src/lib.rs"],
        LIB.replace("two", "second")
    );
    let series = connlib_patched::Series::load(&fixture.series_dir()).unwrap();
    assert_eq!(series.patches[0].header, "Title\n\nWhy.");
}

#[test]
fn a_stray_file_is_named() {
    let fixture = Fixture::new();
    fixture.patch("1-short.patch", &diff("src/lib.rs", TWO));
    assert_says(
        &fixture.stops(),
        &["demo/1-short.patch: ", "NNNN-name.patch"],
    );
}

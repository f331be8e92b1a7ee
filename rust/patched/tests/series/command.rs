//! What `rebase-patches` says to arguments that are none.

use std::process::Command;

fn answer(arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_rebase-patches"))
        .args(arguments)
        .output()
        .unwrap();
    (
        output.status.code(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

#[test]
fn what_is_not_a_release_is_refused_in_one_line() {
    for version in ["", "x", "0.7", "0.7.1.2", "0.7.1-", "0.7.1\"", "=0.7.1"] {
        for command in ["try", "record"] {
            let expected = format!(
                "rebase-patches: {version:?} is not a release: give it as x.y.z, such as 0.7.1\n"
            );
            assert_eq!(answer(&[command, version]), (Some(2), expected));
        }
    }
}

#[test]
fn without_a_command_the_usage_is_shown() {
    let (code, text) = answer(&[]);
    assert_eq!(code, Some(2));
    assert!(text.starts_with("usage: rebase-patches "), "{text}");
}

//! Every engine runs at every size, so that the benchmarks cannot rot. Nothing is said about speed here.

use connlib_core::aead::{Choice, choose};
use std::io::Write;
use std::process::{Command, Stdio};

#[test]
fn every_engine_answers_for_every_size() {
    let mut requests = String::new();
    let mut engines = vec![
        "ring",
        "boringtun",
        "in-place",
        "tunn",
        "node",
        "node-batch",
        "node-together",
    ];
    if choose(Choice::IpsecMb).is_ok() {
        engines.push("node-ipsec-mb");
    }
    for engine in engines {
        for size in [64, 576, 1420, 8920] {
            requests += &format!("{engine} {size} 0\n");
        }
    }
    let mut child = Command::new(env!("CARGO_BIN_EXE_connlib-benches"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the benchmark starts");
    child
        .stdin
        .take()
        .expect("a pipe")
        .write_all(requests.as_bytes())
        .expect("it reads");
    let answer = child.wait_with_output().expect("it ends");
    assert!(answer.status.success());
    let answer = String::from_utf8(answer.stdout).expect("text");
    assert_eq!(answer.lines().count(), requests.lines().count());
    for line in answer.lines() {
        let times: Vec<f64> = line
            .split(' ')
            .map(|time| time.parse().expect("a number"))
            .collect();
        assert!(
            matches!(times[..], [seal, open] if seal > 0.0 && open > 0.0),
            "{line}"
        );
    }
}

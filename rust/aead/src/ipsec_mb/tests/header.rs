//! Our idea of the library's memory, compared with the header of the development package (on Debian: libipsec-mb-dev).

use std::collections::BTreeMap;
use std::mem::offset_of;
use std::process::Command;

use super::super::layout::{self, Job};

/// Each name with the C expression for its value and ours.
fn expected() -> Vec<(String, String, u64)> {
    let mut all = Vec::new();
    let mut add = |name: &str, expression: String, ours: u64| {
        all.push((name.to_owned(), expression, ours));
    };
    for (field, ours) in [
        ("features", layout::FEATURES),
        ("used_arch", layout::USED_ARCH),
        ("get_next_burst", layout::GET_NEXT_BURST),
        ("submit_burst", layout::SUBMIT_BURST),
        ("flush_burst", layout::FLUSH_BURST),
    ] {
        add(field, format!("offsetof(IMB_MGR, {field})"), ours as u64);
    }
    add(
        "size of a job",
        "sizeof(IMB_JOB)".to_owned(),
        size_of::<Job>() as u64,
    );
    macro_rules! fields {
        ($($field:ident)*) => {
            $(add(
                stringify!($field),
                concat!("offsetof(IMB_JOB, ", stringify!($field), ")").to_owned(),
                offset_of!(Job, $field) as u64,
            );)*
        };
    }
    fields!(
        enc_keys dec_keys key_len_in_bytes src dst cipher_start_src_offset_in_bytes
        msg_len_to_cipher_in_bytes hash_start_src_offset_in_bytes msg_len_to_hash_in_bytes iv
        iv_len_in_bytes auth_tag_output auth_tag_output_len_in_bytes status cipher_mode
        cipher_direction hash_alg chain_order user_data user_data2 cipher_func hash_func sgl_state
        cipher_fields
    );
    for (field, ours) in [
        ("aad", offset_of!(Job, aad)),
        ("aad_len_in_bytes", offset_of!(Job, aad_len_in_bytes)),
        ("ctx", offset_of!(Job, ctx)),
    ] {
        add(
            field,
            format!("offsetof(IMB_JOB, u.CHACHA20_POLY1305.{field})"),
            ours as u64,
        );
    }
    for (name, ours) in [
        ("IMB_FEATURE_SAFE_DATA", layout::SAFE_DATA),
        ("IMB_FEATURE_SELF_TEST", layout::SELF_TEST),
        ("IMB_FEATURE_SELF_TEST_PASS", layout::SELF_TEST_PASS),
        ("IMB_ARCH_AVX512", layout::ARCH_AVX512.into()),
        ("IMB_CIPHER_CHACHA20_POLY1305", layout::CIPHER.into()),
        ("IMB_AUTH_CHACHA20_POLY1305", layout::AUTH.into()),
        ("IMB_DIR_ENCRYPT", layout::ENCRYPT.0.into()),
        ("IMB_ORDER_CIPHER_HASH", layout::ENCRYPT.1.into()),
        ("IMB_DIR_DECRYPT", layout::DECRYPT.0.into()),
        ("IMB_ORDER_HASH_CIPHER", layout::DECRYPT.1.into()),
        ("IMB_STATUS_COMPLETED", layout::COMPLETED.into()),
    ] {
        add(name, name.to_owned(), ours);
    }
    all
}

/// What the header says; `None` where there is no compiler for C or no header, unless in CI.
fn measured(names: &[(String, String, u64)]) -> Option<BTreeMap<String, u64>> {
    let folder = tempfile::tempdir().expect("a folder");
    let (source, program) = (folder.path().join("header.c"), folder.path().join("header"));
    let lines: String = names
        .iter()
        .map(|(name, expression, _)| {
            format!("printf(\"%llu {name}\\n\", (unsigned long long)({expression}));\n")
        })
        .collect();
    let text = format!(
        "#include <stddef.h>\n#include <stdio.h>\n#include <intel-ipsec-mb.h>\n\
         int main(void) {{\nprintf(\"%u version\\n\", IMB_VERSION_NUM);\n{lines}}}\n"
    );
    std::fs::write(&source, text).expect("a file");
    let compiled = Command::new("cc")
        .arg("-o")
        .arg(&program)
        .arg(&source)
        .output();
    let why = match compiled {
        Ok(done) if done.status.success() => None,
        Ok(done) => Some(String::from_utf8_lossy(&done.stderr).into_owned()),
        Err(error) => Some(error.to_string()),
    };
    if let Some(why) = why {
        // The same that conftest.py takes for CI.
        let ci = std::env::var("CI").unwrap_or_default().to_lowercase();
        let in_ci = !["", "0", "false"].contains(&ci.as_str());
        assert!(!in_ci, "needs a C compiler and libipsec-mb-dev: {why}");
        eprintln!("skipped: needs a C compiler and libipsec-mb-dev: {why}");
        return None;
    }
    let done = Command::new(program).output().expect("it runs");
    let text = String::from_utf8(done.stdout).expect("text");
    let line = |line: &str| {
        let (value, name) = line.split_once(' ')?;
        Some((name.to_owned(), value.parse().ok()?))
    };
    text.lines().map(line).collect()
}

#[test]
fn the_library_is_laid_out_as_its_header_says() {
    let expected = expected();
    let Some(mut measured) = measured(&expected) else {
        return;
    };
    let version = measured.remove("version").expect("a version");
    assert!(
        layout::VERSIONS.contains(&(version as u32)),
        "the header is of version {version:#x}, which is not used"
    );
    let ours: BTreeMap<_, _> = expected
        .into_iter()
        .map(|(name, _, ours)| (name, ours))
        .collect();
    assert_eq!(measured, ours);
}

//! Makes the fork's sources: the release that cargo fetched, with our series applied.

fn main() {
    // The release knows these features, the fork does not have them.
    println!(
        "cargo::rustc-check-cfg=cfg(feature, values(\"device\", \"ffi-bindings\", \"jni-bindings\", \"mock-instant\"))"
    );
    connlib_patched::build("../../patches/boringtun");
}

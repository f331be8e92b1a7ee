//! The target of cargo-fuzz for superpackets with a compiler that has no fuzzer: every seed of its corpus, changed seeds, and
//! any bytes.

#[path = "../../../fuzz/offload.rs"]
mod offload;

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use proptest::sample::Index;

use offload::offload;

fn seeds() -> Vec<Vec<u8>> {
    // Asked of cargo when the test runs: it may have been built in another checkout, with the same target folder.
    let package = std::env::var_os("CARGO_MANIFEST_DIR").unwrap();
    let folder = Path::new(&package).join("../../fuzz/seeds/offload");
    let files = fs::read_dir(folder).unwrap();
    let mut paths: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

#[test]
fn every_seed_of_the_corpus_passes() {
    let seeds = seeds();
    assert!(seeds.len() >= 10, "{}", seeds.len());
    seeds.iter().for_each(|seed| offload(seed));
}

proptest! {
    #[test]
    fn any_bytes_pass(data in prop::collection::vec(any::<u8>(), 0..400)) {
        offload(&data);
    }

    #[test]
    fn seeds_that_were_joined_and_changed_pass(
        picks in prop::collection::vec((any::<Index>(), any::<Index>(), any::<u8>()), 1..6)
    ) {
        let seeds = seeds();
        let mut data = Vec::new();
        for (seed, place, change) in &picks {
            let mut seed = seed.get(&seeds).clone();
            if !seed.is_empty() {
                let place = place.index(seed.len());
                seed[place] ^= change;
            }
            data.extend(seed);
        }
        offload(&data);
    }
}

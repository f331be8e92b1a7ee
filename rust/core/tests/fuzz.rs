//! The targets of cargo-fuzz with a compiler that has no fuzzer: every seed of its corpus, changed seeds, and any bytes.

#[path = "../../../fuzz/targets.rs"]
mod targets;

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use proptest::sample::Index;

type Target = fn(&[u8]);

const TARGETS: [(&str, Target); 3] = [
    ("parse", targets::parse),
    ("decapsulate", targets::decapsulate),
    ("handshake", targets::handshake),
];

fn seeds(target: &str) -> Vec<Vec<u8>> {
    // Asked of cargo when the test runs: it may have been built in another checkout, with the same target folder.
    let package = std::env::var_os("CARGO_MANIFEST_DIR").unwrap();
    let folder = Path::new(&package).join("../../fuzz/seeds");
    let files = fs::read_dir(folder.join(target)).unwrap();
    let mut paths: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

#[test]
fn every_seed_of_the_corpus_passes() {
    for (name, target) in TARGETS {
        let seeds = seeds(name);
        assert!(seeds.len() >= 10, "{name} has {} seeds", seeds.len());
        seeds.iter().for_each(|seed| target(seed));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_bytes_pass(data in prop::collection::vec(any::<u8>(), 0..400)) {
        TARGETS.iter().for_each(|(_, target)| target(&data));
    }

    #[test]
    fn seeds_that_were_cut_joined_and_changed_pass(
        picks in prop::collection::vec((any::<Index>(), any::<Index>(), any::<u8>()), 1..6)
    ) {
        for (name, target) in TARGETS {
            let seeds = seeds(name);
            let mut data = Vec::new();
            for (seed, place, change) in &picks {
                let mut seed = seed.get(&seeds).clone();
                if !seed.is_empty() {
                    let place = place.index(seed.len());
                    seed[place] ^= change;
                    seed.truncate(place.max(seed.len() / 2) + 1);
                }
                data.extend(seed);
            }
            target(&data);
        }
    }
}

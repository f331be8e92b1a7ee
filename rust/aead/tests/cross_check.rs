//! A million random messages and more: what ring seals, intel-ipsec-mb seals alike, and each opens what the other one sealed.

mod common;

use std::sync::Arc;

use connlib_aead::{Batch, Engine, Key, TAG_LEN};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

const MESSAGES: usize = 1_000_000;
const LONGEST: usize = 65_535;

struct Message {
    key: usize,
    counter: u64,
    text: usize,
    /// Which bit is flipped before it is opened, if one is.
    forged: Option<usize>,
}

/// Random batches, and what both engines make of them.
struct Check {
    ring: Engine,
    library: Engine,
    keys: Vec<Arc<Key>>,
    rng: ChaCha20Rng,
    noise: Vec<u8>,
    count: usize,
}

impl Check {
    fn new(library: Engine) -> Self {
        let mut rng = ChaCha20Rng::seed_from_u64(8439);
        let keys = (0..5).map(|_| {
            let mut bytes = [0; 32];
            rng.fill_bytes(&mut bytes);
            Arc::new(Key::new(&bytes).unwrap())
        });
        let keys = keys.collect();
        let mut noise = vec![0; 1 << 20];
        rng.fill_bytes(&mut noise);
        Check {
            ring: Engine::Ring,
            library,
            keys,
            rng,
            noise,
            count: 0,
        }
    }

    fn below(&mut self, bound: usize) -> usize {
        self.rng.next_u64() as usize % bound
    }

    /// Short ones and full-size packets mostly, and any length there is.
    fn length(&mut self) -> usize {
        match self.below(200) {
            0 => self.below(LONGEST + 1),
            1..=10 => self.below(9_000),
            11..=40 => self.below(1_500),
            41..=60 => 1_420 - self.below(20),
            61..=70 => 1_280,
            71..=80 => 0,
            _ => self.below(130),
        }
    }

    fn message(&mut self, text: usize) -> Message {
        let counter = match self.below(4) {
            0 => self.rng.next_u64(),
            1 => u64::MAX - self.rng.next_u64() % 3,
            _ => self.below(1 << 20) as u64,
        };
        let forged = self.below(50) == 0;
        Message {
            key: self.below(self.keys.len()),
            counter,
            text,
            forged: forged.then(|| self.below((text + TAG_LEN) * 8)),
        }
    }

    fn batch(&mut self, messages: &[Message]) {
        let mut batch = Batch::default();
        let (mut buffer, mut places) = (Vec::new(), Vec::new());
        for message in messages {
            // Between messages lies something that is nobody's business.
            let gap = self.below(40);
            let at = self.below(self.noise.len() - LONGEST);
            buffer.resize(buffer.len() + gap, 0xee);
            let start = buffer.len();
            buffer.extend_from_slice(&self.noise[at..at + message.text + TAG_LEN]);
            let range = start..buffer.len();
            batch.push(&self.keys[message.key], message.counter, range.clone());
            places.push((range, at));
        }
        buffer.push(0xee);
        let (mut by_ring, mut by_library) = (buffer.clone(), buffer);
        self.ring.seal(&mut batch, &mut by_ring);
        self.library.seal(&mut batch, &mut by_library);
        assert!((0..messages.len()).all(|number| batch.succeeded(number)));
        assert!(by_ring == by_library, "sealed otherwise, at {}", self.count);
        for (message, (range, _)) in messages.iter().zip(&places) {
            if let Some(bit) = message.forged {
                for sealed in [&mut by_ring, &mut by_library] {
                    sealed[range.start + bit / 8] ^= 1 << (bit % 8);
                }
            }
        }
        // Each opens what the other one sealed.
        self.library.open(&mut batch, &mut by_ring);
        self.judge(messages, &places, &batch, &by_ring);
        self.ring.open(&mut batch, &mut by_library);
        self.judge(messages, &places, &batch, &by_library);
        self.count += messages.len();
        assert_eq!(self.library.name(), "ipsec-mb", "it was given up");
    }

    fn judge(
        &self,
        messages: &[Message],
        places: &[(std::ops::Range<usize>, usize)],
        batch: &Batch,
        opened: &[u8],
    ) {
        let mut end = 0;
        for (number, (message, (range, at))) in messages.iter().zip(places).enumerate() {
            let context = || format!("message {} of {} bytes", self.count + number, message.text);
            assert!(
                opened[end..range.start].iter().all(|byte| *byte == 0xee),
                "{}",
                context()
            );
            end = range.end;
            assert_eq!(
                batch.succeeded(number),
                message.forged.is_none(),
                "{}",
                context()
            );
            match message.forged {
                None => {
                    let text = batch.text(number, opened).unwrap();
                    assert!(text == &self.noise[*at..at + message.text], "{}", context());
                }
                Some(_) => {
                    assert_eq!(batch.text(number, opened), None);
                    assert!(
                        opened[range.clone()].iter().all(|byte| *byte == 0),
                        "{}",
                        context()
                    );
                }
            }
        }
        assert_eq!(opened[end..], [0xee]);
    }
}

#[test]
fn ring_and_ipsec_mb_agree_on_a_million_messages() {
    let Some(library) = common::ipsec_mb() else {
        return;
    };
    let mut check = Check::new(library);
    while check.count < MESSAGES {
        let size = match check.below(4) {
            0 => 1 + check.below(3),
            1 => 64,
            _ => 1 + check.below(150),
        };
        let messages: Vec<_> = (0..size)
            .map(|_| {
                let length = check.length();
                check.message(length)
            })
            .collect();
        check.batch(&messages);
    }
}

#[test]
fn ring_and_ipsec_mb_agree_on_every_length() {
    let Some(library) = common::ipsec_mb() else {
        return;
    };
    let mut check = Check::new(library);
    let lengths: Vec<usize> = (0..=LONGEST).collect();
    for lengths in lengths.chunks(37) {
        let messages: Vec<_> = lengths
            .iter()
            .map(|length| check.message(*length))
            .collect();
        check.batch(&messages);
    }
    assert_eq!(check.count, LONGEST + 1);
}

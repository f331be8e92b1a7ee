//! Keys as lines of a WireGuard key log, with which Wireshark decrypts.

use base64ct::{Base64, Encoding};
use connlib_core::key_log::HandshakeKeys;

use crate::key_material::KEY_LEN;

type Key = [u8; KEY_LEN];

/// A preshared key belongs to the ephemeral key above it. The static keys stand where they are others than before.
#[derive(Default)]
pub struct Lines {
    lines: Vec<String>,
    /// Our private key and the peer's public key, as they were written last.
    statics: [String; 2],
}

impl Lines {
    pub fn add_statics(&mut self, own: &Key, peer: &Key) {
        let statics = [
            line("LOCAL_STATIC_PRIVATE_KEY", own),
            line("REMOTE_STATIC_PUBLIC_KEY", peer),
        ];
        for (line, before) in statics.into_iter().zip(&mut self.statics) {
            if line != *before {
                self.lines.push(line.clone());
                *before = line;
            }
        }
    }

    pub fn add<'a>(&mut self, handshakes: impl Iterator<Item = &'a HandshakeKeys>) {
        for keys in handshakes {
            self.add_statics(&keys.own, &keys.peer);
            let ephemeral = line("LOCAL_EPHEMERAL_PRIVATE_KEY", &keys.ephemeral);
            self.lines.push(ephemeral);
            let preshared = keys.preshared.iter();
            self.lines
                .extend(preshared.map(|key| line("PRESHARED_KEY", key)));
        }
    }

    pub fn finish(self) -> Vec<String> {
        self.lines
    }
}

fn line(name: &str, key: &Key) -> String {
    format!("{name} = {}", Base64::encode_string(key))
}

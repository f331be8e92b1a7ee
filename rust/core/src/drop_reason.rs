//! Why a packet or a datagram went no further.

use connlib_boringtun::noise::WireGuardError;

/// Declares the reasons, their names, and how many there are, in one place.
macro_rules! drop_reasons {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// One cause each, counted per peer and per node.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum DropReason {
            $($(#[$doc])* $variant,)*
        }

        impl DropReason {
            /// Every reason, in order: `ALL[reason as usize] == reason`.
            pub const ALL: &'static [DropReason] = &[$(DropReason::$variant,)*];

            /// The name that users see.
            pub fn name(self) -> &'static str {
                match self {
                    $(DropReason::$variant => $name,)*
                }
            }
        }
    };
}

drop_reasons! {
    /// A buffer of the caller's was too small.
    BufferTooSmall = "BUFFER_TOO_SMALL",
    /// A message that nobody waits for.
    Unexpected = "UNEXPECTED",
    /// No session or handshake has this receiver index.
    WrongIndex = "WRONG_INDEX",
    /// An initiation with a static key that is not the peer's.
    WrongKey = "WRONG_KEY",
    /// A public key of low order.
    InvalidKey = "INVALID_KEY",
    /// The timestamp of an initiation is not later than the last one.
    ReplayedInitiation = "REPLAYED_INITIATION",
    /// MAC1 is wrong: it was not made for our public key.
    InvalidMac = "INVALID_MAC",
    /// Decryption failed.
    InvalidAeadTag = "INVALID_AEAD_TAG",
    /// The packet's number lies before the replay window, or past the message limit.
    InvalidCounter = "INVALID_COUNTER",
    /// The packet's number was seen before.
    DuplicateCounter = "DUPLICATE_COUNTER",
    /// None of the four messages, or no IP packet inside.
    InvalidPacket = "INVALID_PACKET",
    /// There is no session.
    NoSession = "NO_SESSION",
    /// Too many handshakes: of one source that a cookie proves, or of all, and no address to send a cookie to.
    UnderLoad = "UNDER_LOAD",
    /// The role forbids it.
    Role = "ROLE",
    /// Initiations of one peer came less than 20 ms apart.
    InitiationTooSoon = "INITIATION_TOO_SOON",
    /// Initiations crossed, and the peer is to answer ours.
    CrossedInitiation = "CROSSED_INITIATION",
    /// As many packets wait for a session as may.
    QueueFull = "QUEUE_FULL",
    /// A packet waited too long for a session.
    QueueTimeout = "QUEUE_TIMEOUT",
    /// A packet was queued when an attempt to get a session ended.
    GaveUp = "GAVE_UP",
    /// Too many handshakes: a cookie was sent instead of an answer.
    CookieReplySent = "COOKIE_REPLY_SENT",
    /// No peer has this static key.
    UnknownPeer = "UNKNOWN_PEER",
    /// No peer's allowed IPs hold the destination.
    NoRoute = "NO_ROUTE",
    /// The peer's endpoint is not known yet.
    NoEndpoint = "NO_ENDPOINT",
    /// It is a datagram of ours: the machine's routes lead the peer's endpoint into the tunnel.
    RoutingLoop = "ROUTING_LOOP",
    /// The inner source address does not belong to the peer.
    SourceNotAllowed = "SOURCE_NOT_ALLOWED",
    /// It met congestion on the way, and who sent the packet in it would not understand that (RFC 6040).
    CongestionMark = "CONGESTION_MARK",
    /// The peer's policy refused it.
    Denied = "DENIED",
    /// Whoever decides about the first packet of its flow gave no answer in time.
    Unanswered = "UNANSWERED",
    /// As many packets and flows wait for such an answer as may.
    PendingFull = "PENDING_FULL",
    /// Neither IPv4 nor IPv6.
    NotIp = "NOT_IP",
    /// Longer than what a UDP datagram carries.
    TooLarge = "TOO_LARGE",
    /// The peer's tunnel failed in the middle of a call, which is a bug of ours.
    PeerPoisoned = "PEER_POISONED",
}

impl From<WireGuardError> for DropReason {
    fn from(error: WireGuardError) -> Self {
        use WireGuardError as E;
        match error {
            E::DestinationBufferTooSmall => DropReason::BufferTooSmall,
            E::UnexpectedPacket | E::WrongPacketType | E::LockFailed => DropReason::Unexpected,
            E::WrongIndex => DropReason::WrongIndex,
            E::WrongKey => DropReason::WrongKey,
            E::InvalidKey => DropReason::InvalidKey,
            E::WrongTai64nTimestamp | E::InvalidTai64nTimestamp => DropReason::ReplayedInitiation,
            E::InvalidMac => DropReason::InvalidMac,
            E::InvalidAeadTag => DropReason::InvalidAeadTag,
            E::InvalidCounter => DropReason::InvalidCounter,
            E::DuplicateCounter => DropReason::DuplicateCounter,
            E::InvalidPacket | E::IncorrectPacketLength => DropReason::InvalidPacket,
            E::NoCurrentSession | E::ConnectionExpired => DropReason::NoSession,
            E::UnderLoad => DropReason::UnderLoad,
            E::Role => DropReason::Role,
            E::InitiationTooSoon => DropReason::InitiationTooSoon,
            E::CrossedInitiation => DropReason::CrossedInitiation,
            E::QueueFull => DropReason::QueueFull,
            E::QueueTimeout => DropReason::QueueTimeout,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::DropReason;

    #[test]
    fn every_reason_stands_at_its_own_place_under_its_own_name() {
        let mut names: Vec<_> = DropReason::ALL.iter().map(|r| r.name()).collect();
        for (place, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, place);
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), DropReason::ALL.len());
    }
}

//! The system call where there is none that takes many messages.

use std::io;

use quinn_udp::{EcnCodepoint, Transmit, UdpSockRef, UdpSocketState};

use super::Messages;

/// Sends the first message.
pub(crate) fn send(
    state: &UdpSocketState,
    socket: UdpSockRef<'_>,
    messages: Messages<'_>,
) -> io::Result<usize> {
    let Some(message) = messages.iter().next() else {
        return Ok(0);
    };
    let transmit = Transmit {
        destination: message.way.destination,
        ecn: EcnCodepoint::from_bits(message.way.ecn),
        contents: message.parts().next().unwrap_or_default(),
        segment_size: message.segment_size(),
        src_ip: message.way.source,
    };
    state.try_send(socket, &transmit)?;
    Ok(1)
}

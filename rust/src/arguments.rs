//! What comes in from Python, checked: times, buffers, lengths, addresses, intervals.

use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::ops::RangeInclusive;
use std::time::Duration;

use connlib_core::Instant;
use pyo3::exceptions::PyOverflowError;
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyMemoryView, PyTuple};
use zeroize::Zeroizing;

use crate::errors::{type_error, value_error};
use crate::time;

/// The longest UDP payload and IP packet there can be.
pub const MAX_PACKET: usize = 65_535;

pub use connlib_core::LARGEST_PACKET as MAX_SENT;

/// `now`.
#[derive(Clone, Copy)]
pub struct Now(pub Instant);

impl<'py> FromPyObject<'_, 'py> for Now {
    type Error = PyErr;

    #[inline]
    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        time::nanos(seconds(object)?)
            .map(|nanos| Now(Instant::from_nanos(nanos)))
            .ok_or_else(no_time)
    }
}

/// `unix_time`.
pub struct UnixTime(pub Duration);

impl<'py> FromPyObject<'_, 'py> for UnixTime {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        time::duration(seconds(object)?)
            .map(UnixTime)
            .ok_or_else(no_time)
    }
}

fn seconds(object: Borrowed<'_, '_, PyAny>) -> PyResult<f64> {
    // An integer too large for a float is no time either.
    object.extract::<f64>().map_err(|error| {
        if error.is_instance_of::<PyOverflowError>(object.py()) {
            no_time()
        } else {
            error
        }
    })
}

fn no_time() -> PyErr {
    value_error("a time must be a finite number of seconds from 0 to 2**62 nanoseconds")
}

/// Bytes of Python, or a copy of another buffer: a borrowed one could change while it is read.
pub enum Data<'py> {
    Bytes(Bound<'py, PyBytes>),
    Copy(Zeroizing<Vec<u8>>),
}

impl Data<'_> {
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        match self {
            Data::Bytes(bytes) => bytes.as_bytes(),
            Data::Copy(copy) => copy,
        }
    }

    /// At most so many bytes, or `ValueError`.
    #[inline]
    pub fn packet(&self, most: usize) -> PyResult<&[u8]> {
        let bytes = self.bytes();
        if bytes.len() > most {
            return Err(too_long(bytes.len(), most));
        }
        Ok(bytes)
    }
}

impl<'py> FromPyObject<'_, 'py> for Data<'py> {
    type Error = PyErr;

    #[inline]
    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        if let Ok(bytes) = object.cast::<PyBytes>() {
            return Ok(Data::Bytes(bytes.to_owned()));
        }
        if let Ok(bytes) = object.cast::<PyByteArray>() {
            return Ok(Data::Copy(Zeroizing::new(bytes.to_vec())));
        }
        // Python copies any other buffer, whatever its layout, into bytes.
        let view = PyMemoryView::from(&object).map_err(|_| {
            type_error(format!(
                "a bytes-like object is required, not '{}'",
                class_name(&object)
            ))
        })?;
        let bytes = view.call_method0("tobytes")?.cast_into::<PyBytes>()?;
        Ok(Data::Bytes(bytes))
    }
}

fn class_name(object: &Bound<'_, PyAny>) -> String {
    object
        .get_type()
        .name()
        .map_or_else(|_| "object".into(), |name| name.to_string())
}

fn too_long(length: usize, most: usize) -> PyErr {
    let what = match most {
        MAX_SENT => "a packet that is to fit into a datagram has",
        _ => "packets and datagrams have",
    };
    value_error(format!(
        "{length} bytes are too long: {what} at most {most}"
    ))
}

/// The lengths of the items of a batch.
pub struct Lengths(Vec<usize>);

impl Lengths {
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Each item of `data`, if the lengths add up to it, and each is at most so many bytes long.
    pub fn cut<'a>(
        &'a self,
        data: &'a [u8],
        most: usize,
    ) -> PyResult<impl Iterator<Item = &'a [u8]> + Send> {
        let mut total = 0usize;
        for &length in &self.0 {
            if length > most {
                return Err(too_long(length, most));
            }
            total = total.saturating_add(length);
        }
        if total != data.len() {
            return Err(value_error(format!(
                "lengths add up to {total} bytes, but there are {}",
                data.len()
            )));
        }
        let mut rest = data;
        Ok(self.0.iter().map_while(move |&length| {
            let (item, tail) = rest.split_at_checked(length)?;
            rest = tail;
            Some(item)
        }))
    }
}

impl<'py> FromPyObject<'_, 'py> for Lengths {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        object
            .extract::<Vec<usize>>()
            .map(Lengths)
            .map_err(|error| {
                if error.is_instance_of::<PyOverflowError>(object.py()) {
                    value_error("a length is negative or too large")
                } else {
                    error
                }
            })
    }
}

/// An address as Python's sockets write it: (host, port), for IPv6 also (host, port, flow, scope).
#[derive(Clone, Copy)]
pub struct Address(pub SocketAddr);

impl<'py> FromPyObject<'_, 'py> for Address {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let Ok(tuple) = object.cast::<PyTuple>() else {
            return Err(type_error(format!(
                "an address is a tuple (host, port), not '{}'",
                class_name(&object)
            )));
        };
        if !matches!(tuple.len(), 2 | 4) {
            return Err(value_error(
                "an address has 2 parts (host, port) or 4 (host, port, flow, scope)",
            ));
        }
        let host = tuple.get_item(0)?;
        let host: &str = host.extract()?;
        let port = small(&tuple.get_item(1)?)
            .and_then(|port| u16::try_from(port).ok())
            .ok_or_else(|| value_error("the port of an address is a number from 0 to 65535"))?;
        let (literal, zone) = match host.split_once('%') {
            Some((literal, zone)) => (literal, Some(zone)),
            None => (host, None),
        };
        let literal: IpAddr = literal.parse().map_err(|_| not_literal(host))?;
        let address = match literal {
            IpAddr::V4(_) if zone.is_some() || tuple.len() == 4 => return Err(not_literal(host)),
            IpAddr::V4(host) => SocketAddr::from((host, port)),
            IpAddr::V6(v6) => {
                // A zone in the text is the scope again, as a number or an interface's name.
                let scope = if tuple.len() == 4 {
                    small(&tuple.get_item(3)?)
                        .ok_or_else(|| value_error("the scope of an address is a number"))?
                } else {
                    zone.map_or(Ok(0), |zone| zone.parse().map_err(|_| not_literal(host)))?
                };
                SocketAddrV6::new(v6, port, 0, scope).into()
            }
        };
        Ok(Address(address))
    }
}

fn small(object: &Bound<'_, PyAny>) -> Option<u32> {
    object.extract().ok()
}

fn not_literal(host: &str) -> PyErr {
    value_error(format!("{host:?} is not a literal IPv4 or IPv6 address"))
}

/// (host, port), with the scope of a link-local address as its numeric zone.
pub fn address_to_python(address: SocketAddr) -> (String, u16) {
    let host = match address {
        SocketAddr::V6(v6) if v6.scope_id() != 0 => format!("{}%{}", v6.ip(), v6.scope_id()),
        _ => address.ip().to_string(),
    };
    (host, address.port())
}

/// None or 0 for none; else 1 to 65,535 seconds, as `wg` has it.
pub fn persistent_keepalive(seconds: Option<f64>, name: &str) -> PyResult<Option<Duration>> {
    match seconds {
        None => Ok(None),
        Some(0.0) => Ok(None),
        Some(seconds) if (1.0..=65_535.0).contains(&seconds) => Ok(time::duration(seconds)),
        Some(_) => Err(value_error(format!(
            "{name} must be 1 to 65535 seconds, or None"
        ))),
    }
}

/// 576 is the least that every IPv4 host takes.
pub fn mtu(mtu: &Bound<'_, PyAny>) -> PyResult<usize> {
    integer(mtu, "mtu", 576..=MAX_PACKET as u64).map(|mtu| mtu as usize)
}

/// An integer in a range, or `ValueError` that names it; `TypeError` for something else.
pub fn integer(object: &Bound<'_, PyAny>, name: &str, range: RangeInclusive<u64>) -> PyResult<u64> {
    let value = match object.extract::<u64>() {
        Ok(value) => Some(value),
        Err(error) if error.is_instance_of::<PyOverflowError>(object.py()) => None,
        Err(_) => {
            return Err(type_error(format!(
                "{name} must be an integer, not '{}'",
                class_name(object)
            )));
        }
    };
    value.filter(|value| range.contains(value)).ok_or_else(|| {
        value_error(format!(
            "{name} must be {} to {}",
            range.start(),
            range.end()
        ))
    })
}

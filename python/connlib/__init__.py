"""WireGuard tunnels for Python: a patched boringtun engine to import, drive, simulate and run as a gateway."""

import typing as _typing

from connlib._errors import (
    ClosedError,
    ConfigError,
    ConnlibError,
    DeviceError,
    EngineError,
    ForkedError,
    KeyFormatError,
)
from connlib._native import (
    IndexTable,
    Node,
    PresharedKey,
    PrivateKey,
    PublicKey,
    RateLimiter,
    Tunn,
)
from connlib._types import (
    Batch,
    ConfigDiff,
    Dropped,
    DropReason,
    Event,
    GaveUp,
    HandshakeStarted,
    Limits,
    NodeConfig,
    NodeOutput,
    NodeStats,
    Output,
    PeerChange,
    PeerConfig,
    PeerEvent,
    PeerSilent,
    PeerStats,
    Role,
    SessionEstablished,
    SessionExpired,
    Timeout,
    TimeoutReason,
    Timers,
    Transmit,
    TunnStats,
)
from connlib.config import InterfaceConfig
from connlib.wgquick import ConfigFileError, format_config, load_config, parse_config

if _typing.TYPE_CHECKING:
    from connlib.driver import Interface, InterfaceStats, open_interface

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "ClosedError",
    "ConfigDiff",
    "ConfigError",
    "ConfigFileError",
    "ConnlibError",
    "DeviceError",
    "DropReason",
    "Dropped",
    "EngineError",
    "Event",
    "ForkedError",
    "GaveUp",
    "HandshakeStarted",
    "IndexTable",
    "Interface",
    "InterfaceConfig",
    "InterfaceStats",
    "KeyFormatError",
    "Limits",
    "Node",
    "NodeConfig",
    "NodeOutput",
    "NodeStats",
    "Output",
    "PeerChange",
    "PeerConfig",
    "PeerEvent",
    "PeerSilent",
    "PeerStats",
    "PresharedKey",
    "PrivateKey",
    "PublicKey",
    "RateLimiter",
    "Role",
    "SessionEstablished",
    "SessionExpired",
    "Timeout",
    "TimeoutReason",
    "Timers",
    "Transmit",
    "Tunn",
    "TunnStats",
    "__version__",
    "format_config",
    "load_config",
    "open_interface",
    "parse_config",
]


def __dir__() -> list[str]:
    return __all__


if not _typing.TYPE_CHECKING:

    def __getattr__(name):
        # The driver brings an event loop along, which a program that only drives the engine does not need.
        if name in ("Interface", "InterfaceStats", "open_interface"):
            import connlib.driver as driver

            return getattr(driver, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

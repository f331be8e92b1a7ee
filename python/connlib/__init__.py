"""WireGuard tunnels for Python: a patched boringtun engine to import, drive, simulate and run as a gateway."""

# Not from typing, whose import takes longer than everything else here; checkers know the name.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from connlib._configfile import ConfigFileError
    from connlib._errors import (
        CaptureError,
        ClosedError,
        ConfigError,
        ConnlibError,
        DeviceError,
        EngineError,
        ForkedError,
        KeyFormatError,
    )
    from connlib._explain import Explanation, Obstacle, PeerState, explain
    from connlib._flows import Direction, EndReason, FlowEnd, FlowQuestion, FlowRecord
    from connlib._gatewayrules import GatewayRule
    from connlib._native import (
        IndexTable,
        Node,
        PresharedKey,
        PrivateKey,
        PublicKey,
        RateLimiter,
        Tunn,
    )
    from connlib._policy import (
        Action,
        Flow,
        Policy,
        Protocol,
        Rule,
        Verdict,
        VerdictReason,
    )
    from connlib._types import (
        Batch,
        CapturedPacket,
        ConfigApplied,
        ConfigDiff,
        Denied,
        Dropped,
        DropReason,
        Event,
        GaveUp,
        HandshakeStarted,
        InputKind,
        InterfaceEvent,
        Limits,
        NodeConfig,
        NodeEvent,
        NodeInput,
        NodeOutput,
        NodeStats,
        Output,
        PeerChange,
        PeerConfig,
        PeerEvent,
        PeerRoamed,
        PeerSilent,
        PeerStats,
        PeerTrouble,
        Poisoned,
        PolicyStats,
        Role,
        SessionEstablished,
        SessionExpired,
        Timeout,
        TimeoutReason,
        Timers,
        Transmit,
        TunnStats,
    )
    from connlib.asking import FlowHook
    from connlib.capture import Capture, capture_interface
    from connlib.config import InterfaceConfig
    from connlib.control import ControlClient, ControlError, ControlServer, serve_control
    from connlib.driver import EndCounters, Interface, InterfaceStats, open_interface
    from connlib.gateway import Gateway, GatewayInterface, GatewayPeer
    from connlib.gatewayfile import load_gateway, parse_gateway
    from connlib.metrics import MetricsServer, serve_metrics
    from connlib.timestamps import TimestampStore
    from connlib.wgquick import format_config, load_config, parse_config

__version__ = "0.1.0"

__all__ = [
    "Action",
    "Batch",
    "Capture",
    "CaptureError",
    "CapturedPacket",
    "ClosedError",
    "ConfigApplied",
    "ConfigDiff",
    "ConfigError",
    "ConfigFileError",
    "ConnlibError",
    "ControlClient",
    "ControlError",
    "ControlServer",
    "Denied",
    "DeviceError",
    "Direction",
    "DropReason",
    "Dropped",
    "EndCounters",
    "EndReason",
    "EngineError",
    "Event",
    "Explanation",
    "Flow",
    "FlowEnd",
    "FlowHook",
    "FlowQuestion",
    "FlowRecord",
    "ForkedError",
    "Gateway",
    "GatewayInterface",
    "GatewayPeer",
    "GatewayRule",
    "GaveUp",
    "HandshakeStarted",
    "IndexTable",
    "InputKind",
    "Interface",
    "InterfaceConfig",
    "InterfaceEvent",
    "InterfaceStats",
    "KeyFormatError",
    "Limits",
    "MetricsServer",
    "Node",
    "NodeConfig",
    "NodeEvent",
    "NodeInput",
    "NodeOutput",
    "NodeStats",
    "Obstacle",
    "Output",
    "PeerChange",
    "PeerConfig",
    "PeerEvent",
    "PeerRoamed",
    "PeerSilent",
    "PeerState",
    "PeerStats",
    "PeerTrouble",
    "Poisoned",
    "Policy",
    "PolicyStats",
    "PresharedKey",
    "PrivateKey",
    "Protocol",
    "PublicKey",
    "RateLimiter",
    "Role",
    "Rule",
    "SessionEstablished",
    "SessionExpired",
    "Timeout",
    "TimeoutReason",
    "Timers",
    "TimestampStore",
    "Transmit",
    "Tunn",
    "TunnStats",
    "Verdict",
    "VerdictReason",
    "__version__",
    "capture_interface",
    "explain",
    "format_config",
    "load_config",
    "load_gateway",
    "open_interface",
    "parse_config",
    "parse_gateway",
    "serve_control",
    "serve_metrics",
]


def __dir__() -> list[str]:
    return __all__


# Where each name is at home. A module is loaded when a name of it is first asked for: the driver brings an event loop
# along, which a program that only drives the engine does not need, and the command must be able to start before any of
# this is there.
_HOMES = {
    "_configfile": ("ConfigFileError",),
    "_errors": (
        "CaptureError",
        "ClosedError",
        "ConfigError",
        "ConnlibError",
        "DeviceError",
        "EngineError",
        "ForkedError",
        "KeyFormatError",
    ),
    "_flows": (
        "Direction",
        "EndReason",
        "FlowEnd",
        "FlowQuestion",
        "FlowRecord",
    ),
    "_native": (
        "IndexTable",
        "Node",
        "PresharedKey",
        "PrivateKey",
        "PublicKey",
        "RateLimiter",
        "Tunn",
    ),
    "_policy": (
        "Action",
        "Flow",
        "Policy",
        "Protocol",
        "Rule",
        "Verdict",
        "VerdictReason",
    ),
    "_types": (
        "Batch",
        "ConfigApplied",
        "CapturedPacket",
        "ConfigDiff",
        "Denied",
        "Dropped",
        "DropReason",
        "Event",
        "GaveUp",
        "HandshakeStarted",
        "InputKind",
        "InterfaceEvent",
        "Limits",
        "NodeConfig",
        "NodeEvent",
        "NodeInput",
        "NodeOutput",
        "NodeStats",
        "Output",
        "PeerChange",
        "PeerConfig",
        "PeerEvent",
        "PeerRoamed",
        "PeerSilent",
        "PeerStats",
        "PeerTrouble",
        "Poisoned",
        "PolicyStats",
        "Role",
        "SessionEstablished",
        "SessionExpired",
        "Timeout",
        "TimeoutReason",
        "Timers",
        "Transmit",
        "TunnStats",
    ),
    "asking": ("FlowHook",),
    "capture": (
        "Capture",
        "capture_interface",
    ),
    "config": ("InterfaceConfig",),
    "control": (
        "ControlClient",
        "ControlError",
        "ControlServer",
        "serve_control",
    ),
    "driver": (
        "EndCounters",
        "Interface",
        "InterfaceStats",
        "open_interface",
    ),
    "_explain": (
        "Explanation",
        "Obstacle",
        "PeerState",
        "explain",
    ),
    "_gatewayrules": ("GatewayRule",),
    "gateway": (
        "Gateway",
        "GatewayInterface",
        "GatewayPeer",
    ),
    "gatewayfile": (
        "load_gateway",
        "parse_gateway",
    ),
    "metrics": (
        "MetricsServer",
        "serve_metrics",
    ),
    "timestamps": ("TimestampStore",),
    "wgquick": (
        "format_config",
        "load_config",
        "parse_config",
    ),
}


if not TYPE_CHECKING:
    del TYPE_CHECKING

    def __getattr__(name):
        import importlib

        for module, names in _HOMES.items():
            if name in names:
                value = getattr(importlib.import_module(f"connlib.{module}"), name)
                globals()[name] = value
                return value
        if name in _HOMES:
            return importlib.import_module(f"connlib.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""`connlib check FILE`: everything that is wrong with a file, or what it says in short."""

from __future__ import annotations

import logging
import sys

from connlib._configfile import display_path
from connlib._errors import ConfigError
from connlib.asking import nobody_to_ask
from connlib.config import InterfaceConfig

from ._files import load, name_after


def run(file: str, *, allow_world_readable: bool) -> int:
    """Print what is wrong, a line for each; the exit code. Warnings go to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("warning: %(message)s"))
    log = logging.getLogger("connlib.config")
    log.addHandler(handler)
    try:
        config = load(file, allow_world_readable=allow_world_readable)
    except ConfigError as error:
        for problem in getattr(error, "problems", (error,)):
            print(problem)
        if getattr(error, "more", False):
            print(f"{display_path(file)}: there may be more: the rest was not read")
        return 1
    finally:
        log.removeHandler(handler)
    if problem := nobody_to_ask(config.peers):
        print(f"warning: {display_path(file)}: {problem}", file=sys.stderr)
    if config.name is None:
        try:
            name_after(file)
        except ConfigError as error:
            print(f"warning: {error}", file=sys.stderr)
    print(f"{display_path(file)} is right: {summary(config)}")
    return 0


def summary(config: InterfaceConfig) -> str:
    """What a configuration is, in a line."""
    port = f"UDP port {config.listen_port}" if config.listen_port else "a UDP port of the system's choice"
    count = len(config.peers)
    prefixes = sum(len(peer.allowed_ips) for peer in config.peers)
    policies = sum(peer.policy is not None for peer in config.peers)
    said = [
        config.role.value,
        port,
        f"{count} peer{'' if count == 1 else 's'}",
        *([f"{policies:,} with a policy"] if policies else []),
        f"{prefixes} prefix{'' if prefixes == 1 else 'es'}",
        f"public key {config.private_key.public_key().to_base64()}",
    ]
    return ", ".join(said)

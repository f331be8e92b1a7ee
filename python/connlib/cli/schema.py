"""`connlib schema`: the JSON Schema of a gateway's TOML file, for editors and other programs."""

from __future__ import annotations

import json

from connlib.gatewayschema import schema


def run() -> None:
    """Print it."""
    print(json.dumps(schema(), indent=2))

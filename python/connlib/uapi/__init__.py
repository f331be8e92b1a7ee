"""The cross-platform configuration protocol of WireGuard (https://www.wireguard.com/xplatform/): what `wg` speaks to an
implementation that is not the kernel's.

- `protocol`: bytes in, requests out; settings in, bytes out. Sans-IO.
- `settings`: what a request makes of an interface's settings. Pure as well.
- `device`: requests applied to a running `connlib.Interface`.
- `server`: the clients.

The command that puts them together is `connlib-wg` (`connlib.cli.wg`).
"""

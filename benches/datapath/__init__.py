"""The data path, measured: connlib and other WireGuard implementations in network namespaces, in turns.

`ends` brings tunnels up, `traffic` sends through them, `cells` says what is measured, `series` is the arithmetic,
`profiles` asks where the processor's time goes, `document` and `picture` write what was found.
"""

NAMES = ("tcp", "gateway", "udp", "ping", "cost", "peers", "parts", "share")
"""Of the cells. Here, because they are asked for before there is a package to import."""

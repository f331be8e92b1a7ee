"""A gigabyte with a checksum through two ends of connlib, with everything that the packets' way can do to it.

- `path`: the tunnel, in namespaces, with a cable that loses datagrams.
- `end`: one end of it, a process of its own.
- `streams` and `datagrams`: what goes through, and what is checked.
- `changes`: other MTUs under traffic.
- `cells`: what is done, and what must hold.
- `document`: the section of docs/datapath.md.
"""

MTUS = (1280, 1420, 8920)

"""Faults and attacks, done for real in network namespaces, and what they cost: `make reliability`.

| module | holds |
|---|---|
| `faults` | what a fault is, what a run of it found, and the list of all of them |
| `places` | hosts in namespaces, processes in them, what the kernel says about a process |
| `gateway` | the interface under attack, in a process of its own, asked over its standard input |
| `clients` | peers that are a `Node` and a real socket, many in one process |
| `generator` | floods of datagrams, in a process of their own |
| `floods`, `paths`, `moves`, `peers`, `system`, `kills`, `surface`, `dawdlers`, `load` | the faults |
| `document` | docs/reliability.md |
"""

"""All faults: what is expected of each, what measures it, and which tests show it."""

from __future__ import annotations

from reliability import dawdlers, floods, kills, load, moves, paths, peers, surface, system
from reliability.faults import Fault

T = "at least 90 % of the tunnel's packets arrive, memory grows by less than 1 MB"

_ROUNDS = (
    "While most of what comes is refused, it is left for two milliseconds and taken together. The kernel takes some "
    "1.4 us to hand over a datagram here, the engine 0.1 us to refuse garbage, 0.5 us where a MAC1 is checked and some "
    "2 us for a cookie reply, whose sending is another 2 us."
)

FAULTS = (
    Fault(
        "load",
        "1,000 peers, without a route of its own for each and with one, 200 of them live; 20 a second are added or "
        "removed, for 60 s",
        "no packet of another peer lost; memory within 5 %; one change within 50 ms",
        ["tests/test_reliability.py"],
        load.churn,
    ),
    Fault(
        "1",
        "100,000 garbage datagrams/s for 10 s",
        f"{T}; 0 replies; 2 us of a processor each",
        ["tests/test_malformed.py", "tests/test_driver_real.py"],
        floods.garbage,
        remark=_ROUNDS,
    ),
    Fault(
        "2",
        "100,000 spoofed initiations/s with a valid MAC1 for 10 s",
        f"{T}; at most 100 a second processed; no reply larger than what came; 5 us each",
        ["tests/spec/test_cookies.py"],
        floods.spoofed_initiations,
        remark=_ROUNDS,
    ),
    Fault(
        "3",
        "10,000 initiations/s with a valid MAC2 from one source",
        "20 a second processed, 5 at once; others connect within 2 s",
        ["tests/spec/test_cookies.py", "rust/boringtun/tests/sources.rs"],
        floods.one_source_with_cookies,
        remark=_ROUNDS,
    ),
    Fault(
        "4",
        "65,536 addresses of one /64, each with a cookie",
        "one source; at most 65,536 sources known, in 8 MB",
        ["tests/spec/test_cookies.py", "rust/boringtun/tests/sources.rs"],
        floods.one_network,
    ),
    Fault("5", "a cookie used from another port", "refused", ["tests/spec/test_cookies.py"]),
    Fault(
        "6",
        "an initiation replayed 1,000 times",
        "0 replies, endpoint unmoved",
        ["tests/spec/test_replay.py"],
        peers.replayed_initiation,
    ),
    Fault(
        "7",
        "initiations replayed after a restart",
        "0 replies with the timestamps on disk",
        ["tests/test_timestamps.py"],
    ),
    Fault(
        "8",
        "datagrams of every size, also coalesced",
        "the receiver survives",
        ["tests/test_native_io.py", "rust/net/tests/udp.rs"],
    ),
    Fault(
        "9",
        "forged ICMP: unreachable, fragmentation needed",
        "0 sessions torn down; packets of 1,280 bytes and more still arrive",
        ["tests/test_reliability.py"],
        paths.forged_icmp,
    ),
    Fault(
        "10",
        "the source address is rewritten on the path",
        "heals within one genuine packet",
        ["tests/test_node.py", "tests/lab/test_nat.py"],
        paths.rewritten_source,
    ),
    Fault("11", "TCP probes to the tunnel's address from the LAN", "0 replies", ["tests/test_masquerade.py"]),
    Fault(
        "12",
        "rogue LAN or DHCP routes",
        "0 packets leak in full-tunnel mode",
        [],
        remark="There is no full-tunnel mode.",
    ),
    Fault(
        "13",
        "port-shadow clients",
        "0 of 100,000 flows given up by the userspace NAT",
        [],
        remark="There is no userspace NAT.",
    ),
    Fault(
        "14",
        "inner source address that another peer owns",
        "0 of 1,000,000 delivered",
        ["tests/test_node.py"],
        peers.foreign_sources,
    ),
    Fault(
        "15", "malformed IP", "0 panics in fuzzing", ["tests/test_malformed.py", "rust/core/tests/fuzz.rs"]
    ),
    Fault(
        "16",
        "overlapping and tiny fragments",
        "the device gets them unchanged; reassembly bounded",
        [],
        remark="Nothing is put together: packets pass as they are. Userspace TCP/IP is not there.",
    ),
    Fault(
        "17",
        "hostile TCP coalescing",
        "the same bytes as without",
        ["rust/net/tests/offload/main.rs", "rust/net/tests/fuzz.rs"],
    ),
    Fault(
        "18",
        "GSO bomb",
        "at most its segments; memory at most doubled",
        ["rust/net/src/tun/tests.rs", "rust/net/tests/allocations.rs"],
    ),
    Fault(
        "19",
        "inner SYN flood, zero windows",
        "at most 256 half-open, 64 KiB each",
        [],
        remark="Userspace TCP/IP is not there.",
    ),
    Fault("20", "counter 2^64-1", "refused, no overflow", ["rust/boringtun/tests/engine.rs"]),
    Fault(
        "21",
        "low-order public keys, all seven points",
        "0 sessions, nothing sent",
        ["tests/test_config.py", "tests/test_uapi_server.py", "rust/boringtun/tests/engine.rs"],
    ),
    Fault(
        "22",
        "a peer whose clock jumps to the year 2100",
        "only that key is affected; documented",
        ["tests/spec/test_clocks.py", "docs/engine.md"],
    ),
    Fault(
        "23", "send counter at its end", "refuses, renews, never repeats", ["rust/boringtun/tests/engine.rs"]
    ),
    Fault("24", "fork(), 1,000 times", "the child raises; 0 nonces repeated", ["tests/test_process.py"]),
    Fault(
        "25", "repr, pickle, copy, logs", "0 bytes of a key", ["tests/test_secrets.py", "tests/test_keys.py"]
    ),
    Fault(
        "26",
        "memory searched after closing",
        "no key on Rust's side; no core dump",
        ["tests/test_process.py", "tests/test_secrets.py"],
    ),
    Fault(
        "27",
        "a buffer changed by another thread meanwhile",
        "0 races",
        ["tests/test_tunn.py"],
        remark="What is not `bytes` is copied first. Nothing is tested on free-threaded CPython.",
    ),
    Fault("28", "a panic in Rust", "an exception; one peer poisoned", ["tests/test_node.py"]),
    Fault(
        "29",
        "cancellation at every await",
        "0 descriptors leaked",
        ["tests/test_driver_real.py", "tests/test_tun_device.py"],
    ),
    Fault(
        "30",
        "the TUN device is deleted",
        "ends within 1 s with exit code 1, its control socket removed",
        ["tests/test_cli.py", "tests/interop/test_uapi.py"],
        system.deleted_device,
    ),
    Fault(
        "31",
        "the kernel refuses all sends for 30 s: ENETUNREACH, ENOBUFS, EPERM",
        "less than 20 % of a processor; recovers within 1 s",
        ["tests/test_driver_real.py", "rust/net/tests/udp.rs"],
        paths.failing_sends,
    ),
    Fault(
        "32",
        "default route and addresses change",
        "at most 1 s of silence",
        ["tests/interop/test_namespace_addresses.py", "tests/test_faults_system.py"],
        moves.changed_addresses,
    ),
    Fault(
        "33",
        "wall clock set by 10 years either way; an hour of suspend",
        "0 lost; recovers within 6 s",
        ["tests/spec/test_clocks.py", "tests/test_driver.py"],
        peers.clocks,
        remark="In virtual time: no machine's clock was set.",
    ),
    Fault(
        "34",
        "no file descriptor is left",
        f"{T}; less than 5 % of a processor",
        ["tests/test_cli.py"],
        system.no_descriptors,
    ),
    Fault(
        "35",
        "64 MB of memory, 1,000 peers, floods from outside and from inside",
        "not killed for want of memory; at most 256 packets wait for a peer",
        ["tests/spec/test_handshake.py", "rust/core/src/node/tests.rs"],
        system.little_memory,
        remark="Of all peers together, 8,192 packets wait beyond the first one of each.",
    ),
    Fault(
        "36",
        "SIGKILL at 1,000 points while a configuration is applied",
        "no device, address, route, rule or nftables table left; files old or new",
        [
            "tests/test_reliability.py",
            "tests/test_driver.py",
            "tests/test_filechange.py",
            "tests/test_masquerade.py",
        ],
        kills.killed,
        remark="Everything that connlib sets up belongs to its device, which the kernel removes with the process. "
        "DNS is not set here: what `resolvconf` was told stays until an interface of that name starts or ends. "
        "`connlib up` writes no configuration file; `connlib peer add` and `remove` put theirs into place in one step.",
    ),
    Fault(
        "37",
        "corrupt, 100 MB and NUL-ridden configuration files",
        "an error with its line within 1 s, no key in it",
        ["tests/test_config.py", "tests/test_gatewayfile.py", "tests/test_cli.py"],
        surface.bad_files,
    ),
    Fault(
        "38",
        "device names such as `../x`, `a/b`, `%d`",
        "refused, 0 files touched; hooks refused",
        ["tests/test_interface_config.py", "tests/test_config.py", "tests/test_socketfile.py"],
    ),
    Fault(
        "39",
        "100 slow clients of the metrics and of each control socket; 100,000 requests for settings while they change",
        f"others within 100 ms; {T}; every answer of one moment",
        ["tests/test_uapi_server.py", "tests/test_metrics.py", "tests/test_control.py"],
        dawdlers.dawdlers,
        remark="The first request comes when the hundred do. A third of those ask for everything about 1,000 peers and "
        "do not read it: those that come together share one answer, and the first request is among them, or waits "
        "for it before its own is made. Each page was asked for once before memory is measured: that of a scrape "
        "that took long is kept for those that follow it soon. The status of 1,000 peers is 0.5 MB, which stay "
        "for as long as somebody who has asked for it does not read it: with what goes with it, 0.7 to 1.02 MB in "
        "several runs.",
    ),
    Fault(
        "40",
        "one byte changed in the pristine source",
        "the build fails",
        ["rust/patched/tests/series/boringtun.rs"],
    ),
)

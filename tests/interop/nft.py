"""The kernel's packet filter in a namespace: what the tests need of it, by netlink, so that no program is needed."""

from __future__ import annotations

from typing import Any

from pyroute2.nftables.expressions import genex, verdict
from pyroute2.nftables.main import NFTables

from interop.netns import Namespace

__all__ = ["lose", "masquerade", "restore_marks"]

# linux/netfilter.h, linux/netfilter/nf_tables.h
_NFPROTO_IPV4 = 2
_META_MARK = 3
_CT_MARK = 3
_REGISTER = 1
# linux/netfilter_ipv4.h: where these chains are among others.
_MANGLE, _FILTER, _SOURCE_NAT = -150, 0, 100
_RANDOM, _EQUAL, _DROP = 1, 0, 0


def masquerade(host: Namespace) -> None:
    """Give whatever the host forwards or sends its own address, as a home router does."""
    _add_chain(host, "nat", "postrouting", _SOURCE_NAT, [genex("masq", {})])


def restore_marks(host: Namespace) -> None:
    """Mark what comes in as the packets of that connection which went out."""
    save = [
        genex("meta", {"key": _META_MARK, "dreg": _REGISTER}),
        genex("ct", {"key": _CT_MARK, "sreg": _REGISTER}),
    ]
    restore = [
        genex("ct", {"key": _CT_MARK, "dreg": _REGISTER}),
        genex("meta", {"key": _META_MARK, "sreg": _REGISTER}),
    ]
    _add_chain(host, "filter", "postrouting", _MANGLE, save)
    _add_chain(host, "filter", "prerouting", _MANGLE, restore)


def lose(host: Namespace, one_in: int) -> None:
    """Drop one of so many packets that the host forwards, both ways, at random."""
    # Its attributes are called otherwise than `genex` takes them to be.
    data = [("NFTA_NG_DREG", _REGISTER), ("NFTA_NG_MODULUS", one_in), ("NFTA_NG_TYPE", _RANDOM)]
    number = {"attrs": [("NFTA_EXPR_NAME", "numgen"), ("NFTA_EXPR_DATA", {"attrs": data})]}
    zero = {"attrs": [("NFTA_DATA_VALUE", bytes(4))]}
    is_zero = genex("cmp", {"sreg": _REGISTER, "op": _EQUAL, "data": zero})
    _add_chain(host, "filter", "forward", _FILTER, [number, is_zero, *verdict(_DROP)])


def _add_chain(host: Namespace, kind: str, hook: str, priority: int, rule: list[Any]) -> None:
    with host.entered(), NFTables(nfgen_family=_NFPROTO_IPV4) as nft:
        table = f"{kind}-{hook}"
        nft.begin()
        nft.table("add", name=table)
        nft.chain("add", table=table, name=hook, type=kind, hook=hook, priority=priority)
        nft.rule("add", table=table, chain=hook, expressions=(rule,))
        nft.commit()

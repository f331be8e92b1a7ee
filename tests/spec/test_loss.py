"""A bad line (scenario 35): a fifth lost, late by up to 50 ms, a tenth copied, both sides sending, for an hour."""

from __future__ import annotations

import random

import pytest

from connlib import Role
from spec.pair import BOTH_ROLES, Pair, first_difference

HOUR = 3_600.0
AFTERWARDS = 30.0
RECOVERY = 16.0


def bad_line(seed: int, roles: tuple[Role, Role], seconds: float = HOUR) -> Pair:
    """Data every 0.5 s each way; the losses end after `seconds`. Checks what holds for every seed."""
    chance = random.Random(seed)
    pair = Pair(roles, seed=seed + 1)
    pair.drop = lambda host, sent: chance.random() < 0.2
    pair.copies = lambda host, sent: 2 if chance.random() < 0.1 else 1
    pair.delay = lambda host, sent: chance.uniform(0, 0.05)
    offered = int((seconds + AFTERWARDS) * 2)
    for k in range(offered):
        pair.send(k / 2, pair.a, k)
        pair.send(k / 2, pair.b, k)
    pair.heal(seconds)
    pair.run(seconds + AFTERWARDS + 2)
    for host in (pair.a, pair.b):
        arrived = host.numbers()
        assert len(set(arrived)) == len(arrived), f"seed {seed}: delivered twice"
        assert len(arrived) > offered * 0.7
        missing = {k for k in range(offered) if k / 2 >= seconds + RECOVERY}.difference(arrived)
        assert not missing, f"seed {seed}, {roles}: offered after the recovery and lost: {sorted(missing)}"
    if roles[1] is Role.RESPONDER:
        assert pair.b.times("I") == []
    return pair


@pytest.mark.scenario(35)
@pytest.mark.parametrize("roles", BOTH_ROLES)
@pytest.mark.parametrize("seed", range(3))
def test_on_a_bad_line_nothing_arrives_twice_and_all_arrives_16_seconds_after_it(
    seed: int, roles: tuple[Role, Role]
) -> None:
    bad_line(seed, roles)


@pytest.mark.scenario(35, polled=False)
@pytest.mark.parametrize("roles", BOTH_ROLES)
@pytest.mark.parametrize("seed", range(3, 11))
def test_more_bad_lines(seed: int, roles: tuple[Role, Role]) -> None:
    bad_line(seed, roles)


@pytest.mark.scenario(35, polled=False)
def test_equal_seeds_give_equal_traces_and_other_seeds_do_not() -> None:
    one, same, other = (bad_line(seed, BOTH_ROLES[0], 600) for seed in (50, 50, 51))
    assert first_difference([one], [same]) is None
    assert first_difference([one], [other]) is not None


@pytest.mark.soak
@pytest.mark.scenario(35, polled=False)
@pytest.mark.parametrize("roles", BOTH_ROLES)
def test_a_hundred_bad_lines_of_an_hour(roles: tuple[Role, Role], capsys: pytest.CaptureFixture[str]) -> None:
    sent = arrived = initiations = 0
    for seed in range(100):
        pair = bad_line(seed, roles)
        assert (difference := first_difference([pair], [bad_line(seed, roles)])) is None, difference
        for host in (pair.a, pair.b):
            sent += len(host.sent)
            arrived += len(host.received)
            initiations += len(host.times("I"))
    with capsys.disabled():
        names = " with ".join(role.name for role in roles)
        print(
            f"\n35, {names}: 100 seeds of one hour, each twice to equal traces;"
            f" {sent:,} datagrams sent, {initiations:,} of them initiations, {arrived:,} packets delivered"
        )

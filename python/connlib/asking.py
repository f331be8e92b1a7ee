"""The hook of an interface: a function of the application's that decides about the first packet of a flow.

    async def decide(question: FlowQuestion) -> bool:
        return await database.may(question.name, question.destination, question.destination_port)

    async with open_interface(config, decide=decide) as interface:
        ...

A policy asks it (`Action.ASK`), and the node holds the flow's packets meanwhile. Each question is a task of its own, so
that a slow answer keeps nobody waiting but its own flow; a hook that is no coroutine function runs in the event loop,
and must return at once. What the hook gets wrong costs the flow, which is refused, and never the interface. A call
about a question that needs no answer any more is cancelled. One that cannot be, such as one in a thread, is under way
until it ends, is waited for when the interface ends, and decides nothing any more.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

from ._flows import FlowQuestion
from ._native import Node, PublicKey
from ._policy import Action, Policy
from ._text import listed
from ._types import PeerConfig
from .config import describe_peer

__all__ = ["FlowHook"]

_log = logging.getLogger("connlib")

FlowHook: TypeAlias = Callable[[FlowQuestion], bool | Awaitable[bool]]
"""Whether a flow may begin: True lets it pass, False refuses it."""

ANSWER_TIME = 5.0
"""Seconds after which the node does not wait for an answer any more, and the hook is cancelled."""

MOST_CALLS = 1024
"""Calls of the hook that are under way at once: as many as flows can be pending. A hook that does not end when it is
cancelled would bring more; nobody is asked then."""

_TURNS = 10
"""Turns of the event loop in which a call that is cancelled may end, before it counts as under way again. On asyncio, a
cancellation takes one or two for each task that waits for another."""

_PAUSE = 60.0
"""Seconds between two lines of the log about a hook that fails, gives no answer or cannot be asked."""


@dataclass(eq=False)
class _Call:
    """A call of the hook, which is made or about to be."""

    question: FlowQuestion
    due: float
    """Until when it is to be answered."""
    scope: anyio.CancelScope | None = None
    """Around the hook, once it is called."""
    withdrawn: bool = False
    """The question needs no answer any more."""
    counts: bool = True
    """It is one of those that are under way."""
    ended: bool = False


class Hook:
    """The calls of one interface's hook."""

    def __init__(self, decide: FlowHook) -> None:
        if not callable(decide):
            raise TypeError("decide must be a function that takes a connlib.FlowQuestion, or None")
        self._decide = decide
        self._names: dict[object, str | None] = {}
        self._calls = 0
        self._open: dict[int, _Call] = {}
        """The calls about open questions, by the question, the one that is due first first."""
        self._unlogged = 0
        self._log_again = -math.inf
        self.counts: Counter[str] = Counter(asked=0, failed=0, late=0, skipped=0)
        self._node: Node
        self._name: str
        self._tasks: TaskGroup
        self._now: Callable[[], float]
        self._settle: Callable[[], None]

    def start(
        self, node: Node, name: str, tasks: TaskGroup, now: Callable[[], float], settle: Callable[[], None]
    ) -> None:
        """Answer for a node from now on. Calls are tasks of `tasks`; `settle` follows each. name: the interface's."""
        self._node, self._name = node, name
        self._tasks, self._now, self._settle = tasks, now, settle
        node.ask(True, now())

    def update(self, peers: Iterable[PeerConfig]) -> None:
        """Learn the names of the peers."""
        self._names = {peer.public_key: peer.name for peer in peers}

    def notice(self) -> None:
        """Ask what the node has to ask, and say which calls are overdue."""
        if self._open:
            self._withdraw(self._node.take_withdrawn())
            self._notice_overdue(self._now())
        for question in self._node.take_questions():
            if self._calls < MOST_CALLS:
                self._calls += 1
                named = replace(question, name=self._names.get(question.peer))
                call = self._open[question.id] = _Call(named, self._now() + ANSWER_TIME)
                self._tasks.start_soon(self._answer, call)
            else:
                self.counts["skipped"] += 1
                self._complain(f"is not asked, because {self._calls:,} calls of it are under way")

    def _withdraw(self, questions: Iterable[int]) -> None:
        """End the calls about questions that need no answer any more."""
        cancelled = []
        for question in questions:
            if (call := self._open.pop(question, None)) is None:
                continue
            call.withdrawn = True
            self._uncount(call)
            if call.scope is not None:
                call.scope.cancel()
                cancelled.append(call)
        if cancelled:
            self._tasks.start_soon(self._count_again, cancelled)

    async def _count_again(self, cancelled: list[_Call]) -> None:
        """Count those that go on although they are cancelled: they are under way."""
        for _ in range(_TURNS):
            await anyio.lowlevel.checkpoint()
        for call in cancelled:
            if not call.ended:
                call.counts = True
                self._calls += 1

    def _uncount(self, call: _Call) -> None:
        if call.counts:
            call.counts = False
            self._calls -= 1

    def _notice_overdue(self, now: float) -> None:
        # Here, and not where a call is cancelled: one that cannot be would be silent.
        while self._open:
            question, call = next(iter(self._open.items()))
            if now < call.due:
                break
            del self._open[question]
            self._complain(f"gave no answer within {ANSWER_TIME:g} s")

    async def _answer(self, call: _Call) -> None:
        question = call.question.id
        try:
            if call.withdrawn:
                return
            self.counts["asked"] += 1
            with anyio.move_on_after(ANSWER_TIME) as call.scope:
                allow = await self._ask(call)
                # A call that cannot be cancelled, in a thread say, may end after the interface: nothing begins then.
                ends = self._tasks.cancel_scope.cancel_called
                if not ends and self._node.decide(question, allow, self._now()):
                    self._settle()
                    return
            if call.withdrawn:
                return
            # The node has refused the flow by itself, or the interface ends.
            self.counts["late"] += 1
            if not self._tasks.cancel_scope.cancel_called:
                self._notice_overdue(self._now())
        finally:
            call.ended = True
            self._uncount(call)
            self._open.pop(question, None)

    async def _ask(self, call: _Call) -> bool:
        try:
            answer = self._decide(call.question)
            if inspect.isawaitable(answer):
                answer = await answer
        except (Exception, anyio.get_cancelled_exc_class()) as error:
            if isinstance(error, anyio.get_cancelled_exc_class()) and _is_cancelled():
                raise
            # On asyncio, somebody else's cancellation can come out of what is awaited; passed on, it would be taken for
            # that of the whole interface.
            self._failed(call, f"raised {type(error).__name__}{_place(error)}")
            return False
        if not isinstance(answer, bool):
            # What is meant by it is unknown: None would be a forgotten return.
            self._failed(call, f"returned {type(answer).__name__}, which is not a bool")
            return False
        return answer

    def _failed(self, call: _Call, how: str) -> None:
        # Without the exception's own words, which may say anything.
        if call.withdrawn:
            return
        self.counts["failed"] += 1
        self._complain(how)

    def _complain(self, how: str) -> None:
        # Not once for each packet of a port scan.
        self._unlogged += 1
        if (now := self._now()) < self._log_again:
            return
        more = f"; {self._unlogged - 1:,} more since the last such line" if self._unlogged > 1 else ""
        _log.warning("%s: the hook %s, and the flow is refused%s", self._name, how, more)
        self._unlogged, self._log_again = 0, now + _PAUSE


class NoHook:
    """What an interface has in the place of a hook. It says so, once of each peer whose policy begins to ask."""

    def __init__(self) -> None:
        self.counts: Mapping[str, int] = {}
        self._name = ""
        self._asking: set[PublicKey] = set()

    def start(
        self, node: Node, name: str, tasks: TaskGroup, now: Callable[[], float], settle: Callable[[], None]
    ) -> None:
        self._name = name

    def update(self, peers: Iterable[PeerConfig]) -> None:
        asking = {peer.public_key: peer for peer in peers if peer.policy is not None and asks(peer.policy)}
        new = [peer for key, peer in asking.items() if key not in self._asking]
        self._asking = set(asking)
        if problem := nobody_to_ask(new, "this interface"):
            _log.warning("%s: %s", self._name, problem)

    def notice(self) -> None:
        pass


def _is_cancelled() -> bool:
    """Whether a scope around this call is cancelled."""
    return anyio.current_effective_deadline() == -math.inf


def _place(error: BaseException) -> str:
    """Where it was raised: the file's name without its folder, and the line."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return ""
    file = trace.tb_frame.f_code.co_filename.rpartition("/")[2]
    return f" ({file}:{trace.tb_lineno})"


def asks(policy: Policy) -> bool:
    """Whether a policy asks about anything."""
    return Action.ASK in (policy.default, policy.outbound, *(rule.action for rule in policy.rules))


def nobody_to_ask(peers: Iterable[PeerConfig], who: str = "`connlib up`") -> str | None:
    """What to tell where there is no hook, of the peers whose policies ask one; None if none does."""
    asking = [describe_peer(peer) for peer in peers if peer.policy is not None and asks(peer.policy)]
    if not asking:
        return None
    whose = f"the policy of {asking[0]} asks" if len(asking) == 1 else f"the policies of {listed(asking)} ask"
    return (
        f"{whose} a hook, and {who} has none (`decide` of open_interface is one): what it would be asked about "
        "is refused"
    )

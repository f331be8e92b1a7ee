"""Exceptions that a task group has wrapped."""

from __future__ import annotations


class WithoutGroup:
    """Raise what is alone in an exception group by itself: callers of a module that uses one have no tasks in it."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        # By its attribute, because Python 3.10 has no class for it.
        inner = error
        while inner is not None:
            members: tuple[BaseException, ...] = getattr(inner, "exceptions", ())
            if len(members) != 1:
                break
            inner = members[0]
        if inner is not None and inner is not error:
            raise inner from inner.__cause__

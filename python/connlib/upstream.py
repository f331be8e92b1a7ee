"""Pristine upstream boringtun in virtual time, to compare connlib's engine with.

`Tunn` has the constructor and the methods of `connlib.Tunn`, so far as upstream can serve them; `connlib._native.pyi`
says where it cannot. It draws its own randomness and takes its wall clock from the system, so that two runs are not
byte for byte equal.
"""

from connlib._native import UpstreamTunn as Tunn

__all__ = ["Tunn"]

"""What is wrong with an experiment."""

from connlib._errors import ConnlibError


class LabError(ConnlibError):
    """The world was told something that cannot be, or an engine did what no engine may."""

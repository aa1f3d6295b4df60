"""What goes wrong, by what a caller can do about it.

Every error of this package is a `TensorpressError`, and where Python has a name for the same thing, that as well.
"""

from __future__ import annotations

__all__ = [
    "CancelledError",
    "CorruptionError",
    "ExistsError",
    "FileMissingError",
    "InsufficientDataError",
    "InternalError",
    "InvalidArgumentError",
    "IoError",
    "MissingBaseError",
    "MissingCalibrationError",
    "NumericalError",
    "ShapeMismatchError",
    "TensorpressError",
    "UnsupportedError",
    "VersionError",
]


class TensorpressError(Exception):
    """An error of this package. `tensor` and `file` name what it concerns, where that is known."""

    tensor: str | None = None
    file: str | None = None


class InvalidArgumentError(TensorpressError, ValueError):
    """An argument is outside of what is allowed; the message names it, its value and the range."""


class ShapeMismatchError(TensorpressError, ValueError):
    """Two shapes that must agree do not."""


class MissingCalibrationError(TensorpressError, ValueError):
    """The recipe needs calibration, and none was given."""


class UnsupportedError(TensorpressError, ValueError):
    """The combination that was asked for does not exist."""


class NumericalError(TensorpressError, ArithmeticError):
    """NaN or infinity where numbers must be finite, or a matrix that cannot be factored."""


class CorruptionError(TensorpressError):
    """Bytes that contradict their own format."""


class InsufficientDataError(TensorpressError):
    """A file that ends too early, or an input with nothing in it."""


class VersionError(TensorpressError):
    """Written by a version that this one cannot read."""


class IoError(TensorpressError, OSError):
    """The operating system refused; `errno` is its number, where there is one."""


class FileMissingError(IoError, FileNotFoundError):
    """A file or folder is not there."""


class ExistsError(TensorpressError, FileExistsError):
    """The target is there already; `force=True` replaces it."""


class MissingBaseError(TensorpressError, ValueError):
    """What is stored is a difference: `base` must say what from."""


class CancelledError(TensorpressError):
    """The work was stopped as asked; the same call resumes it."""


class InternalError(TensorpressError, RuntimeError):
    """A defect of tensorpress: please report it."""


for _name in __all__:
    globals()[_name].__module__ = "tensorpress"

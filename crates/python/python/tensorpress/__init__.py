"""Compress neural networks on a CPU: quantise, prune, factor, code, and count every bit.

- `compress` makes a `Layer` of one matrix; `layer(x)` multiplies by it, `layer.storage` counts its bytes.
- `open_model` opens a model, compressed or not; `compress_model` compresses one, `convert` makes others' formats of it,
  `evaluate` judges it.
- `KvCache` holds keys and values, `PageCodec` packs pages of them.
- `pack`, `unpack`, `pack_file`, `unpack_file` and `verify_file` code losslessly.
- `tome` and `divprune` make tokens fewer.

Everything that goes wrong raises a `TensorpressError`.
"""

from ._errors import (
    CancelledError,
    CorruptionError,
    ExistsError,
    FileMissingError,
    InsufficientDataError,
    InternalError,
    InvalidArgumentError,
    IoError,
    MissingBaseError,
    MissingCalibrationError,
    NumericalError,
    ShapeMismatchError,
    TensorpressError,
    UnsupportedError,
    VersionError,
)
from ._native import (
    KvCache,
    Layer,
    Model,
    PageCodec,
    TokenMap,
    __version__,
    compress,
    compress_model,
    convert,
    demo_texts,
    divprune,
    evaluate,
    open_model,
    pack,
    pack_file,
    tome,
    unpack,
    unpack_file,
    unpacked_size,
    verify_file,
)

__all__ = [
    "CancelledError",
    "CorruptionError",
    "ExistsError",
    "FileMissingError",
    "InsufficientDataError",
    "InternalError",
    "InvalidArgumentError",
    "IoError",
    "KvCache",
    "Layer",
    "MissingBaseError",
    "MissingCalibrationError",
    "Model",
    "NumericalError",
    "PageCodec",
    "ShapeMismatchError",
    "TensorpressError",
    "TokenMap",
    "UnsupportedError",
    "VersionError",
    "__version__",
    "compress",
    "compress_model",
    "convert",
    "demo_texts",
    "divprune",
    "evaluate",
    "open_model",
    "pack",
    "pack_file",
    "tome",
    "unpack",
    "unpack_file",
    "unpacked_size",
    "verify_file",
]

from collections.abc import Callable, Iterable, Sequence
from os import PathLike
from typing import Any, Literal, final, overload

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray
from typing_extensions import Buffer, TypeAlias

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

__version__: str

_Path: TypeAlias = str | PathLike[str]
_Report: TypeAlias = dict[str, Any]
_Progress: TypeAlias = Callable[[dict[str, Any]], object] | None
# A text, a file of texts, texts, or the token ids of texts.
_Text: TypeAlias = str | PathLike[str] | Iterable[str] | Iterable[Iterable[int]]
_Floats: TypeAlias = NDArray[np.float32]
_Integers: TypeAlias = NDArray[np.int64]
_Effort: TypeAlias = Literal["fast", "best"]
_Kind: TypeAlias = Literal["bytes", "f8", "f16", "bf16", "f32", "f64", "i16", "i32", "i64"]

class TensorpressError(Exception):
    tensor: str | None
    file: str | None

class InvalidArgumentError(TensorpressError, ValueError): ...
class ShapeMismatchError(TensorpressError, ValueError): ...
class MissingCalibrationError(TensorpressError, ValueError): ...
class UnsupportedError(TensorpressError, ValueError): ...
class NumericalError(TensorpressError, ArithmeticError): ...
class CorruptionError(TensorpressError): ...
class InsufficientDataError(TensorpressError): ...
class VersionError(TensorpressError): ...
class IoError(TensorpressError, OSError): ...
class FileMissingError(IoError, FileNotFoundError): ...
class ExistsError(TensorpressError, FileExistsError): ...
class MissingBaseError(TensorpressError, ValueError): ...
class CancelledError(TensorpressError): ...
class InternalError(TensorpressError, RuntimeError): ...

@final
class Layer:
    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def kind(self) -> str: ...
    @property
    def tree(self) -> dict[str, Any]: ...
    @property
    def bits_per_weight(self) -> float: ...
    @property
    def storage(self) -> dict[str, int]: ...
    @property
    def multiplies_by(self) -> str: ...
    @property
    def bias(self) -> _Floats | None: ...
    @property
    def fallback(self) -> str | None: ...
    def decode(self) -> _Floats: ...
    def multiply(self, x: ArrayLike, *, threads: int | None = None) -> _Floats: ...
    def __call__(self, x: ArrayLike) -> _Floats: ...
    def __matmul__(self, value: ArrayLike, /) -> _Floats: ...
    def __rmatmul__(self, value: ArrayLike, /) -> NDArray[Any]: ...
    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]: ...
    def to_bytes(self) -> bytes: ...
    @staticmethod
    def from_bytes(data: Buffer) -> Layer: ...
    def __reduce__(self) -> tuple[Any, ...]: ...

@final
class Model:
    @staticmethod
    def demo() -> Model: ...
    @property
    def config(self) -> dict[str, Any]: ...
    @property
    def names(self) -> list[str]: ...
    @property
    def compressed(self) -> list[str]: ...
    @property
    def linears(self) -> list[str]: ...
    @property
    def blocks(self) -> int: ...
    @property
    def notes(self) -> list[str]: ...
    @property
    def bits_per_weight(self) -> float: ...
    def bill(self) -> _Report: ...
    def layer(self, name: str) -> Layer: ...
    def tensor(self, name: str) -> NDArray[Any]: ...
    def dtype(self, name: str) -> str | None: ...
    def __contains__(self, key: str, /) -> bool: ...

@final
class KvCache:
    def __new__(
        cls,
        recipe: str,
        kv_heads: int,
        head_dim: int,
        *,
        heads: int | None = None,
        value_dim: int | None = None,
        layer: int = 0,
        layers: int = 1,
    ) -> KvCache: ...
    def append(self, keys: ArrayLike, values: ArrayLike) -> None: ...
    def attend(self, queries: ArrayLike, *, window: int | None = None, threads: int | None = None) -> _Floats: ...
    def truncate(self, length: int) -> None: ...
    def fork(self) -> KvCache: ...
    @property
    def held(self) -> list[int]: ...
    @property
    def bytes(self) -> int: ...
    def __len__(self) -> int: ...

@final
class PageCodec:
    def __new__(
        cls,
        tokens: int,
        kv_heads: int,
        head_dim: int,
        *,
        value_dim: int | None = None,
        key_bits: int = 4,
        value_bits: int = 4,
        group: int = 64,
        symmetric: bool = False,
        scales: str = "F16",
        rotate: bool = True,
        seed: int = 0,
    ) -> PageCodec: ...
    @property
    def page_bytes(self) -> int: ...
    def ratio(self, dtype: str = "F16") -> float: ...
    def encode(self, keys: ArrayLike, values: ArrayLike) -> bytes: ...
    def decode(self, page: Buffer) -> tuple[_Floats, _Floats]: ...
    def held(self, page: Buffer) -> int: ...

@final
class TokenMap:
    @property
    def sources(self) -> int: ...
    @property
    def targets(self) -> int: ...
    @property
    def assignment(self) -> _Integers: ...
    @property
    def counts(self) -> _Integers: ...
    @property
    def firsts(self) -> _Integers: ...
    def merge(self, x: ArrayLike, sizes: ArrayLike | None = None) -> _Floats: ...
    def unmerge(self, z: ArrayLike) -> _Floats: ...
    def sizes(self, before: ArrayLike | None = None) -> _Floats: ...
    def then(self, next: TokenMap) -> TokenMap: ...

def compress(
    matrix: ArrayLike,
    recipe: str,
    calibration: ArrayLike | None = None,
    *,
    seed: int = 0,
    threads: int | None = None,
    dtype: Literal["bfloat16"] | None = None,
) -> Layer: ...
def open_model(path: _Path, *, base: _Path | None = None) -> Model: ...
def demo_texts() -> dict[str, Any]: ...
def compress_model(
    model: Model | _Path,
    recipe: str,
    out: _Path,
    *,
    calibration_text: _Text | None = None,
    calibration_windows: int | None = None,
    calibration_length: int | None = None,
    calibration_chars: int | None = None,
    calibration_inputs: Literal["compressed", "original"] = "compressed",
    seed: int = 0,
    force: bool = False,
    from_quantized: bool = False,
    format: str | None = None,
    progress: _Progress = None,
) -> _Report: ...
def convert(
    model: Model | _Path,
    to: str,
    out: _Path,
    *,
    dtype: str | None = None,
    requantize: bool = False,
    imatrix: _Path | None = None,
    shard_size: int | None = None,
    force: bool = False,
    progress: _Progress = None,
) -> _Report: ...
def evaluate(
    model: Model | _Path,
    text: _Text,
    *,
    reference: Model | _Path | None = None,
    kv: str | None = None,
    max_segments: int | None = None,
    max_tokens: int | None = None,
    progress: _Progress = None,
) -> _Report: ...
def pack(data: Buffer | NDArray[Any], kind: _Kind | None = None, *, effort: _Effort = "fast") -> bytes: ...
@overload
def unpack(packed: Buffer, dtype: None = None) -> bytes: ...
@overload
def unpack(packed: Buffer, dtype: DTypeLike) -> NDArray[Any]: ...
def unpacked_size(packed: Buffer) -> int: ...
def pack_file(
    source: _Path,
    out: _Path,
    *,
    base: _Path | None = None,
    effort: _Effort = "fast",
    force: bool = False,
    progress: _Progress = None,
) -> _Report: ...
def unpack_file(
    packed: _Path,
    out: _Path,
    *,
    base: _Path | None = None,
    force: bool = False,
    progress: _Progress = None,
) -> None: ...
def verify_file(packed: _Path, *, base: _Path | None = None, progress: _Progress = None) -> _Report: ...
def tome(
    states: ArrayLike,
    keep: int,
    *,
    protected: Sequence[int] | None = None,
    sizes: ArrayLike | None = None,
) -> TokenMap: ...
def divprune(states: ArrayLike, keep: int, *, protected: Sequence[int] | None = None) -> TokenMap: ...

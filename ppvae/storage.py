"""Files: atomic writes, and nested state as JSON or safetensors. Nothing here runs code that it reads."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

_TENSOR, _TUPLE, _ITEMS = "__tensor__", "__tuple__", "__items__"
"""What stands in the JSON of a state: the name of a tensor, the items of a tuple, those of a dict."""


def write_atomically(path: str | os.PathLike[str], write: Callable[[Path], Any]) -> Path:
    """Lets `write` fill a temporary file beside `path`, then moves it into place in one step.

    A reader, or a run that is killed, sees the old file or the new one, never a part of either.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def write_json(path: str | os.PathLike[str], content: Any) -> Path:
    """Writes `content` as indented JSON, atomically."""
    text = json.dumps(content, indent=2) + "\n"
    return write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def save_state(path: str | os.PathLike[str], state: Any) -> Path:
    """Writes nested dicts, lists and tuples of tensors, numbers and strings as one safetensors file, atomically.

    Tensors become the file's tensors, everything else its JSON metadata.

    Raises:
        TypeError: where `state` holds anything else, naming the place.
    """
    tensors: dict[str, Tensor] = {}
    tree = _flatten(state, "", tensors)
    metadata = {"state": json.dumps(tree)}
    return write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata))


def load_state(path: str | os.PathLike[str]) -> Any:
    """Reads what `save_state` wrote; tensors arrive on the CPU.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: where the file is no safetensors file of ours.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a complete safetensors file: {error}") from error
    if "state" not in metadata:
        raise ValueError(f"{path} was not written by ppvae: it has no 'state' in its metadata")
    try:
        return _unflatten(json.loads(metadata["state"]), tensors)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} was not written by ppvae: its 'state' does not describe its tensors") from error


def _flatten(value: Any, key: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        key = key or "value"
        while key in tensors:  # {"a.b": ...} beside {"a": {"b": ...}}
            key += "'"
        tensors[key] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {_TENSOR: key}
    if isinstance(value, dict) and (wrong := [k for k in value if not isinstance(k, bool | int | float | str)]):
        raise TypeError(f"the keys of state[{key!r}] must be numbers or strings, got {wrong[0]!r}")
    if isinstance(value, dict):  # as pairs: JSON would turn an optimizer's integer keys into strings
        pairs = [[k, _flatten(v, f"{key}.{k}" if key else str(k), tensors)] for k, v in value.items()]
        return {_ITEMS: pairs}
    if isinstance(value, list | tuple):
        items = [_flatten(v, f"{key}.{i}" if key else str(i), tensors) for i, v in enumerate(value)]
        return {_TUPLE: items} if isinstance(value, tuple) else items
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"state[{key!r}] must be a tensor, number, string, dict, list or None, got {value!r}")


def _unflatten(tree: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(tree, list):
        return [_unflatten(v, tensors) for v in tree]
    if not isinstance(tree, dict):
        return tree
    if _TENSOR in tree:
        return tensors[tree[_TENSOR]]
    if _TUPLE in tree:
        return tuple(_unflatten(v, tensors) for v in tree[_TUPLE])
    return {k: _unflatten(v, tensors) for k, v in tree[_ITEMS]}

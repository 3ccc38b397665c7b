"""Files: atomic writes, and nested state as JSON or safetensors. Nothing here runs code that it reads.

Every file holds a digest of its contents: a flipped bit, or a part that is missing, is an error that names the file.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

_TENSOR, _TUPLE, _ITEMS = "__tensor__", "__tuple__", "__items__"
"""What stands in the JSON of a state: the name of a tensor, the items of a tuple, those of a dict."""

DIGEST = "sha256"
"""The name of the digest, in the metadata of a tensor file and among the entries of a JSON file."""

_TEMPORARY = re.compile(r"\.[^/]+\.[0-9a-f]{16}\.tmp")
"""The names of files that are being written."""


def write_atomically(path: str | os.PathLike[str], write: Callable[[Path], Any]) -> Path:
    """Lets `write` fill a temporary file beside `path`, then moves it into place in one step.

    A reader, or a run that is killed, sees the old file or the new one, never a part of either. The temporary file is
    new, under a name that nobody can foresee; the file's mode is what the umask makes of it.

    Raises:
        OSError: naming `path`, where it cannot be written; the old file is then as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise OSError(errno.EINVAL, "it is no file but a device or a pipe, whose place a file would take")
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode
        write(temporary)
        temporary.chmod(mode)  # what writes the file may have made another in its place
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, f"cannot write: {error.strerror or error}", str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return path


def remove_temporary(folder: Path) -> None:
    """Removes what a killed process was writing in a folder, and in those inside; nobody else may write there now."""
    for path in folder.rglob(".*.tmp"):
        if _TEMPORARY.fullmatch(path.name) and not path.is_dir():
            path.unlink(missing_ok=True)


def write_json(path: str | os.PathLike[str], content: Any) -> Path:
    """Writes `json_text(content)`, atomically."""
    text = json_text(content)
    return write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def json_text(content: Any) -> str:
    """`content` as indented JSON; a dict with its digest as the last entry."""
    if isinstance(content, dict):
        own = {name: value for name, value in content.items() if name != DIGEST}
        content = {**own, DIGEST: _digest_of_json(own)}
    return json.dumps(content, indent=2) + "\n"


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads what `write_json` made of a dict, without the digest; one without a digest is of an older version.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: where it holds no JSON object, or another than was written.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: it is no JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}")
    name, value = next(reversed(content.items()), ("", None))
    lost = name != DIGEST and isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value)  # its name was damaged
    digest = content.pop(DIGEST, None)
    if lost or (digest is not None and digest != _digest_of_json(content)):
        raise ValueError(
            f"{path} is damaged, or was edited: its contents do not have the digest that it holds. Whoever edited it "
            f"takes the entry {DIGEST!r} out"
        )
    return content


def save_state(path: str | os.PathLike[str], state: Any) -> Path:
    """Writes nested dicts, lists and tuples of tensors, numbers and strings as one safetensors file, atomically.

    Tensors become the file's tensors, everything else its JSON metadata.

    Raises:
        TypeError: where `state` holds anything else, naming the place.
        OSError: where the file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    tree = _flatten(state, "", tensors)
    digest = _digest(json.dumps(tree), tensors)
    metadata = {"state": json.dumps({DIGEST: digest, "tree": tree})}  # one entry: their order would be by chance

    def write(temporary: Path) -> None:
        try:
            save_file(tensors, temporary, metadata)
        except SafetensorError as error:
            number = re.search(r"os error (\d+)", str(error))
            raise OSError(int(number[1]) if number else None, str(error)) from error

    return write_atomically(path, write)


def load_state(path: str | os.PathLike[str]) -> Any:
    """Reads what `save_state` wrote; tensors arrive on the CPU. A file without a digest is of an older version.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: where the file is no safetensors file of ours, or not what was written.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, TypeError, UnicodeDecodeError) as error:  # the latter two of a type that torch has not
        raise ValueError(f"{path} is not a complete safetensors file: {error}") from error
    if "state" not in metadata:
        raise ValueError(f"{path} was not written by ppvae: it has no 'state' in its metadata")
    try:
        tree = json.loads(metadata["state"])
        digest = None
        if isinstance(tree, dict) and DIGEST in tree:
            digest, tree = tree[DIGEST], tree["tree"]
        state = _unflatten(tree, tensors)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} was not written by ppvae: its 'state' does not describe its tensors") from error
    if digest is not None and digest != _digest(json.dumps(tree), tensors):
        raise ValueError(f"{path} is damaged: its contents do not have the digest that it holds")
    return state


def digest_of(*tensors: Tensor | None) -> str:
    """A hash of all values of some tensors, with their dtypes and shapes."""
    return _digest("", {str(i): tensor for i, tensor in enumerate(tensors) if tensor is not None})


def _digest(text: str, tensors: dict[str, Tensor]) -> str:
    found = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        for rows in tensor.reshape(-1).split(2**24):  # little beside the data, which may lie on a GPU
            found.update(rows.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _digest_of_json(content: dict[str, Any]) -> str:
    as_read = json.loads(json.dumps(content))  # keys are strings there, which sorts them otherwise
    return hashlib.sha256(json.dumps(as_read, sort_keys=True).encode()).hexdigest()


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

"""Runs on the Hugging Face Hub: pushed with a model card, opened as `open_run` opens a folder.

Weights travel as safetensors, everything else as JSON, CSV and PNG. Nothing that comes back is unpickled or imported.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import nn

from ppvae._validate import check_flag, check_path, optional_library
from ppvae.cli.card import model_card, without_paths
from ppvae.cli.runs import OpenedRun, open_run
from ppvae.infer import RunFolder
from ppvae.storage import json_text

FILES = ("config.json", "model.safetensors", "history.csv", "metrics.json", "evaluation*.json", "figures/*.png")
"""What of a run folder is shared: the result and its evidence, neither checkpoints nor values of single data."""


def push_to_hub(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    license: str | None = None,
    tags: Sequence[str] = (),
    private: bool = False,
    message: str = "A run of ppvae",
) -> str:
    """Uploads a run to the Hugging Face Hub in one commit, with a model card made of what the folder holds.

    The card has log p(x) with its standard error, k̂, the command, versions and figures: run `python -m ppvae.evaluate`
    first. Paths of this machine are taken out of `config.json`. `ppvae share FOLDER` prints the card, and nothing
    leaves the machine.

    Args:
        folder: the run folder, `run.folder` of what `fit` returned.
        repo_id: the repository, `owner/name`; it is made where there is none.
        license: its licence as the hub names it, e.g. "apache-2.0"; None states none.
        tags: what the model is filed under besides.
        private: whether a new repository is for its owner alone.
        message: of the commit.

    Returns:
        The address of the commit.

    Raises:
        ImportError: without huggingface_hub: `pip install "ppvae[hub]"`.
        FileNotFoundError: where the folder holds no run, or no weights yet.
        ValueError: where it is damaged, or `repo_id` is no name of a repository.
        OSError: where the hub refuses: nobody is logged in (`hf auth login`), or may not write there.
    """
    hub = optional_library("huggingface_hub", what="the hub", extra="hub")
    check_flag("private", private)
    contents = shared_files(folder, repo_id, license=license, tags=tags)
    api = hub.HfApi(library_name="ppvae")
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    files = [hub.CommitOperationAdd(name, content) for name, content in contents.items()]
    return str(api.create_commit(repo_id, files, commit_message=message).commit_url)


def from_hub(
    repo_id: str,
    *,
    revision: str | None = None,
    folder: str | os.PathLike[str] | None = None,
    pair: nn.Module | None = None,
    trust: bool = False,
    device: str | torch.device = "cpu",
    data_root: str | os.PathLike[str] | None = None,
    download: bool = False,
) -> OpenedRun:
    """Downloads a run from the Hugging Face Hub and opens it as `open_run` does.

    Args:
        repo_id: the repository, `owner/name`.
        revision: branch, tag or commit; by default the newest.
        folder: where the run folder goes, for `python -m ppvae.evaluate`; by default the hub's own cache.
        pair: a pair built as that of the run was, which takes the run's weights.
        trust: whether to import and call the functions that a run of somebody's own names in its config.json. They are
            found where this program finds its modules, never in what was downloaded.
        device: where the pair goes.
        data_root: where the data set of an example lies.
        download: whether to fetch that data set where it is missing.

    Returns:
        Pair, data, history and metrics, see `open_run`.

    Raises:
        ImportError: without huggingface_hub: `pip install "ppvae[hub]"`.
        FileExistsError: where `folder` holds a run already.
        FileNotFoundError: where the repository holds no run.
        ValueError: as `open_run`, and where `repo_id` is no name of a repository.
        OSError: where the hub has no such repository, or is not reached and the run is not in the cache.
    """
    hub = optional_library("huggingface_hub", what="the hub", extra="hub")
    check_flag("trust", trust)
    if folder is not None:
        RunFolder(check_path("folder", folder)).check_free()
    shared = [*FILES, "README.md"]
    there = hub.snapshot_download(repo_id, revision=revision, local_dir=folder, allow_patterns=shared)
    return open_run(there, pair=pair, trust=trust, device=device, data_root=data_root, download=download)


def shared_files(
    folder: str | os.PathLike[str], repo_id: str, *, license: str | None = None, tags: Sequence[str] = ()
) -> dict[str, bytes]:
    """What is uploaded of a run, by its name in the repository: the card is README.md.

    Raises:
        FileNotFoundError: where the folder holds no run, or no weights yet.
        ValueError: where it is damaged, or `repo_id` is no name.
    """
    if not isinstance(repo_id, str) or not repo_id.strip("/"):
        raise ValueError(f"repo_id must be the name of a repository, 'owner/name', got {repo_id!r}")
    run = RunFolder(folder)
    config = run.read_config()
    run.weights()  # checks their digest
    if not run.model.is_file():
        raise FileNotFoundError(f"{run.path} has no {run.model.name} yet: it is written after the first epoch")
    card = model_card(run, repo_id, license=license, tags=tags)
    found = sorted(path for pattern in FILES for path in run.path.glob(pattern) if path.is_file())
    contents = {path.relative_to(run.path).as_posix(): path.read_bytes() for path in found}
    return {**contents, "config.json": json_text(without_paths(config)).encode(), "README.md": card.encode()}

"""Runs of seconds that are killed, damaged and forged: of every kind of data, schedule and stop that `fit` knows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import ppvae
from ppvae.data import Batches, Binarize, JointBatches
from ppvae.infer import Run, RunFolder
from ppvae.models import PPCA
from ppvae.objectives import Cosine, Linear
from ppvae.storage import load_state
from tests.infer.pairs import binary, same, small_vae, state

EPOCHS = 6


def loader() -> DataLoader[Any]:
    data = TensorDataset(binary(30))
    return DataLoader(data, batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(2))


def dynamic() -> Batches:
    grey = torch.rand(30, 6, generator=torch.Generator().manual_seed(0))
    return Batches(grey, batch_size=8, transform=Binarize(), seed=4)


def joint() -> JointBatches:
    return JointBatches(Batches(binary(12), batch_size=4, seed=1), Batches(binary(30, seed=3), batch_size=8, seed=2))


def stop_late(row: dict[str, float], pair: nn.Module, epoch: int) -> bool:
    """Draws, and asks to stop after the last epoch but one."""
    torch.randn(3)
    return epoch == EPOCHS - 1


def ppca() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return PPCA(6, 2)


KINDS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any], dict[str, Any]]] = {
    "plain": (small_vae, lambda: binary(30), {}),
    "validated": (
        partial(small_vae, dropout=0.2),
        lambda: binary(30),
        {"valid": binary(10, seed=1), "lr": Cosine(EPOCHS, start=0.05), "kl_weight": Linear(3), "patience": 2},
    ),
    "loader": (partial(small_vae, norm="batch"), loader, {"valid": binary(10, seed=1)}),
    "dynamic": (small_vae, dynamic, {"compile": True}),
    "joint": (ppca, joint, {"compile": True, "lr": Cosine(EPOCHS, start=0.02)}),
    "callbacks": (ppca, lambda: binary(30), {"callbacks": [stop_late], "clip_norm": 1.0}),
}
"""By name: the pair, its data, and options of `fit`."""


def train(kind: str, out: Path | None, *, epochs: int = EPOCHS, resume: bool = False) -> tuple[Run, nn.Module]:
    """The run of a kind, or what is left of it."""
    make_pair, make_data, options = KINDS[kind]
    pair = make_pair()
    options = {"batch_size": 8, "lr": 0.02, "compile": False, **options}
    return ppvae.fit(pair, make_data(), epochs=epochs, out=out, resume=resume, progress=False, **options), pair


def check_equal(one: Path, other: Path) -> None:
    """All that two runs left, byte for byte but for the time that they took."""
    a, b = RunFolder(one), RunFolder(other)
    for name in ("history", "model"):
        assert getattr(a, name).read_bytes() == getattr(b, name).read_bytes(), name
    states = [load_state(run.last) for run in (a, b)]
    assert all(state["progress"].pop("seconds") > 0 for state in states)
    assert same(*states)
    assert a.best.exists() == b.best.exists()
    assert not a.best.exists() or a.best.read_bytes() == b.best.read_bytes()
    assert same(a.weights(), b.weights())


def result(kind: str, folder: Path) -> tuple[Any, ...]:
    """What a user gets of a run folder that goes on for two epochs, all as plain values."""
    of = RunFolder(folder)
    loaded = ppvae.load(KINDS[kind][0](), folder)
    history, config = of.read_history(), of.read_config()
    run, pair = train(kind, folder, epochs=EPOCHS + 2, resume=True)
    return state(loaded), history, config, run.history, run.stopped, state(pair)

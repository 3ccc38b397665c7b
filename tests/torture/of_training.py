"""Public functions of training and of data, with right arguments and wrong ones."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from pyro.infer import Trace_ELBO

import ppvae
from ppvae import data
from ppvae.infer import RunFolder
from tests.torture import values as v
from tests.torture.pairs import cvae, labels, ssvae, vae
from tests.torture.wrong_calls import Function

ONE_RUN = {"epochs": 1, "batch_size": 10, "progress": False, "compile": False}


def training() -> list[Function]:
    """Of `ppvae` and `ppvae.infer`."""
    fit = Function(
        "fit",
        ppvae.fit,
        lambda: {"pair": vae(), "train": v.x(), **ONE_RUN},
        {
            "pair": v.PAIRS,
            "train": v.TRAINING_DATA,
            "valid": v.TRAINING_DATA,
            "loss": v.LOSSES,
            "epochs": v.COUNTS,
            "batch_size": v.COUNTS,
            "lr": v.SCHEDULES,
            "optim": v.OPTIMIZERS,
            "clip_norm": v.POSITIVE,
            "param_groups": v.constants(3, "a", {"nope": {"lr": 0.1}}, {"*": 3}, {3: {}}, {"*": {"lr": "x"}}),
            "kl_weight": v.SCHEDULES,
            "kl_sites": v.NAMES,
            "patience": v.COUNTS,
            "compile": v.COMPILE,
            "autocast": v.DTYPES,
            "device": v.DEVICES,
            "seed": v.SEEDS,
            "out": v.PATHS_TO_WRITE,
            "resume": v.FLAGS,
            "config": v.CONFIGS,
            "callbacks": v.CALLBACKS,
            "progress": v.FLAGS,
        },
        fine=dict.fromkeys(("clip_norm", "kl_sites", "patience", "out"), ("None",)),
    )
    of_labels = [
        Function(
            f"fit, {name}",
            lambda pair, y, **kwargs: ppvae.fit(pair, (v.x(), y), **kwargs),
            lambda pair=pair: {"pair": pair(), "y": labels(), **ONE_RUN},
            {"y": v.LABELS},
            called={"y": ("train",)},
        )
        for name, pair in {"cvae": cvae, "ssvae": ssvae}.items()
    ]
    svi = Function(
        "SVI",
        lambda model=None, guide=None, **kwargs: ppvae.SVI(model, guide, **kwargs),
        lambda: (
            dict(zip(("model", "guide"), _functions(vae()), strict=True))
            | {"optim": torch.optim.Adam, "loss": Trace_ELBO()}
        ),
        {
            "model": v.FUNCTIONS,
            "guide": v.FUNCTIONS,
            "optim": v.constants(None, "adam", 3),
            "loss": v.constants(None, 3, "elbo", Trace_ELBO),
            "compile": v.COMPILE,
            "autocast": v.DTYPES,
            "clip_norm": v.POSITIVE,
            "param_groups": v.constants(3, "a", {"*": 3}, {3: {}}),
            "on_gradients": v.constants(3, "f"),
            "owner": v.constants(3, "f"),
        },
        fine={"clip_norm": ("None",)},
    )
    return [
        fit,
        *of_labels,
        svi,
        Function(
            "KLWeight",
            ppvae.KLWeight,
            lambda: {"weight": 1.0, "sites": ["z"]},
            {
                "weight": v.WEIGHTS | {"vector": lambda: torch.ones(3)},
                "sites": v.constants("z1", 3, [1], [None], b"z"),
            },
        ),
        Function(
            "Pair",
            lambda **kwargs: ppvae.Pair(**kwargs),
            lambda: dict(zip(("model", "guide"), _functions(vae()), strict=True)),
            {
                "model": v.FUNCTIONS,
                "guide": v.FUNCTIONS,
                "modules": v.constants(3, "net", None, [3]),
                "reverse": v.constants(3, "f"),
            },
        ),
        Function(
            "save",
            ppvae.save,
            lambda: {"pair": vae(), "path": "a.safetensors"},
            {"pair": v.PAIRS, "path": v.PATHS_TO_WRITE},
        ),
        Function(
            "load", ppvae.load, lambda: {"pair": vae(), "path": _saved()}, {"pair": v.PAIRS, "path": v.PATHS_TO_WRITE}
        ),
        Function("RunFolder", RunFolder, lambda: {"path": "a"}, {"path": v.PATHS}),
    ]


def _functions(pair: Any) -> tuple[Any, Any]:
    return pair.model, pair.guide


def _saved() -> Path:
    folder = Path(tempfile.mkdtemp(dir="."))
    return ppvae.save(vae(), folder / "a.safetensors")


def of_data() -> list[Function]:
    """Of `ppvae.data`."""
    levels = {"levels": v.COUNTS | v.constants(1)}
    tensors = v.NO_DENSE_TENSOR
    batches = Function(
        "Batches",
        lambda tensors, **kwargs: next(iter(data.Batches(tensors, **kwargs))),
        lambda: {"tensors": v.x(), "batch_size": 5},
        {
            "tensors": {
                name: make
                for name, make in v.DATA.items()
                if name in (*tensors, "0-d", "empty", "no width", "nan", "inf")
            },
            "batch_size": v.COUNTS,
            "shuffle": v.FLAGS,
            "drop_last": v.FLAGS,
            "transform": v.TRANSFORMS,
            "device": v.DEVICES,
            "seed": v.SEEDS,
        },
    )
    return [
        batches,
        Function(
            "JointBatches",
            lambda sets: data.JointBatches(*sets),
            lambda: {"sets": (data.Batches(v.x(), batch_size=5),)},
            {"sets": v.constants((), (3,), ("a",)) | {"tensors": lambda: (v.x(),)}},
        ),
        Function(
            "binarize",
            data.binarize,
            lambda: {"x": v.x()},
            {"x": tensors | {"outside": lambda: 2 * v.x()}, "seed": v.SEEDS},
        ),
        Function(
            "dequantize",
            data.dequantize,
            lambda: {"k": v.x().long(), "levels": 2},
            {"k": tensors | {"float": lambda: v.x(), "outside": lambda: 3 * v.x().long()}, **levels},
            called={"k": ("x",)},
        ),
        Function(
            "quantize",
            data.quantize,
            lambda: {"x": v.x(), "levels": 2},
            {"x": tensors | {"outside": lambda: 3 * v.x()}, **levels},
        ),
        Function(
            "split_labels",
            data.split_labels,
            lambda: {"y": labels(), "num_labels": 6},
            {"y": v.LABELS, "num_labels": v.NATURALS | v.constants(21), "seed": v.SEEDS},
            fine={"y": ("negative", "too large", "fewer")},
        ),
        Function(
            "Progressions.draw",
            data.Progressions().draw,
            lambda: {"n": 3, "num_steps": 4},
            {"n": v.COUNTS, "num_steps": v.COUNTS, "seed": v.SEEDS},
        ),
        Function(
            "Sprites",
            data.Sprites,
            lambda: {"size": 16},
            {
                "size": v.COUNTS | v.constants(17),
                "num_scales": v.COUNTS,
                "num_orientations": v.COUNTS,
                "num_positions": v.COUNTS | v.constants(3),
            },
            fine={"num_positions": ("None",)},
        ),
        Function(
            "FactorData.images",
            data.Sprites(16).images,
            lambda: {"rows": torch.arange(4)},
            {"rows": tensors | v.constants(3) | {"float": lambda: v.x()[:, 0], "matrix": lambda: v.x().long() - 5}},
        ),
        Function(
            "load_factors",
            data.load_factors,
            lambda: {"name": "sprites"},
            {"name": v.CHOICES, "root": v.PATHS},
        ),
        Function(
            "load",
            data.load,
            lambda: {"name": "digits"},
            {
                "name": v.CHOICES,
                "num_valid": v.constants(-1, 2.5, "3", True, 10**6),
                "seed": v.SEEDS,
                "download": v.FLAGS,
                "root": v.constants(3, None, ["a"]),
            },
        ),
    ]

"""What the shared flags say to `fit`."""

import numpy as np
import pytest
from PIL import Image

from ppvae.cli.experiment import lr_of, warmup_of
from ppvae.cli.flags import ImageArgs
from ppvae.examples import vae
from ppvae.infer import RunFolder
from ppvae.objectives import Cosine, Cyclical, Linear, Sigmoid, Stages


@pytest.mark.parametrize(
    ("name", "expected"), [("constant", 0.1), ("cosine", Cosine(7, 0.1, 0.001)), ("burda", Stages(7, 0.1))]
)
def test_learning_rates(name, expected):
    assert lr_of(ImageArgs(lr=0.1, lr_schedule=name), 7) == expected


@pytest.mark.parametrize(
    ("name", "expected"), [("linear", Linear(20)), ("cyclical", Cyclical(20)), ("sigmoid", Sigmoid(10, 2))]
)
def test_warmups(name, expected):
    assert warmup_of(ImageArgs(warmup=20, warmup_shape=name)) == expected
    assert warmup_of(ImageArgs(warmup=0, warmup_shape=name)) is None


def test_warmup_from_above():
    assert warmup_of(ImageArgs(warmup=20, warmup_from=4).resolved()) == Linear(20, start=4)


def test_warmup_goes_from_its_start_to_the_weight_of_the_pair():
    factor = warmup_of(ImageArgs(warmup=10, warmup_from=1), beta=4.0)
    assert [4.0 * factor(epoch) for epoch in (0, 5, 10, 20)] == [1.0, 2.5, 4.0, 4.0]
    assert warmup_of(ImageArgs(warmup=10), beta=0.0) == Linear(10)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"warmup": 5, "warmup_from": -1}, "--warmup-from must be a finite number >= 0, got -1"),
        ({"warmup_shape": "cyclical"}, "--warmup-shape cyclical needs --warmup"),
        ({"warmup": -3}, "--warmup must be a finite number >= 0, got -3"),
        ({"warmup_from": 4}, "--warmup-from needs --warmup"),
        ({"warmup": 5, "warmup_from": 4, "warmup_shape": "sigmoid"}, "--warmup-shape linear"),
    ],
)
def test_warmups_that_are_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        ImageArgs(**flags).resolved()


def test_schedules_reach_the_training(tmp_path):
    flags = ["--epochs", "4", "--lr-schedule", "burda", "--warmup", "4", "--warmup-shape", "cyclical"]
    small = ["--hidden-dims", "4", "--num-samples", "1", "--num-eval", "50"]
    assert vae.main([*flags, *small, "--out", str(tmp_path / "run")]) == 0
    rows = RunFolder(tmp_path / "run").read_history()
    last = [epoch - 1 / 11 for epoch in (1, 2, 3, 4)]  # when the last of 11 steps begins
    assert [row["lr"] for row in rows] == pytest.approx([Stages(4, 1e-3)(t) for t in last])
    assert rows[-1]["lr"] == pytest.approx(1e-4)
    assert [row["kl_weight"] for row in rows] == pytest.approx([min(t / 2, 1) for t in last], abs=1e-6)


def test_a_run_says_which_images_it_found(tmp_path, capsys):
    for i in range(40):
        path = tmp_path / "pictures" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((6, 5), 6 * i, np.uint8)).save(path)
    flags = ["--dataset", "folder", "--data-root", str(tmp_path / "pictures"), "--image-size", "4", "--num-valid", "6"]
    assert vae.main(["--smoke", "--hidden-dims", "4", *flags, "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert "images of 1×4×4, 256 levels, 2 classes: 30 to train on, 6 for validation, 4 for testing\n" in said

"""A classifier's features: the same for the same seed, apart by class, and what stands in their place."""

import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from ppvae.evaluate import InceptionFeatures, train_features
from ppvae.evaluate.features import describe_features


def stripes(n=60, shape=(1, 8, 8), classes=3):
    """Images whose class is where they are bright."""
    torch.manual_seed(0)
    y = torch.arange(n) % classes
    x = 0.1 * torch.randn(n, *shape)
    for i, c in enumerate(y.tolist()):
        x[i, ..., c] += 1
    return x, y


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 10), (5,), (1, 4, 4)])
def test_features_tell_classes_apart(shape):
    x, y = stripes(shape=shape)
    net = train_features(x, y, num_steps=60)
    assert net(x).shape == (60, 64)
    assert float((net.logits(x).argmax(-1) == y).double().mean()) > 0.9
    assert not net.training
    assert not any(parameter.requires_grad for parameter in net.parameters())


def test_features_have_mean_zero_and_variance_one():
    x, y = stripes()
    found = train_features(x, y, num_steps=20)(torch.cat([x] * 3))
    assert float(found.mean(0).abs().max()) < 0.3
    assert float(found.var(0, correction=0).mean()) == pytest.approx(1.0, abs=0.2)


def test_seed_and_data_decide_the_features_and_nothing_else_does():
    x, y = stripes()
    state = torch.get_rng_state()
    same = [describe_features(train_features(x, y, num_steps=5)) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert same == [describe_features(train_features(x, y, num_steps=5))] * 2
    other = describe_features(train_features(x, y, num_steps=5, seed=1))
    assert other != same[0]
    assert "classifier of 3 classes, trained on 54 data with seed 0 (error" in same[0]
    assert "sha256" in same[0]


def test_integers_are_data():
    x, y = stripes()
    net = train_features((10 * x).round().long() + 5, y, num_steps=3)
    assert bool(net((10 * x).round().long()).isfinite().all())


def test_features_of_another_module_are_named_by_it():
    assert describe_features(nn.Identity()) == "features of Identity"
    assert describe_features(nn.Linear(2, 2)).startswith("features of Linear, sha256 ")


@pytest.mark.parametrize(
    ("x", "y", "error", "message"),
    [
        (torch.zeros(30, 4), torch.zeros(30).long(), ValueError, "labels of at least two classes, from 0 on, got"),
        (torch.zeros(30, 4), torch.arange(30) % 2 - 1, ValueError, "labels of at least two classes"),
        (torch.zeros(30, 4), torch.zeros(30), TypeError, "y must hold integers, got torch.float32"),
        (torch.zeros(30, 4), torch.zeros(29).long(), ValueError, r"y \(n,\), got \(30, 4\) and \(29,\)"),
        (torch.zeros(30), torch.zeros(30).long(), ValueError, r"x must have shape \(n, \*event\)"),
        (torch.zeros(9, 4), torch.arange(9) % 2, ValueError, "at least 20 data to train a classifier on, got 9"),
        (torch.full((30, 4), torch.nan), torch.arange(30) % 2, ValueError, "x holds NaN"),
        ([1.0], torch.arange(30) % 2, TypeError, "x must be a torch.Tensor"),
    ],
)
def test_wrong_data(x, y, error, message):
    with pytest.raises(error, match=message):
        train_features(x, y)


def test_training_needs_gradients():
    x, y = stripes()
    with torch.no_grad(), pytest.raises(RuntimeError, match="train_features trains by gradients"):
        train_features(x, y)


# InceptionV3, of packages that are not required.


def test_without_its_packages_inception_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ImportError, match="pip install torchmetrics torch-fidelity"):
        InceptionFeatures()


class Stub(nn.Module):
    """What torchmetrics has in its place: takes bytes, and gives 2048 numbers an image."""

    def __init__(self, name, features_list, feature_extractor_weights_path):
        super().__init__()
        self.given = name, features_list, feature_extractor_weights_path

    def forward(self, x):
        assert x.dtype == torch.uint8
        assert x.shape[1] == 3
        return x.double().flatten(1).mean(1, keepdim=True).expand(-1, 2048)


@pytest.fixture
def packages(monkeypatch):
    fid = ModuleType("torchmetrics.image.fid")
    fid.NoTrainInceptionV3 = Stub
    for name in ("torch_fidelity", "torchmetrics", "torchmetrics.image"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", fid)


@pytest.mark.usefixtures("packages")
def test_inception_takes_intensities_and_the_weights_that_are_there(tmp_path):
    weights = tmp_path / "weights.pth"
    with pytest.raises(FileNotFoundError, match=r"weights: there is no file .*weights\.pth"):
        InceptionFeatures(weights)
    weights.touch()
    net = InceptionFeatures(weights)
    assert net.net.given == ("inception-v3-compat", ["2048"], str(weights))
    assert net(torch.ones(2, 1, 8, 8)).unique().tolist() == [255.0]
    assert describe_features(net) == "2048 features of InceptionV3"
    with pytest.raises(ValueError, match=r"takes images \(n, 1 or 3, h, w\), got \(2, 2, 8, 8\)"):
        net(torch.ones(2, 2, 8, 8))

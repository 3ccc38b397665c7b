"""Pictures that are streamed are those of the folder in memory, and few of them are in memory at a time."""

import threading
import weakref

import numpy as np
import pytest
import torch
from PIL import Image

import ppvae
from ppvae.data import Binarize, Pictures, load
from ppvae.distributions import ConditionalBernoulli, ConditionalNormal, StandardNormal
from ppvae.models import VAE
from ppvae.nn import MLP


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for i in range(60):
        path = root / ("cat" if i % 2 else "dog") / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(256, size=(6, 5), dtype=np.uint8)).save(path)
    return root


def rows(x):
    return sorted(tuple(row.tolist()) for row in x.flatten(1))


@pytest.mark.parametrize("part", ["train", "valid", "test"])
def test_every_part_is_that_of_the_folder_in_memory(folder, part):
    streamed = Pictures(folder, batch_size=7, part=part)
    x = torch.cat([batch for (batch,) in streamed.epoch(0)])
    held = getattr(load("folder", folder), part)
    assert rows(x) == rows(held.x)
    assert streamed.event_shape == held.x.shape[1:]
    if part != "train":
        assert torch.equal(x, held.x)
        assert torch.equal(streamed.labels, held.y)


def test_an_epoch_is_a_function_of_seed_and_number(folder):
    one, two = (Pictures(folder, batch_size=16, transform=Binarize(), seed=3) for _ in range(2))
    first, again, later = ([x for (x,) in of.epoch(i)] for of, i in ((one, 1), (two, 1), (two, 2)))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], later[0])
    assert [len(x) for x in first] == [16, 16, 16, 1]
    assert (one.num_data, one.num_batches, one.last_rows, len(one)) == (49, 4, 1, 4)
    assert set(first[0].unique().tolist()) <= {0.0, 1.0}


def test_no_more_than_three_minibatches_are_in_memory(folder, monkeypatch):
    from ppvae.data import pictures

    alive, most, lock, decode = set(), [0], threading.Lock(), pictures.decode

    class Counted(np.ndarray):
        pass

    def counted(file, **options):
        array = decode(file, **options).view(Counted)
        with lock:
            alive.add(id(array))
            weakref.finalize(array, alive.discard, id(array))
            most[0] = max(most[0], len(alive))
        return array

    monkeypatch.setattr("ppvae.data.pictures.decode", counted)
    seen = sum(len(x) for (x,) in Pictures(folder, batch_size=4, num_valid=0).epoch(0))
    assert seen == 54
    assert 4 <= most[0] <= 12
    stopped = Pictures(folder, batch_size=4).epoch(0)
    next(stopped)
    stopped.close()  # waits for what is being decoded


def test_a_pair_trains_on_it_and_resumes(folder, tmp_path):
    def vae():
        torch.manual_seed(0)
        q_z_given_x = ConditionalNormal(MLP((1, 6, 5), (), (2, 2)))
        return VAE(StandardNormal(2), ConditionalBernoulli(MLP(2, (), (1, 6, 5))), q_z_given_x)

    train = Pictures(folder, batch_size=20, transform=Binarize())
    whole = ppvae.fit(vae(), train, epochs=3, progress=False)
    ppvae.fit(vae(), train, epochs=2, out=tmp_path / "run", progress=False)
    resumed = ppvae.fit(vae(), train, epochs=3, out=tmp_path / "run", resume=True, progress=False)
    assert resumed.history[-1]["loss"] == whole.history[-1]["loss"]
    pair = vae()
    test = Pictures(folder, batch_size=4, part="test", transform=Binarize())
    assert len(ppvae.elbo(pair, test, num_samples=2).values) == 6
    other = Pictures(folder, batch_size=20, num_valid=0, transform=Binarize())
    with pytest.raises(ValueError, match="data"):
        ppvae.fit(vae(), other, epochs=4, out=tmp_path / "run", resume=True, progress=False)


def test_bad_input_is_named(folder, tmp_path):
    with pytest.raises(ValueError, match="part must be one of train, valid, test, got 'all'"):
        Pictures(folder, batch_size=4, part="all")
    with pytest.raises(FileNotFoundError, match="root: there is no folder"):
        Pictures(tmp_path / "none", batch_size=4)
    with pytest.raises(ValueError, match="num_valid=54 leaves nothing of 54 pictures"):
        Pictures(folder, batch_size=4, num_valid=54)
    with pytest.raises(ValueError, match="batch_size must be a whole number >= 1, got 0"):
        Pictures(folder, batch_size=0)

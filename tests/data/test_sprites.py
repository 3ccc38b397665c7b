"""Generated sprites and other images with known factors: counts, symmetries, shifts, look-ups, files."""

import sys

import numpy as np
import pytest
import torch

import ppvae
from ppvae.data import Batches, Binarize, Render, Sprites, StoredFactors, load, load_factors
from ppvae.data.factor_files import DSPRITES, SHAPES3D, SHAPES3D_FACTORS
from tests.infer.pairs import small_vae


@pytest.fixture(scope="module")
def full():
    return Sprites()


def one(data, *values):
    """The image with these factors, (h, w)."""
    return data.images(data.rows(torch.tensor([values])))[0, 0]


def test_there_are_as_many_as_in_dsprites(full):
    assert len(full) == 737_280
    assert full.names == ("shape", "scale", "orientation", "x", "y")
    assert full.sizes == (3, 6, 40, 32, 32)
    assert (full.event_shape, full.levels, full.categorical) == ((1, 64, 64), 2, ("shape",))
    assert len(load_factors("sprites")) == 3 * 6 * 40 * 16 * 16
    assert load_factors("sprites64").sizes == full.sizes


def test_images_are_binary_and_whole(full):
    x = full.images(full.subset(500))
    assert x.shape == (500, 1, 64, 64)
    assert x.unique().tolist() == [0.0, 1.0]
    smallest, largest = one(full, 0, 0, 0, 5, 9), one(full, 1, 5, 13, 5, 9)
    assert 0 < float(smallest.sum()) < float(largest.sum())
    area = x.sum((1, 2, 3))  # nothing is cut off: it depends on shape, scale and orientation alone
    factors = full.factors(full.subset(500))
    factors[:, 3:] = 16
    assert torch.equal(area, full.images(full.rows(factors)).sum((1, 2, 3)))


@pytest.mark.parametrize("options", [{}, {"num_positions": 8}])
@pytest.mark.parametrize("shape", [0, 1, 2])
def test_positions_are_shifts_by_whole_pixels(shape, options):
    data = Sprites(32, **options)
    step, last = 16 // data.sizes[-1], data.sizes[-1] - 1
    first = one(data, shape, 3, 7, 0, 0)
    assert torch.equal(first.roll((5 * step, 2 * step), (0, 1)), one(data, shape, 3, 7, 2, 5))
    assert torch.equal(first.roll((last * step, last * step), (0, 1)), one(data, shape, 3, 7, last, last))


def test_orientations_are_known_modulo_the_symmetry_of_the_shape(full):
    def orientations(shape):
        rows = full.rows(torch.tensor([[shape, 5, i, 8, 8] for i in range(40)]))
        return torch.unique(full.images(rows).flatten(1), dim=0)

    assert [len(orientations(shape)) for shape in range(3)] == [10, 20, 40]
    assert torch.equal(one(full, 0, 2, 3, 4, 5), one(full, 0, 2, 13, 4, 5))
    assert torch.equal(one(full, 1, 2, 3, 4, 5), one(full, 1, 2, 23, 4, 5))
    assert full.distinct == 6 * (10 + 20 + 40)
    assert Sprites(32).distinct == full.distinct - 10


def test_a_heart_is_turned():
    data = Sprites(num_orientations=4)
    upright, turned = one(data, 2, 5, 0, 16, 16), one(data, 2, 5, 1, 16, 16)
    assert torch.equal(upright, upright.flip(1).roll(1, 1))  # its middle is a column
    assert torch.equal(upright.rot90(-1).roll(1, 1), turned)


def test_factors_and_rows_are_inverse(full):
    rows = full.subset(200, seed=3)
    assert torch.equal(full.rows(full.factors(rows)), rows)
    assert full.factors(torch.tensor([0, 1, 32, 737_279])).tolist() == [
        [0, 0, 0, 0, 0],
        [0, 0, 0, 0, 1],
        [0, 0, 0, 1, 0],
        [2, 5, 39, 31, 31],
    ]


def test_subsets(full):
    rows = full.subset(1000)
    assert len(rows.unique()) == 1000
    assert torch.equal(full.subset(10), rows[:10])
    assert not torch.equal(full.subset(10, seed=1), rows[:10])


def test_minibatches_are_made_of_rows():
    data, rows = Sprites(16), torch.arange(40)
    batches = Batches(rows, rows, batch_size=16, transform=Render(data), shuffle=False)
    parts = list(batches.epoch(0))
    assert [len(x) for x, _ in parts] == [16, 16, 8]
    assert torch.equal(torch.cat([x for x, _ in parts]), data.images(rows))
    assert torch.equal(torch.cat([y for _, y in parts]), rows)
    half = StoredFactors(torch.full((6, 1, 4, 4), 128, dtype=torch.uint8), {"x": 6})
    ((drawn,),) = Batches(half.subset(6), batch_size=6, transform=Render(half, Binarize())).epoch(0)
    assert drawn.unique().tolist() == [0.0, 1.0]


def test_training_on_rows_resumes(tmp_path):
    data = StoredFactors(torch.arange(48, dtype=torch.uint8).reshape(8, 1, 2, 3) % 2, {"x": 8}, levels=2)

    class Flat(Render):
        def __call__(self, generator, *batch):
            return (super().__call__(generator, *batch)[0].flatten(1),)

    def train(out, epochs, **options):
        batches = Batches(data.subset(8), batch_size=4, transform=Flat(data))
        return ppvae.fit(small_vae(), batches, epochs=epochs, out=out, progress=False, **options)

    whole = train(tmp_path / "whole", 3)
    train(tmp_path / "parts", 1)
    assert train(tmp_path / "parts", 3, resume=True).history == whole.history


def test_a_part_of_them_is_a_data_set_like_others():
    data = load("sprites")
    assert data.event_shape == (1, 32, 32)
    assert [len(split.y) for split in (data.train, data.valid, data.test)] == [19_000, 1000, 2000]
    sprites = load_factors("sprites")
    rows = sprites.subset(2000)
    assert torch.equal(data.test.x, sprites.images(rows))
    assert torch.equal(data.test.y, sprites.factors(rows)[:, 0])


# Files.


def combinations(*sizes):
    return np.stack([axis.flatten() for axis in np.meshgrid(*map(np.arange, sizes), indexing="ij")], 1)


def write_dsprites(folder, classes=None):
    """A small file in the layout of dSprites, its metadata a pickle as there."""
    classes = combinations(1, 3, 2, 4, 2, 2) if classes is None else classes
    images = np.random.default_rng(0).integers(2, size=(len(classes), 8, 8), dtype=np.uint8)
    metadata = np.array({"title": "a pickle"}, dtype=object)
    np.savez_compressed(folder / DSPRITES, imgs=images, latents_classes=classes, metadata=metadata)
    return images


def test_dsprites_are_read_and_their_pickle_is_not(tmp_path):
    images = write_dsprites(tmp_path)
    data = load_factors("dsprites", tmp_path)
    assert data.sizes == (3, 2, 4, 2, 2)
    assert torch.equal(data.images(torch.arange(96)), torch.from_numpy(images).float()[:, None])
    assert data.factors(torch.tensor([95])).tolist() == [[2, 1, 3, 1, 1]]


def test_3dshapes_are_read(tmp_path):
    h5py = pytest.importorskip("h5py")
    labels = combinations(2, 2, 2, 2, 2, 2) * 0.1
    images = np.random.default_rng(0).integers(256, size=(64, 4, 6, 3), dtype=np.uint8)
    with h5py.File(tmp_path / SHAPES3D, "w") as file:
        file["labels"], file["images"] = labels, images
    data = load_factors("3dshapes", tmp_path)
    assert (data.names, data.sizes, data.event_shape) == (SHAPES3D_FACTORS, (2,) * 6, (3, 4, 6))
    torch.testing.assert_close(data.images(torch.tensor([5]))[0], torch.from_numpy(images[5]).movedim(-1, 0) / 255)


def test_3dshapes_without_h5py(tmp_path, monkeypatch):
    (tmp_path / SHAPES3D).write_bytes(b"anything")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ValueError, match="h5py, which reads 3dshapes, is not installed: pip install h5py"):
        load_factors("3dshapes", tmp_path)


@pytest.mark.parametrize("name", ["dsprites", "3dshapes"])
def test_files_that_are_missing_or_damaged_are_named(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"{name}: there is no .*; it is to be had from https://github.com/"):
        load(name, tmp_path)
    file = tmp_path / {"dsprites": DSPRITES, "3dshapes": SHAPES3D}[name]
    file.write_bytes(b"no such thing")
    with pytest.raises(ValueError, match=rf"{file.name} is no file of "):
        load_factors(name, tmp_path)


def test_images_in_another_order_are_refused(tmp_path):
    write_dsprites(tmp_path, combinations(1, 3, 2, 4, 2, 2)[::-1])
    with pytest.raises(ValueError, match="the images are not in the order of all combinations of their factors"):
        load_factors("dsprites", tmp_path)
    write_dsprites(tmp_path, combinations(1, 3, 2, 4, 2, 2)[:-1])
    with pytest.raises(ValueError, match="not in the order of all combinations"):
        load_factors("dsprites", tmp_path)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda data: Sprites(15), ValueError, "size must be a whole number >= 16, got 15"),
        (lambda data: Sprites(17), ValueError, "size must be even, got 17"),
        (lambda data: Sprites(16, num_positions=3), ValueError, "num_positions must divide size / 2 = 8, got 3"),
        (lambda data: Sprites(16, num_scales=0), ValueError, "num_scales must be a whole number >= 1, got 0"),
        (lambda data: data.subset(7), ValueError, "num must be at most the 6 images that there are, got 7"),
        (lambda data: data.images(torch.tensor([6])), ValueError, "rows must be from 0 to 5, got 6 to 6"),
        (lambda data: data.images(torch.tensor([-1])), ValueError, "rows must be from 0 to 5, got -1 to -1"),
        (lambda data: data.factors(torch.tensor([0.5])), TypeError, "rows must be integers, got torch.float32"),
        (lambda data: data.factors(torch.zeros(2, 1).long()), ValueError, r"rows must have shape \(n,\), got \(2, 1\)"),
        (lambda data: data.rows(torch.tensor([[0, 3]])), ValueError, r"factors must be at least 0 and below \(2, 3\)"),
        (lambda data: data.rows(torch.tensor([0, 1])), ValueError, r"factors must be integers of shape \(n, 2\)"),
        (lambda data: StoredFactors(data.pixels.float(), {"x": 6}), TypeError, "pixels must be uint8, got torch.float"),
        (lambda data: StoredFactors(data.pixels, {"x": 7}), ValueError, r"pixels must have shape \(7, c, h, w\)"),
        (lambda data: load_factors("shapes"), ValueError, "name must be one of sprites, sprites64, dsprites, 3dshapes"),
        (lambda data: Batches(torch.tensor([9]), batch_size=1, transform=Render(data)), ValueError, "rows must be "),
    ],
)
def test_wrong_arguments_are_named(call, kind, message):
    data = StoredFactors(torch.zeros(6, 1, 4, 4, dtype=torch.uint8), {"x": 2, "y": 3})
    with pytest.raises(kind, match=message):
        call(data)

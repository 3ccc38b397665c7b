"""A folder of pictures: every file is read as it looks, split once, and what is damaged or unclear is named."""

from importlib import import_module

import numpy as np
import pytest
import torch
from PIL import Image

from ppvae.data import load


def picture(rng, size=(6, 4), mode="RGB"):
    channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    return Image.fromarray(rng.integers(256, size=(*size, *channels), dtype=np.uint8), mode)


def write(folder, names, **options):
    rng = np.random.default_rng(0)
    images = {}
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        images[name] = picture(rng, **options)
        images[name].save(path)
    return images


def levels(image):
    array = np.asarray(image)
    return torch.from_numpy(array.copy()).reshape(*array.shape[:2], -1).permute(2, 0, 1)


def all_of(data):
    return [(x, int(y)) for split in (data.train, data.valid, data.test) for x, y in zip(*split, strict=True)]


def test_class_folders_give_labels_and_every_pixel(tmp_path):
    images = write(tmp_path, [f"{'cat' if i % 2 else 'dog'}/{i}.png" for i in range(30)])
    data = load("folder", tmp_path)
    assert (data.num_classes, data.levels, data.event_shape) == (2, 256, torch.Size([3, 6, 4]))
    assert [len(split.y) for split in (data.train, data.valid, data.test)] == [25, 2, 3]
    known = {tuple((levels(image)).flatten().tolist()): name.startswith("dog") for name, image in images.items()}
    found = {tuple((x * 255).round().to(torch.uint8).flatten().tolist()): bool(y) for x, y in all_of(data)}
    assert found == known
    again = load("folder", tmp_path)
    assert torch.equal(data.train.x, again.train.x)
    assert torch.equal(data.test.x, again.test.x)


def test_train_and_test_folders_stay_apart(tmp_path):
    write(tmp_path, [*(f"train/a/{i}.png" for i in range(10)), *(f"train/b/{i}.png" for i in range(10))])
    images = write(tmp_path, ["test/b/0.png", "test/c/1.PNG"])
    data = load("folder", tmp_path, num_valid=4)
    assert [len(split.y) for split in (data.train, data.valid, data.test)] == [16, 4, 2]
    assert data.test.y.tolist() == [1, 2]
    assert torch.equal((data.test.x[0] * 255).round().to(torch.uint8), levels(images["test/b/0.png"]))


def test_a_flat_folder_has_one_class_and_hidden_files_are_left_out(tmp_path):
    write(tmp_path, [f"{i}.png" for i in range(5)])
    (tmp_path / "._0.png").write_bytes(b"resource fork")
    (tmp_path / "notes.txt").write_text("no picture")
    data = load("folder", tmp_path)
    assert data.num_classes == 1
    assert len(all_of(data)) == 5


def test_grey_pictures_stay_grey_and_colours_can_be_dropped(tmp_path):
    write(tmp_path / "grey", [f"{i}.png" for i in range(4)], mode="L")
    write(tmp_path / "colour", [f"{i}.png" for i in range(4)])
    write(tmp_path / "both", ["0.png", "1.png"], mode="L")
    write(tmp_path / "both", ["2.png", "3.png"])
    shapes = {name: load("folder", tmp_path / name).event_shape[0] for name in ("grey", "colour", "both")}
    assert shapes == {"grey": 1, "colour": 3, "both": 3}
    assert load("folder", tmp_path / "colour", grey=True).event_shape == (1, 6, 4)
    assert load("folder", tmp_path / "grey", grey=False).event_shape == (3, 6, 4)


def test_sizes_are_brought_to_one_around_the_centre(tmp_path):
    for i, (height, width) in enumerate([(40, 20), (20, 40), (30, 30)]):
        array = np.zeros((height, width), np.uint8)
        array[height // 2 - 5 : height // 2 + 5, width // 2 - 5 : width // 2 + 5] = 200
        Image.fromarray(array).save(tmp_path / f"{i}.png")
    data = load("folder", tmp_path, size=10, num_valid=0)
    assert data.event_shape == (1, 10, 10)
    assert all(float(x[0, 5, 5]) > 0.7 for x, _ in all_of(data))
    assert load("folder", tmp_path, size=(8, 12)).event_shape == (1, 8, 12)
    with pytest.raises(ValueError, match=r"size: the pictures are of 3 sizes, .*\.png \d\dx\d\d; size=64 scales"):
        load("folder", tmp_path)


@pytest.mark.parametrize("rotation", [3, 6, 8])
def test_a_camera_that_was_turned_is_turned_back(tmp_path, rotation):
    array = np.zeros((8, 8), np.uint8)
    array[:4, :4] = 255
    back = {3: 180, 6: 90, 8: 270}[rotation]
    exif = Image.Exif()
    exif[0x0112] = rotation
    for i in range(3):
        Image.fromarray(array).rotate(back).save(tmp_path / f"{i}.png", exif=exif)
    x = load("folder", tmp_path).test.x[0, 0]
    assert torch.equal((x * 255).to(torch.uint8), torch.from_numpy(array))


def test_sixteen_bits_and_transparency_are_what_a_viewer_shows(tmp_path):
    ramp = np.linspace(0, 65535, 16).astype(np.uint16).reshape(4, 4)
    for i in range(3):
        Image.fromarray(ramp).save(tmp_path / f"{i}.png")
    x = load("folder", tmp_path).test.x[0, 0]
    assert float((x.double() - torch.from_numpy(ramp / 65535)).abs().max()) < 1 / 255
    clear = tmp_path / "clear"
    clear.mkdir()
    for i in range(3):
        Image.new("RGBA", (4, 4), (9, 9, 9, 0)).save(clear / f"{i}.png")
    assert load("folder", clear).test.x.unique().tolist() == [1.0]


def test_jpegs(tmp_path):
    for i in range(3):
        Image.new("RGB", (16, 16), (200, 10, 60)).save(tmp_path / f"{i}.jpg", quality=95)
    x = load("folder", tmp_path).test.x[0]
    assert (x.mean((1, 2)) * 255).sub(torch.tensor([200.0, 10.0, 60.0])).abs().max() < 4


def test_what_is_missing_or_damaged_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"root: there is no folder .*gone"):
        load("folder", tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match=r"root: .* has no \.png, \.jpg, \.jpeg files"):
        load("folder", tmp_path)
    write(tmp_path, [f"{i}.png" for i in range(4)])
    whole = (tmp_path / "2.png").read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"text"):
        (tmp_path / "2.png").write_bytes(content)
        with pytest.raises(ValueError, match=r"root: .*2\.png is damaged, or no picture"):
            load("folder", tmp_path)


def test_options_are_checked(tmp_path):
    write(tmp_path, [f"{i}.png" for i in range(4)])
    with pytest.raises(ValueError, match="size must be a whole number >= 1, got 0"):
        load("folder", tmp_path, size=0)
    with pytest.raises(TypeError, match="grey must be True or False, got 'no'"):
        load("folder", tmp_path, grey="no")
    with pytest.raises(ValueError, match="size and grey go with name='folder', got 'digits'"):
        load("digits", size=8)


@pytest.mark.parametrize("example", ["vae", "hierarchical"])
def test_an_example_trains_on_one_with_few_test_pictures(tmp_path, monkeypatch, capsys, example):
    main = import_module(f"ppvae.examples.{example}").main
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "pictures", [f"{c}/{i}.png" for c in "ab" for i in range(15)], size=(9, 8), mode="L")
    flags = ["--dataset", "folder", "--data-root", "pictures", "--likelihood", "gaussian", "--smoke", "--out", "run"]
    assert main([*flags, "--image-size", "8"]) == 0
    assert main(["--image-size", "8"]) == 2
    assert "--image-size goes with --dataset folder" in capsys.readouterr().err

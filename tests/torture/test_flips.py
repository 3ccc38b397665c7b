"""A flipped bit or a file cut short, anywhere in a run folder: an error that names the file, or nothing changes."""

import random
import shutil

import pytest

from ppvae.storage import read_json, write_json
from tests.infer.pairs import same
from tests.torture.runs import result, train

FLIPS, CUTS = 500, 100


def damaged(folder, chance, *, cut):
    """Damages one file of a folder; gives it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    path = chance.choice(files)
    content = bytearray(path.read_bytes())
    if cut:
        content = content[: chance.randrange(len(content))]
    else:
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)
    return path


def check(tmp_path, flips, cuts, seed=0):
    whole = tmp_path / "whole"
    train("validated", whole)
    write_json(whole / "metrics.json", {"test": {"elbo": -1.25}})
    shutil.copytree(whole, tmp_path / "reference")
    expected = (*result("validated", tmp_path / "reference"), read_json(whole / "metrics.json"))
    chance, noticed = random.Random(seed), 0
    for i in range(flips + cuts):
        copy = tmp_path / "copy"
        shutil.copytree(whole, copy)
        path = damaged(copy, chance, cut=i >= flips)
        said, found = "", None
        try:
            found = (*result("validated", copy), read_json(copy / "metrics.json"))
        except (ValueError, OSError) as error:
            noticed, said = noticed + 1, str(error)
        assert path.name in said or same(found, expected), (path, said)
        shutil.rmtree(copy)
    return noticed


def test_some_damage_is_noticed(tmp_path):
    assert check(tmp_path, 12, 6) > 9


@pytest.mark.torture
def test_all_damage_is_noticed_or_harmless(tmp_path):
    noticed = check(tmp_path, FLIPS, CUTS, seed=1)
    print(f"{noticed} of {FLIPS + CUTS} damaged files noticed")
    assert noticed > 0.8 * (FLIPS + CUTS)

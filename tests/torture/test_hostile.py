"""Forged checkpoints, weights and configs, all with digests that are right: refused by the file's name, or harmless."""

import copy
import json
import shutil

import pytest
import torch
from torch import Tensor

from ppvae.cli import evaluate
from ppvae.examples import vae
from ppvae.infer import RunFolder
from ppvae.storage import DIGEST, load_state, save_state
from tests.infer.pairs import same
from tests.torture.runs import result, train

WRONG = [None, True, -1, 7, 2**70, 1.5, float("nan"), float("-inf"), "x", "", [], [1], {}, {"a": 1}, (1, 2)]
WRONG += [torch.tensor(0.5), torch.zeros(3), torch.zeros(2, 3, 4), torch.zeros(3, dtype=torch.uint8), torch.zeros(0)]


def places(tree, path=()):
    """Every place of nested state that holds something."""
    yield path
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list | tuple) else ()
    for key, value in items:
        yield from places(value, (*path, key))


def forged(tree, path, value):
    """The state with another value at a place; tuples become lists."""
    if not path:
        return value
    tree = list(tree) if isinstance(tree, tuple) else copy.copy(tree)
    tree[path[0]] = forged(tree[path[0]], path[1:], value)
    return tree


def without(tree, path):
    """The state without a place."""
    tree = list(tree) if isinstance(tree, tuple) else copy.copy(tree)
    if len(path) == 1:
        del tree[path[0]]
    else:
        tree[path[0]] = without(tree[path[0]], path[1:])
    return tree


def forgeries(tree, share):
    """Every place left out, and with some wrong values; tensors also of other shapes and dtypes."""
    for i, path in enumerate(place for place in places(tree) if place):
        yield path, without(tree, path)
        old = tree
        for key in path:
            old = old[key]
        values = [WRONG[(7 * i + j) % len(WRONG)] for j in range(share)]
        if isinstance(old, Tensor):
            values += [old.double(), old[..., None], old.flatten()[:1]]
        elif isinstance(old, dict) and old:
            values.append({**old, "more": 1})
        for value in values:
            yield path, forged(tree, path, value)


def equal(a, b):
    """Whether a forgery changed nothing."""
    try:
        return same(a, b)
    except (TypeError, AttributeError, RuntimeError, OverflowError):
        return False


def check_checkpoints(tmp_path, share, every):
    """What is of the right kind may be another number: whoever forges it has signed it."""
    whole = tmp_path / "whole"
    train("validated", whole)
    state = load_state(RunFolder(whole).last)
    refused, tried = 0, 0
    for i, (path, forgery) in enumerate(forgeries(state, share)):
        if i % every or equal(forgery, state):
            continue
        tried += 1
        folder = tmp_path / "copy"
        shutil.copytree(whole, folder)
        save_state(RunFolder(folder).last, forgery)
        said, may_differ = "", path[0] in ("progress", "rng") or path[:2] == ("optimizer", "param_groups")
        may_differ = may_differ or (path[:2] == ("optimizer", "state") and len(path) == 3)  # one without a gradient
        try:
            result("validated", folder)
        except (ValueError, OSError) as error:
            refused, said = refused + 1, str(error)
        assert str(folder) in said if said else may_differ, (path, said)
        shutil.rmtree(folder)
    print(f"{refused} of {tried} forged checkpoints refused")
    return refused


def test_some_forged_checkpoints(tmp_path):
    assert check_checkpoints(tmp_path, 1, 12) > 8


@pytest.mark.torture
def test_forged_checkpoints(tmp_path):
    assert check_checkpoints(tmp_path, 3, 1) > 250


SIZES = [-1, 0, 1.5, "16", None, [8], 10**12, True]


def configs(config):
    """Configs of wrong kinds: as a whole, the experiment, every flag."""
    for value in ([], None, "x", 3, [config], {}, {"experiment": 1}):
        yield value
    experiment = config["experiment"]
    for module in (
        3,
        None,
        "",
        "os",
        "ppvae.examples",
        "ppvae.examples.nope",
        "ppvae.examples.figures",
        "ppvae.cli",
        [],
    ):
        yield {**config, "experiment": {**experiment, "module": module}}
    for args in (None, [], "x", 5, {"latent_dim": {}}):
        yield {**config, "experiment": {**experiment, "args": args}}
    yield {**config, "experiment": {"module": experiment["module"]}}
    for name, value in experiment["args"].items():
        for wrong in (*SIZES, [10**12], {"a": 1}):
            if wrong != value or type(wrong) is not type(value):
                yield {**config, "experiment": {**experiment, "args": {**experiment["args"], name: wrong}}}


def check_configs(tmp_path, capsys, every):
    out = tmp_path / "run"
    flags = ["--epochs", "1", "--seed", "0", "--num-samples", "5", "--num-eval", "10", "--out", str(out)]
    assert vae.main(flags) == 0
    config = RunFolder(out).read_config()
    command = [str(out), "--num-samples", "3", "--limit", "5", "--json"]
    capsys.readouterr()
    evaluate.main(command)
    expected = json.loads(capsys.readouterr().out)
    before = {path for path in tmp_path.rglob("*")}
    refused, tried = 0, 0
    for i, wrong in enumerate(configs(config)):
        if i % every:
            continue
        tried += 1
        content = {k: v for k, v in wrong.items() if k != DIGEST} if isinstance(wrong, dict) else wrong
        (out / "config.json").write_text(json.dumps(content))
        status = evaluate.main(command)
        printed = capsys.readouterr()
        if status == 0:
            assert json.loads(printed.out) == expected, wrong
        else:
            refused += 1
            assert status == 2
            assert printed.err.startswith("error: "), printed.err
            assert len(printed.err.splitlines()) == 1, printed.err
    assert {path for path in tmp_path.rglob("*")} == before
    return refused, tried


def test_some_forged_configs(tmp_path, capsys):
    refused, tried = check_configs(tmp_path, capsys, 20)
    assert refused > 0.2 * tried


@pytest.mark.torture
def test_forged_configs(tmp_path, capsys):
    refused, tried = check_configs(tmp_path, capsys, 1)
    print(f"{refused} of {tried} forged configs refused")
    assert tried > 170
    assert refused > 0.2 * tried

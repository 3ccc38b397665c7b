"""A run is resumed as what it was: its data, minibatches, pair, schedules and versions, each named where it differs."""

import os
import subprocess
import sys
from functools import partial

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import ppvae
from ppvae.data import Batches, JointBatches
from ppvae.infer import RunFolder
from ppvae.infer.run_config import describe
from ppvae.storage import write_json
from tests.infer.pairs import binary, small_vae

X = binary(40)
GLOBAL = 2.0


def fit(out, pair=None, data=X, valid=None, *, epochs=1, resume=False, **options):
    options = {"batch_size": 16, "lr": 0.01, **options}
    pair = pair or small_vae()
    return ppvae.fit(pair, data, valid, epochs=epochs, out=out, resume=resume, progress=False, **options)


def batches(x=X, **options):
    return Batches(x, **{"batch_size": 16, **options})


def loader(x=X, **options):
    return DataLoader(TensorDataset(x), **{"batch_size": 16, "shuffle": True, **options})


def changed(x, row):
    x = x.clone()
    x[row] = 1 - x[row]
    return x


def ramp(rate):
    return lambda time: rate * (1 + time)


def negated(generator, x):
    return (1 - x,)


DATA = {
    "one row": (X, changed(X, 17), "train_data.sha256"),
    "seed": (batches(), batches(seed=9), "train_data.seed was 0, is 9"),
    "shuffle": (batches(), batches(shuffle=False), "train_data.shuffle was True, is False"),
    "drop_last": (batches(), batches(drop_last=True), "train_data.drop_last"),
    "transform": (batches(), batches(transform=negated), "train_data.transform was None, is 'negated#"),
    "loader": (loader(shuffle=False), loader(changed(X, 3), shuffle=False), "train_data.sha256"),
    "loader's length": (loader(), loader(torch.cat([X, X])), "train_data.num_batches was 3, is 5"),
    "loader's sampler": (loader(), loader(shuffle=False), "train_data.sampler was 'RandomSampler'"),
    "loader's last": (loader(), loader(drop_last=True), "train_data.drop_last"),
    "kind": (loader(), batches(), "train_data.kind was 'IterableSource', is 'Batches'"),
    "one of two sets": (
        JointBatches(batches(), batches(X[:20])),
        JointBatches(batches(), batches(changed(X[:20], 1))),
        r"train_data.sets\[1\].sha256",
    ),
}


@pytest.mark.parametrize("kind", DATA)
def test_other_data_or_minibatches_are_named(tmp_path, kind):
    first, second, said = DATA[kind]
    fit(tmp_path / "run", data=first)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=said):
        fit(tmp_path / "run", data=second, epochs=2, resume=True)
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    fit(tmp_path / "run", data=first, epochs=2, resume=True)


SETTINGS = {
    "lr": (ramp(0.01), ramp(0.02)),
    "kl_weight": (lambda t: 1.0, lambda t: 0.5),
    "optim": (partial(torch.optim.Adam, eps=1e-8), partial(torch.optim.Adam, eps=1e-4)),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_other_functions_are_named(tmp_path, name):
    first, second = SETTINGS[name]
    fit(tmp_path / "run", **{name: first})
    with pytest.raises(ValueError, match=f"{name} was '"):
        fit(tmp_path / "run", epochs=2, resume=True, **{name: second})
    fit(tmp_path / "run", epochs=2, resume=True, **{name: first})


def test_a_function_is_known_by_what_it_computes():
    closed, scale = 3, torch.tensor(1.5)
    same = [describe(lambda t: closed * t) for _ in range(2)]
    assert same[0] == same[1]
    closed = 4
    assert describe(lambda t: closed * t) != same[0]
    others = [lambda t, a=1: t, lambda t, a=2: t, lambda t: GLOBAL * t, lambda t: scale * t, lambda t: [t for _ in "a"]]
    texts = [describe(function) for function in others]
    scale = torch.tensor(1.25)
    texts.append(describe(others[3]))
    assert len(set(texts)) == len(texts)
    assert describe([1, {"a": ramp(1.0)}]) == describe([1, {"a": ramp(1.0)}]) != describe([1, {"a": ramp(2.0)}])


def texts():
    return f"{describe(ramp(0.5))} {describe(lambda t: t in {'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h'})}"


def test_texts_are_those_of_other_processes():
    """Sets have another order there."""
    done = subprocess.run(
        [sys.executable, "-c", f"from {__name__} import texts; print(texts())"],
        env={**os.environ, "PYTHONPATH": os.getcwd(), "PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == texts()


def test_another_pair_is_named(tmp_path):
    fit(tmp_path / "run")
    for pair, said in (
        (small_vae(beta=4.0), "pair.constants.beta was 1.0, is 4.0"),
        (small_vae(dropout=0.5), "pair.modules was .*Linear.*, is .*Dropout"),
    ):
        with pytest.raises(ValueError, match=said):
            fit(tmp_path / "run", pair, epochs=2, resume=True)


def test_other_validation_data_and_versions_are_named(tmp_path):
    fit(tmp_path / "run", valid=X[:10])
    with pytest.raises(ValueError, match=r"valid_data\.sha256"):
        fit(tmp_path / "run", valid=changed(X[:10], 2), epochs=2, resume=True)
    folder = RunFolder(tmp_path / "run")
    write_json(folder.config, {**folder.read_config(), "torch": "1.0"})
    with pytest.raises(ValueError, match=r"torch was '1\.0', is '"):
        fit(tmp_path / "run", valid=X[:10], epochs=2, resume=True)


def test_data_that_are_other_every_time_are_not_compared(tmp_path):
    class New:
        def __iter__(self):
            state = torch.random.initial_seed() + id(self)
            New.count = getattr(New, "count", state) + 1
            return iter([binary(16, seed=New.count % 2**31)])

    fit(tmp_path / "run", data=New())
    assert RunFolder(tmp_path / "run").read_config()["fit"]["train_data"]["sha256"] is None
    fit(tmp_path / "run", data=New(), epochs=2, resume=True)


def test_a_run_that_has_lost_its_checkpoint_is_not_started_anew(tmp_path):
    fit(tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    folder.last.rename(tmp_path / "away")
    with pytest.raises(FileNotFoundError, match=r"history\.csv, but .*last\.safetensors is missing"):
        fit(tmp_path / "run", epochs=2, resume=True)
    (tmp_path / "away").rename(folder.last)
    folder.config.unlink()
    with pytest.raises(FileNotFoundError, match=r"has a checkpoint and no config\.json"):
        fit(tmp_path / "run", epochs=2, resume=True)
    with pytest.raises(FileExistsError, match="holds a run already"):
        fit(tmp_path / "run", epochs=2)


def test_two_writers(tmp_path):
    """The second is told who the first is; a lock that a killed process held is free."""

    def second(row, pair, epoch):
        said = rf"is being written by process {os.getpid()} on "
        with torch.enable_grad(), pytest.raises(RuntimeError, match=said):
            fit(tmp_path / "run", epochs=3, resume=True)

    fit(tmp_path / "run", epochs=2, callbacks=[second])
    (tmp_path / "run" / ".holder").write_text("process 1 on another machine")
    assert len(fit(tmp_path / "run", epochs=3, resume=True).history) == 3
    assert not (tmp_path / "run" / ".holder").exists()


def test_the_model_is_never_older_than_the_checkpoint(tmp_path):
    for valid in (None, X[:10]):
        out = tmp_path / str(valid is None)
        fit(out, valid=valid)

        class Killed(Exception):
            pass

        def kill(row, pair, epoch, valid=valid, out=out):
            folder = RunFolder(out)
            state = folder.read_checkpoint()
            best = state["progress"]["best_epoch"]
            if valid is None or best == epoch:
                weights = ppvae.load(small_vae(), out).state_dict()
                assert all(torch.equal(weights[name], value) for name, value in state["model"].items())
            if epoch == 3:
                raise Killed

        with pytest.raises(Killed):
            fit(out, valid=valid, epochs=5, resume=True, callbacks=[kill])


def test_a_function_that_no_module_holds_is_described_too():
    names = {}
    exec("def f(x):\n    return x", names)
    assert names["f"].__module__ is None
    assert describe(names["f"]).startswith("f#")

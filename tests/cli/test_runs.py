"""Run folders opened again: of examples, and of one's own by a recipe or with a pair."""

import json

import pytest
import torch

import ppvae
from ppvae.evaluate.__main__ import main as evaluate
from ppvae.infer import Recipe, RunFolder
from ppvae.models import PPCA
from ppvae.storage import write_json

D = 6
CALLS = []


def make():
    CALLS.append("pair")
    return PPCA(D, 2, guide="amortized")


def load_test():
    CALLS.append("data")
    return torch.randn(8, D, generator=torch.Generator().manual_seed(1))


def load_arrays():
    return (load_test().numpy(),)


def no_data():
    return "mnist"


@pytest.fixture
def trained(tmp_path):
    def fit(**options):
        pair = make()
        x = torch.randn(20, D, generator=torch.Generator().manual_seed(0))
        ppvae.fit(pair, x, epochs=2, batch_size=10, out=tmp_path / "run", progress=False, **options)
        CALLS.clear()
        return tmp_path / "run", pair.eval()

    return fit


@pytest.mark.parametrize("data", [load_test, load_arrays])
def test_a_run_of_ones_own_by_its_recipe(trained, data):
    folder, pair = trained(recipe=Recipe(make, data))
    opened = ppvae.open_run(folder, trust=True)
    assert torch.equal(ppvae.elbo(opened.pair, *opened.data).values, ppvae.elbo(pair, load_test()).values)
    assert not opened.pair.training
    assert [row["epoch"] for row in opened.history] == [1.0, 2.0]
    assert opened.metrics == {}


def test_nothing_is_called_without_ones_word(trained):
    folder, _ = trained(recipe=Recipe(make, load_test))
    with pytest.raises(ValueError, match=r"config.json names functions that build the pair, .*:make.* on your"):
        ppvae.open_run(folder)
    assert CALLS == []


def test_with_a_pair_no_recipe_is_needed_nor_called(trained):
    folder, pair = trained()
    opened = ppvae.open_run(folder, pair=PPCA(D, 2, guide="amortized"))
    assert all(torch.equal(a, b) for a, b in zip(opened.pair.parameters(), pair.parameters(), strict=True))
    assert opened.data == ()
    assert CALLS == []
    with pytest.raises(ValueError, match="does not fit this pair"):
        ppvae.open_run(folder, pair=PPCA(D, 3, guide="amortized"))


def test_a_run_without_one_says_what_to_do(trained):
    folder, _ = trained()
    with pytest.raises(ValueError, match=r"neither by an example nor with fit\(recipe=...\).*pair=pair"):
        ppvae.open_run(folder, trust=True)


def test_the_command_evaluates_it(trained, capsys):
    folder, pair = trained(recipe=Recipe(make, load_test))
    assert evaluate([str(folder), "--num-samples", "20"]) == 2
    assert "on your word alone" in capsys.readouterr().err
    assert evaluate([str(folder), "--num-samples", "20", "--trust", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)["runs"][str(folder)]
    expected = ppvae.log_marginal(pair, load_test(), num_samples=20).values.mean()
    assert figures["test"]["log_marginal"]["mean"] == pytest.approx(float(expected))
    assert evaluate([str(folder), "--trust", "--by-class"]) == 2
    assert "--by-class needs the classes" in capsys.readouterr().err


def test_the_command_needs_data(trained, capsys):
    folder, _ = trained(recipe=Recipe(make))
    assert evaluate([str(folder), "--trust"]) == 2
    assert "its recipe has no data" in capsys.readouterr().err


def test_data_that_are_none_are_named(trained):
    folder, _ = trained(recipe=Recipe(make, no_data))
    with pytest.raises(TypeError, match=r"the recipe's data\(\)\[0\] must be a tensor .* got str"):
        ppvae.open_run(folder, trust=True)


def test_a_forged_recipe_is_named(trained):
    folder, _ = trained(recipe=Recipe(make))
    run = RunFolder(folder)
    write_json(run.config, {**run.read_config(), "recipe": {"pair": {"function": "os"}}})
    with pytest.raises(ValueError, match=r"config.json: recipe: pair must have a 'function'"):
        ppvae.open_run(folder, trust=True)


def test_a_run_of_an_example(tmp_path):
    from ppvae.examples.vae import main

    out = tmp_path / "vae"
    assert main(["--smoke", "--out", str(out)]) == 0
    pair, data, history, metrics = ppvae.open_run(out)
    assert type(pair).__name__ == "VAE"
    assert data[0].shape[1:] == (1, 8, 8)
    assert len(history) == 1
    assert "test" in metrics

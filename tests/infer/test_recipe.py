"""What a run folder keeps of how its pair is built, and which functions it can keep."""

import runpy
import sys
from functools import partial

import pytest
import torch

import ppvae
from ppvae.infer import Recipe, RunFolder
from ppvae.models import PPCA

D = 6


def make(latent_dim=2, *, amortized=True):
    return PPCA(D, latent_dim, guide="amortized" if amortized else "exact")


def no_pair():
    return 3


class Factory:
    def method(self):
        return make()


def fit(pair, out, **options):
    x = torch.randn(20, D, generator=torch.Generator().manual_seed(0))
    return ppvae.fit(pair, x, epochs=1, batch_size=10, out=out, progress=False, **options)


@pytest.mark.parametrize("function", [make, partial(make), partial(make, latent_dim=3, amortized=True)])
def test_a_recipe_comes_back_from_json(function):
    recipe = Recipe(function)
    again = Recipe.from_json(recipe.to_json())
    assert again.to_json() == recipe.to_json()
    assert [tuple(p.shape) for p in again.build().parameters()] == [tuple(p.shape) for p in function().parameters()]


def test_building_leaves_the_random_state():
    state = torch.get_rng_state()
    Recipe(make).build()
    assert torch.equal(state, torch.get_rng_state())


BAD = {
    "lambda": (lambda: make(), "a function or class that its module knows by name"),
    "method": (Factory().method, "a function or class that its module knows by name"),
    "object": (3, "a function or class that its module knows by name, got 3"),
    "positional": (partial(make, 2), r"a partial of keyword arguments, got \(2,\) by position"),
    "tensor": (partial(make, latent_dim=torch.tensor(2)), "arguments of pair must be what JSON can hold"),
    "tuple": (partial(make, latent_dim=(2,)), "must be what JSON can hold"),
    "nan": (partial(make, latent_dim=float("nan")), "must be what JSON can hold"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_found_again_is_refused(case):
    function, message = BAD[case]
    with pytest.raises(TypeError, match=message):
        Recipe(function)


def test_another_pair_than_the_trained_one_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"recipe: it does not build the pair that is trained: .*shape"):
        fit(make(latent_dim=3), tmp_path / "run", recipe=Recipe(make))
    with pytest.raises(ValueError, match=r"recipe: it does not build the pair .* an nn.Module"):
        fit(make(), tmp_path / "run", recipe=Recipe(no_pair))
    assert not (tmp_path / "run").exists()


def test_a_recipe_needs_a_folder_and_is_one():
    with pytest.raises(ValueError, match="recipe is kept in the run folder: out is None"):
        fit(make(), None, recipe=Recipe(make))
    with pytest.raises(TypeError, match=r"recipe must be a ppvae.infer.Recipe of functions, got function"):
        fit(make(), None, recipe=make)


def test_a_resumed_run_keeps_it(tmp_path):
    fit(make(), tmp_path / "run", recipe=Recipe(make))
    x = torch.randn(20, D, generator=torch.Generator().manual_seed(0))
    again = {"epochs": 2, "batch_size": 10, "out": tmp_path / "run", "resume": True, "progress": False}
    ppvae.fit(make(), x, recipe=Recipe(make), **again)
    assert RunFolder(tmp_path / "run").read_config()["recipe"] == Recipe(make).to_json()


SCRIPT = """
import ppvae
from ppvae.infer import Recipe
from ppvae.models import PPCA

def make():
    return PPCA(6, 2)

if __name__ == "__main__":
    recipe = Recipe(make)
"""


def test_a_script_that_runs_is_known_by_its_file(tmp_path, monkeypatch):
    path = tmp_path / "train.py"
    path.write_text(SCRIPT, encoding="utf-8")
    monkeypatch.setattr(sys, "argv", [str(path)])
    made = {}
    main = sys.modules["__main__"]
    with monkeypatch.context() as patch:  # as `python train.py` has it: a module without a spec
        patch.setattr(main, "__spec__", None)
        patch.setattr(main, "__file__", str(path), raising=False)
        made = runpy.run_path(str(path), run_name="__main__")["recipe"].to_json()
    assert made["pair"] == {"function": f"{path}:make", "arguments": {}}
    assert type(Recipe.from_json(made).build()) is PPCA


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "the recipe must name the functions"),
        ({"pair": None}, "the recipe must name the functions"),
        ({"pair": {"function": "os"}}, "must have a 'function', 'module:name'"),
        ({"pair": {"function": 3}}, "must have a 'function', 'module:name'"),
        ({"pair": {"function": "os:path", "arguments": [1]}}, "must have a 'function'"),
        ({"pair": {"function": "no_such_module_here:make"}}, "which is not found: No module named"),
        ({"pair": {"function": "ppvae.models:NoSuch"}}, "which is not found"),
        ({"pair": {"function": "gone/train.py:make"}}, "which is not found"),
        ({"pair": {"function": "ppvae.models:PPCA"}, "more": 1}, "the recipe must name the functions"),
    ],
)
def test_a_damaged_recipe_is_named(content, message):
    with pytest.raises(ValueError, match=message):
        Recipe.from_json(content)

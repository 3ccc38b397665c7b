"""Runs that go to a hub and come back, against a server of this machine that speaks its endpoints."""

import inspect
import json
import sys
from functools import partial

import pytest
import torch

import ppvae
from ppvae.cli.card import model_card
from ppvae.cli.hub import FILES
from ppvae.cli.main import main
from ppvae.infer import Recipe, Run, RunFolder
from ppvae.models import PPCA

D = 6


def load_test():
    return torch.randn(8, D, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def hub(monkeypatch, tmp_path):
    library = pytest.importorskip("huggingface_hub.constants", reason="pip install 'ppvae[hub]'")
    from tests.cli.hub_server import serving

    with serving() as server:
        monkeypatch.setattr(library, "ENDPOINT", server.url)
        monkeypatch.setattr(
            library, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(library, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", "hf_stand_in")
        yield server


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """A short run of an example, evaluated."""
    folder = tmp_path_factory.mktemp("runs") / "vae"
    flags = ["--smoke", "--latent-dim", "2", "--hidden-dims", "8", "--out", str(folder), "--beta", "0.5"]
    assert main(["train", "vae", *flags]) == 0
    assert main(["evaluate", str(folder), "--num-samples", "100", "--limit", "40"]) == 0
    return folder


@pytest.fixture
def of_ones_own(tmp_path):
    def fit(**options):
        x = torch.randn(20, D, generator=torch.Generator().manual_seed(0))
        return ppvae.fit(PPCA(D, 2), x, epochs=1, out=tmp_path / "mine", progress=False, **options).folder

    return fit


def test_what_is_pushed_comes_back_with_its_likelihood(hub, example):
    url = ppvae.push_to_hub(example, "me/digits", license="apache-2.0")
    assert url.startswith(f"{hub.url}/me/digits/commit/")
    pair, data, history, metrics = ppvae.from_hub("me/digits")
    here = ppvae.open_run(example)
    assert (history, metrics) == (here.history, here.metrics)
    assert all(
        torch.equal(a, b) for a, b in zip(pair.state_dict().values(), here.pair.state_dict().values(), strict=True)
    )
    there, own = (ppvae.log_marginal(p, data[0][:20], num_samples=20).values for p in (pair, here.pair))
    assert torch.equal(there, own)


def test_only_results_leave_the_machine_and_no_paths_of_it(hub, example):
    ppvae.push_to_hub(example, "me/digits")
    files = hub.repositories["me/digits"]
    assert {"README.md", "config.json", "model.safetensors", "history.csv", "metrics.json", "evaluation.json"} <= set(
        files
    )
    assert not [name for name in files if name.startswith(("checkpoints", "evaluation.safetensors", "."))]
    assert "figures/samples.png" in files
    assert not [name for name, content in files.items() if str(example.parent).encode() in content]
    assert {"model.safetensors", "config.json"} <= set(FILES)


def test_what_fit_returns_pushes_its_folder(hub, tmp_path):
    x = torch.randn(20, D, generator=torch.Generator().manual_seed(0))
    run, free = (ppvae.fit(PPCA(D, 2), x, epochs=1, out=out, progress=False) for out in (tmp_path / "mine", None))
    url = run.push_to_hub("me/run", license="mit", tags=["small"], private=True, message="As it came")
    assert url.startswith(f"{hub.url}/me/run/commit/")
    assert "me/run" in hub.private
    card = hub.repositories["me/run"]["README.md"].decode()
    assert 'license: "mit"' in card
    assert "small" in card
    with pytest.raises(ValueError, match="lies in none"):
        free.push_to_hub("me/free")


def test_method_and_function_take_the_same_options():
    of_run, of_all = (inspect.signature(f).parameters for f in (Run.push_to_hub, ppvae.push_to_hub))
    own = {name: of for name, of in of_run.items() if name != "self"}
    assert own == {name: of for name, of in of_all.items() if name != "folder"}


def test_a_folder_that_is_pulled_is_a_run_folder(hub, example, tmp_path, capsys):
    ppvae.push_to_hub(example, "me/digits")
    ppvae.from_hub("me/digits", folder=tmp_path / "theirs")
    assert main(["evaluate", str(tmp_path / "theirs"), "--num-samples", "100", "--limit", "40", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["runs"][str(tmp_path / "theirs")]
    assert found["test"] == json.loads((example / "evaluation.json").read_text())["test"]
    with pytest.raises(FileExistsError, match="holds a run already"):
        ppvae.from_hub("me/digits", folder=tmp_path / "theirs")


def test_the_card_says_how_good_it_is_and_how_it_was_made(example):
    card = model_card(RunFolder(example), "me/digits", license="mit", tags=["digits"])
    front = card.split("---\n")[1].splitlines()
    assert front[:2] == ['library_name: "ppvae"', 'license: "mit"']
    assert json.loads(front[2].removeprefix("tags: "))[-1] == "digits"
    found = json.loads((example / "evaluation.json").read_text())["test"]
    mean, bad = found["log_marginal"], found["k_hat"]["above_0.7"]
    assert f"log p(x) = {mean['mean']:.3f} ± {mean['std_error']:.3f} nats per datum" in card
    shares = ", ".join(f"{method} sampling for {n}" for method, n in found["methods"].items())
    assert f"over 40 test data; by {shares} (K = 100 at first); k̂" in card
    assert f"k̂ > 0.7 for {bad} of them ({100 * bad / 40:.1f} %)" in card
    flags = "--epochs 1 --num-samples 10 --smoke --binarize dynamic --latent-dim 2 --hidden-dims 8 --beta 0.5"
    assert f"ppvae train vae {flags}\n" in card
    assert "z ~ p(z)                x ~ p(x|z)" in card
    assert f"torch {torch.__version__}" in card
    assert 'ppvae.from_hub("me/digits")' in card


def test_a_run_that_was_not_evaluated_says_so(of_ones_own):
    folder = of_ones_own()
    card = model_card(RunFolder(folder), "me/mine")
    assert "Not evaluated: `ppvae evaluate mine`" in card
    assert 'from_hub("me/mine", pair=pair)' in card


def test_functions_of_a_recipe_are_called_on_ones_word_alone(hub, of_ones_own):
    folder = of_ones_own(recipe=Recipe(partial(PPCA, data_dim=D, latent_dim=2), load_test))
    ppvae.push_to_hub(folder, "me/mine")
    with pytest.raises(ValueError, match="on your word"):
        ppvae.from_hub("me/mine")
    opened = ppvae.from_hub("me/mine", trust=True)
    assert torch.equal(opened.data[0], load_test())
    assert ppvae.from_hub("me/mine", pair=PPCA(D, 2)).data == ()


def test_what_was_changed_on_the_way_is_found(hub, example):
    ppvae.push_to_hub(example, "me/digits")
    files = hub.repositories["me/digits"]
    content = bytearray(files["model.safetensors"])
    content[-1] ^= 1
    files["model.safetensors"] = bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        ppvae.from_hub("me/digits")


def test_a_script_that_a_recipe_names_loses_its_folder(hub, of_ones_own):
    folder = of_ones_own(recipe=Recipe(partial(PPCA, data_dim=D, latent_dim=2)))
    run = RunFolder(folder)
    config = run.read_config()
    config["recipe"]["pair"]["function"] = "/home/somebody/secret/train.py:make"
    run.config.write_text(json.dumps(config))
    ppvae.push_to_hub(folder, "me/mine")
    pushed = hub.repositories["me/mine"]
    assert b"secret" not in pushed["config.json"] + pushed["README.md"]
    assert b'"train.py:make"' in pushed["config.json"]


@pytest.mark.parametrize("name", ["", "a/b/c", "two words", 3])
def test_a_name_that_is_none_is_refused_before_anything_is_sent(hub, example, name):
    with pytest.raises(ValueError, match=r"[Rr]epo"):
        ppvae.push_to_hub(example, name)
    assert hub.requests == []


def test_what_the_hub_refuses_is_an_error_in_one_line(hub, example, monkeypatch, capsys):
    with pytest.raises(OSError, match="me/nothing"):
        ppvae.from_hub("me/nothing")
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    assert main(["share", str(example), "--to", "me/digits"]) == 2
    assert "401" in capsys.readouterr().err
    assert hub.repositories == {}


def test_the_command_shows_first_and_uploads_on_request(example, hub, capsys):
    assert main(["share", str(example)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("---\nlibrary_name")
    assert f"{(example / 'model.safetensors').stat().st_size:>12,}  model.safetensors" in shown
    assert hub.requests == []
    assert main(["share", str(example), "--to", "me/digits", "--private"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == 'to open it: ppvae.from_hub("me/digits")'
    assert hub.private == {"me/digits"}
    assert "\n# digits\n" in hub.repositories["me/digits"]["README.md"].decode()


def test_without_its_library_the_line_that_installs_it_is_said(example, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert main(["share", str(example), "--to", "me/digits"]) == 2
    assert 'pip install "ppvae[hub]"' in capsys.readouterr().err
    with pytest.raises(ImportError, match=r'pip install "ppvae\[hub\]"'):
        ppvae.from_hub("me/digits")

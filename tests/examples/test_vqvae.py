import json

import pytest
import torch

from ppvae.cli.evaluate import main as evaluate
from ppvae.cli.images import load_images
from ppvae.distributions import AutoregressivePrior, CategoricalPrior
from ppvae.examples.vqvae import Args, build, main, other_priors
from ppvae.infer import RunFolder
from ppvae.storage import load_state

SMALL = ["--smoke", "--hidden-dims", "8", "--num-eval", "50"]
FIGURES = {"reconstructions", "samples", "priors", "letters", "training"}


@pytest.mark.usefixtures("figures_drawn_once")
@pytest.mark.parametrize(
    "flags",
    [
        ["--prior-dim", "8"],
        ["--prior", "independent", "--codebook", "gradient", "--cosine", "--likelihood", "categorical"],
        ["--prior", "independent", "--encoder", "conv", "--num-codes", "32", "--num-positions", "5"],
    ],
    ids=" ".join,
)
def test_run_folder_is_complete(flags, tmp_path, capsys):
    out = tmp_path / "run"
    assert main([*SMALL, *flags, "--out", str(out)]) == 0
    assert {path.stem for path in (out / "figures").glob("*.png")} == FIGURES
    metrics = json.loads((out / "metrics.json").read_text())
    measured = {name: value["mean"] for name, value in metrics["measured"].items()}
    prior = "independent" if "independent" in flags else "autoregressive"
    measured[f"{prior} prior, log p(x)"] = metrics["test"]["log_marginal"]["mean"]
    assert ("uniform prior, log p(x), by all words" in measured) == ("--num-codes" not in flags)  # 32^5 are too many
    for name in {"uniform", "independent", prior} if "--num-codes" not in flags else ():
        exact = measured[f"{name} prior, log p(x), by all words"]
        assert measured[f"{name} prior, bound at the nearest codes"] < exact
        assert measured[f"{name} prior, log p(x)"] < exact + 0.1  # a lower bound in expectation, of 10 samples
    codes, last = (load_state(folder / "model.safetensors") for folder in (out / "codes", out))
    kept = [name for name in codes if not name.startswith("p_k") and not name.endswith("temperature")]
    assert kept
    assert all(torch.equal(codes[name], last[name]) for name in kept)
    assert float(last["q_k_given_x.temperature"]) > 0 == float(codes["q_k_given_x.temperature"])
    capsys.readouterr()
    assert evaluate([str(out), "--num-samples", "10", "--limit", "50"]) == 0
    assert f"{metrics['test']['log_marginal']['mean']:.3f}" in capsys.readouterr().out
    assert len(RunFolder(out / "codes").read_history()) == len(RunFolder(out).read_history()) == 1


def test_build_follows_the_flags():
    args = Args(num_codes=5, num_positions=3, latent_dim=2, hidden_dims=(7,), binarize="dynamic")
    data = load_images(args)
    for prior, kind in (("autoregressive", AutoregressivePrior), ("independent", CategoricalPrior)):
        pair = build(Args(**vars(args) | {"prior": prior}), data)
        assert type(pair.p_k) is kind
        assert pair.p_k().event_shape == (3,)
    assert pair.codebook.vectors.shape == (5, 2)
    shares = other_priors(pair, args, data)["independent"]
    codes = pair.codes(data.train[0].round())
    found = torch.stack([codes[:, p].bincount(minlength=5) / len(codes) for p in range(3)])
    torch.testing.assert_close(shares().base_dist.probs.detach(), found, rtol=0, atol=0.1)  # of other binary draws


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num-codes", "0"], "--num-codes must be a whole number >= 1, got 0"),
        (["--codes-epochs", "0"], "--codes-epochs must be a whole number >= 1, got 0"),
        (["--commitment", "-1"], "--commitment must be a finite number >= 0, got -1"),
        (["--prior", "independent", "--prior-dim", "9"], "--prior-dim goes with --prior autoregressive"),
    ],
)
def test_wrong_flags_exit_with_2_and_say_why(flags, message, tmp_path, capsys):
    assert main(["--epochs", "1", *flags, "--out", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err

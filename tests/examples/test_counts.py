"""A run on counts is whole, its spread is that of the data, and files of one's own are checked."""

import json

import pytest
import torch

from ppvae.cli.evaluate import main as evaluate
from ppvae.examples.counts import Args, build, load_counts, main

FAST = ["--smoke", "--hidden-dims", "8", "--latent-dim", "2"]


@pytest.mark.usefixtures("figures_drawn_once")
@pytest.mark.parametrize("dataset", ["cells", "digits"])
def test_run_folder_is_complete_and_opened_again(dataset, tmp_path, capsys):
    out = tmp_path / "run"
    assert main([*FAST, "--dataset", dataset, "--out", str(out)]) == 0
    assert {path.stem for path in (out / "figures").glob("*.png")} == {"spread", "latent", "training"}
    said = capsys.readouterr().out.splitlines()
    assert f"writing to {out}" in said
    assert said[-3].startswith(f"next: ppvae evaluate {out} --posterior")
    assert said[-1].strip().startswith(f"ppvae doctor {out}")
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["symbol"] == "log p(x|size)"
    capsys.readouterr()
    assert evaluate([str(out), "--num-samples", "10"]) == 0
    assert f"{metrics['test']['log_marginal']['mean']:.3f}" in capsys.readouterr().out


@pytest.mark.usefixtures("figures_undrawn")
@pytest.mark.parametrize("likelihood", ["poisson", "zero-inflated"])
def test_other_likelihoods(likelihood, tmp_path):
    assert main([*FAST, "--likelihood", likelihood, "--out", str(tmp_path / "run")]) == 0


def test_a_pair_starts_at_the_mean_of_all_data():
    args = Args().resolved()
    data = load_counts(args)
    torch.manual_seed(0)
    pair = build(args, data)
    x, size = data.train
    z = torch.zeros(len(x), args.latent_dim)
    ratio = pair.decode(z, size).mean.sum().detach() / x.sum()
    assert 0.8 < float(ratio) < 1.25


def test_generated_counts_have_the_spread_that_is_said():
    data = load_counts(Args(num_valid=0).resolved())
    x, size = data.train
    assert len(x) == 1600
    assert float(size.log().mean()) == pytest.approx(6.0, abs=0.1)
    assert bool((x.var(0) > x.mean(0)).all())


@pytest.mark.usefixtures("figures_undrawn")
def test_a_file_of_ones_own(tmp_path, capsys):
    path = tmp_path / "counts.csv"
    x = torch.poisson(torch.full((40, 3), 2.0), generator=torch.Generator().manual_seed(0)).int()
    lines = [",".join(map(str, [*row, i + 1])) for i, row in enumerate(x.tolist())]
    path.write_text("\n".join(["a,b,c,hours", *lines]))
    mine = ["--dataset", "csv", "--data-root", str(path), "--out", str(tmp_path / "run")]
    assert main([*FAST, *mine, "--size-column", "hours"]) == 0
    assert "sizes from 1 to 40" in capsys.readouterr().out
    path.write_text(path.read_text().replace("\n1,", "\n1.5,", 1).replace("\n2,", "\n2.5,", 1))
    assert main([*FAST, *mine[:-1], str(tmp_path / "other")]) == 2
    assert "column 'a' of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--size-column", "hours"], "--size-column goes with --dataset csv, got cells"),
        (["--dataset", "csv"], "--data-root must be a CSV file, and there is none at data"),
        (["--latent-dim", "0"], "--latent-dim must be a whole number >= 1, got 0"),
    ],
)
def test_wrong_flags_exit_with_2_and_say_why(flags, message, tmp_path, capsys):
    assert main(["--smoke", *flags, "--out", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err

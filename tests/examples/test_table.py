"""A run on a table is whole, says what it took the columns for, and is opened again on the same file alone."""

import json

import pandas as pd
import pytest
import torch

from ppvae.cli.evaluate import main as evaluate
from ppvae.cli.tables import load_table
from ppvae.examples.table import Args, build, main, measure
from ppvae.objectives import IWAE

FAST = ["--smoke", "--hidden-dims", "8", "--latent-dim", "2"]


def csv(path, n=60, shift=0.0):
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(n, generator=generator)
    frame = pd.DataFrame(
        {
            "id": [f"row {i}" for i in range(n)],
            "height": (170 + shift + 10 * z).numpy(),
            "kind": [["a", "b", "c"][int(v)] for v in (z + 1.5).clamp(0, 2.9)],
            "income": (z + 8).exp().numpy(),
            "visits": torch.poisson((1 + 0.5 * z).exp(), generator=generator).int().numpy(),
        }
    )
    frame.loc[::7, "height"] = None
    frame.to_csv(path, index=False)
    return path


def test_run_folder_is_complete_and_opened_again(tmp_path, capsys):
    out = tmp_path / "run"
    assert main([*FAST, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "  grape                         categorical class_0, class_1, class_2" in printed
    assert "log p(x) is of the cells that are there, in nats: densities of 11 columns in their own units and" in printed
    assert {path.stem for path in (out / "figures").glob("*.png")} == {"columns", "filled_in", "latent", "training"}
    metrics = json.loads((out / "metrics.json").read_text())
    assert "E log p(grape|z), categorical" in metrics["measured"]
    assert 0 <= metrics["measured"]["hidden numbers in their 90 % intervals, %"]["mean"] <= 100
    assert evaluate([str(out), "--num-samples", "10"]) == 0
    assert f"{metrics['test']['log_marginal']['mean']:.3f}" in capsys.readouterr().out
    assert evaluate([str(out), "--samples"]) == 2
    assert "no labels to train it on" in capsys.readouterr().err


@pytest.mark.usefixtures("figures_undrawn")
def test_a_file_of_ones_own(tmp_path, capsys):
    out, path = tmp_path / "run", csv(tmp_path / "table.csv")
    mine = ["--dataset", "csv", "--data-root", str(path), "--out", str(out)]
    assert main([*FAST, *mine]) == 2
    assert "'id' holds 60 labels in 60 rows, too many to learn: --leave-out id" in capsys.readouterr().err
    assert main([*FAST, *mine, "--leave-out", "id", "--families", "income=log-normal", "--num-particles", "3"]) == 0
    printed = capsys.readouterr().out
    assert "  income  log-normal  mostly" in printed
    assert "densities of 2 columns in their own units and probabilities of 2" in printed
    assert evaluate([str(out), "--num-samples", "10"]) == 0
    csv(path, shift=1.0)
    capsys.readouterr()
    assert evaluate([str(out), "--num-samples", "10"]) == 2
    assert f"{path} has changed since {out} was trained on it" in capsys.readouterr().err


def test_terms_of_the_columns_are_those_of_the_reconstruction():
    args = Args(hide=0.3).resolved()
    data = load_table(args)
    torch.manual_seed(0)
    pair = build(args, data)
    found = measure(pair, args, data)
    x, observed = data.test
    z = pair.q_z_given_x(torch.where(observed, x, 0), observed).sample((2000,))
    base = pair.p_x_given_z(z).base_dist
    of_all = torch.where(observed, base.log_prob(x), 0).sum(-1).mean().detach()
    counts = observed.sum(0)
    summed = sum(
        found[f"E log p({column.name}|z), {column.family}"]["mean"] * float(count) / len(x)
        for column, count in zip(data.table.columns, counts, strict=True)
    )
    assert summed == pytest.approx(float(of_all), rel=0.02)


def test_objectives_follow_the_flags():
    from ppvae.examples.table import objective

    assert isinstance(objective(Args(num_particles=5).resolved()), IWAE)
    assert not isinstance(objective(Args().resolved()), IWAE)
    assert Args().resolved().hide == 0.2
    assert Args(dataset="csv").resolved().hide == 0.0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--families", "alcohol=gamma"], "--families must be of column=family, the family one of normal"),
        (["--families", "beer=normal"], "families names columns that are not there: ['beer']"),
        (["--families", "grape=normal"], "column 'grape' is normal, and holds"),
        (["--leave-out", "beer"], "--leave-out names columns that are not there: ['beer']"),
        (["--hide", "1"], "--hide must be a share below 1, got 1"),
        (["--dataset", "csv"], "--data-root must be a CSV file, and there is none at data"),
        (["--num-valid", "500"], "--num-valid 500 leaves nothing of 178 rows, of which 35 are for testing"),
        (["--num-particles", "0"], "--num-particles must be a whole number >= 1, got 0"),
    ],
)
def test_wrong_flags_exit_with_2_and_say_why(flags, message, tmp_path, capsys):
    assert main(["--smoke", *flags, "--out", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err


def test_a_file_that_is_no_table_is_named(tmp_path, capsys):
    path = tmp_path / "table.csv"
    for content, message in (("", "holds no table"), ("a,b\n1,2\n", "must hold at least 5 rows, got 1")):
        path.write_text(content)
        assert main(["--dataset", "csv", "--data-root", str(path), "--out", str(tmp_path / "run")]) == 2
        assert message in capsys.readouterr().err


def test_hidden_cells_are_in_no_part_and_rows_in_one():
    data = load_table(Args(hide=0.5).resolved())
    rows = torch.cat([part[0] for part in (data.train, data.valid, data.test)])
    assert len(rows) == 178
    assert len(torch.unique(rows, dim=0)) == 178
    observed = torch.cat([part[1] for part in (data.train, data.valid, data.test)])
    assert float(observed.double().mean()) == pytest.approx(0.5, abs=0.04)
    assert bool(data.truth.isfinite().all())

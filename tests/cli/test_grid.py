"""What a sweep reads off its command line."""

from pathlib import Path

import pytest

from ppvae.cli.experiment import Experiment
from ppvae.cli.grid import Range, check_settings, read_request
from ppvae.cli.main import main
from ppvae.examples.beta_vae import EXPERIMENT as BETA_VAE
from ppvae.examples.vae import EXPERIMENT as VAE
from ppvae.examples.vae import Args


def read(line):
    return read_request("vae", Args, line.split())


def test_several_values_make_a_grid_and_single_ones_do_not():
    request = read("--seeds 3 --beta 1 2 --smoke --lr 1e-3 --activation=relu --activation tanh --out here")
    assert (request.seeds, request.trials, request.out) == (3, None, Path("here"))
    assert request.fixed == ("--smoke", "--lr", "1e-3")
    names = [setting.name for setting in request.settings()]
    assert names == [f"beta={beta},activation={name}" for beta in (1, 2) for name in ("relu", "tanh")]
    assert request.settings()[1].words == (*request.fixed, "--beta", "1", "--activation", "tanh")


def test_of_a_flag_with_several_values_each_time_is_one():
    assert read("--hidden-dims 200 100").settings()[0].name == "all"
    request = read("--hidden-dims 200 100 --hidden-dims 50")
    assert [setting.words for setting in request.settings()] == [
        ("--hidden-dims", "200", "100"),
        ("--hidden-dims", "50"),
    ]
    assert [setting.name for setting in request.settings()] == ["hidden_dims=200+100", "hidden_dims=50"]


def test_numbers_below_zero_and_switches_are_no_flags():
    request = read("--beta -1 2 --no-cuda")
    assert request.axes == {"beta": [("-1",), ("2",)]}
    assert request.fixed == ("--no-cuda",)


def test_ranges_are_of_the_flags_kind():
    request = read("--trials 4 --lr 1e-4..1e-2 --latent-dim 2..8 --patience 1..20 --data-root ../data")
    axes = {"lr": Range(1e-4, 1e-2, whole=False), "latent_dim": Range(2, 8, whole=True)}
    assert request.axes == {**axes, "patience": Range(1, 20, whole=True)}
    assert [of.log for of in request.axes.values()] == [True, False, True]
    assert request.fixed == ("--data-root", "../data")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("beta 1", "flags begin with --, got 'beta'"),
        ("--temperature 1 2", "there is no flag --temperature: ppvae train vae --help lists them"),
        ("--seed 1 2", "--seed is set by the sweep: --seeds N"),
        ("--resume", "--resume is set by the sweep: a sweep goes on by the same command"),
        ("--beta 1 2 1", "--beta has a value twice: 1 2 1"),
        ("--lr 1e-4..1e-2", "--lr has a range, which is for a search: give --trials"),
        ("--trials 3 --lr 1e-2..1e-4", "--lr must have a range LOW..HIGH with LOW below HIGH, got 1e-2..1e-4"),
        ("--trials 3 --latent-dim 2..x", "--latent-dim must have a range LOW..HIGH of ints, got 2..x"),
        ("--out", "--out must be one folder, got none"),
        ("--out here there", "--out must be one folder, got here there"),
        ("--seeds 0", "--seeds must be a whole number >= 1, got 0"),
        ("--seeds 1 2", "--seeds must be a whole number >= 1, got '1 2'"),
        ("--trials many", "--trials must be a whole number >= 1, got 'many'"),
    ],
)
def test_what_is_wrong_is_named(line, message):
    with pytest.raises(ValueError, match=message.replace("..", r"\.\.")):
        read(line)


def test_flags_that_do_not_go_together_are_met_before_training(capsys):
    request = read_request("beta_vae", BETA_VAE.args, ["--objective", "beta", "capacity", "--beta", "3"])
    with pytest.raises(ValueError, match="objective=capacity: --beta goes with --objective beta, got capacity"):
        check_settings(BETA_VAE, request.settings())
    with pytest.raises(SystemExit):
        check_settings(VAE, read("--lr small large").settings())
    assert "lr" in capsys.readouterr().err


REFUSED = [
    ("vae", "--beta 1 -4", "beta=-4: --beta must be a finite number >= 0"),  # by the model
    ("beta_vae", "--objective constrained --max-kl 6 -2", "max_kl=-2: --max-kl must be"),  # by the objective
    ("vae", "--batch-size 16 0", "batch_size=0: --batch-size must be"),  # by the minibatches
    ("vae", "--num-valid 10 5000", "num_valid=5000: --num-valid=5000 leaves nothing"),  # by the data
    ("vamp", "--num-components 5 9999", "num_components=9999: --num-components 9999 is more than"),  # by both
    ("vae", "--patience 3 0", "patience=0: --patience must be"),  # by the training
    ("wae", "--weight 1 -1", "weight=-1: --weight must be"),
    ("flow_vae", "--num-flows 2 0", "num_flows=0: --num-flows must be"),
    ("beta_vae", "--beta 1 0 --warmup 2 --warmup-from 1", "beta=0: --warmup-from 1 does not go with --beta 0"),
]


@pytest.mark.parametrize(("model", "flags", "message"), REFUSED)
def test_what_only_a_run_would_refuse_is_refused_before_the_first(model, flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Experiment, "main", lambda *_: pytest.fail("a run has begun"))
    out = tmp_path / "sweep"
    assert main(["sweep", model, *flags.split(), "--smoke", "--out", str(out)]) == 2
    assert f"error: {message}" in capsys.readouterr().err
    assert not out.exists()


def test_a_search_tries_both_ends_and_every_choice_first(tmp_path, monkeypatch, capsys):
    pytest.importorskip("optuna", reason="pip install 'ppvae[sweep]'")
    monkeypatch.setattr(Experiment, "main", lambda *_: pytest.fail("a run has begun"))
    for flags in ("--beta -4..4", "--lr 1e-4..1e-2 --batch-size 16 0"):
        search = ["sweep", "vae", "--trials", "2", *flags.split(), "--smoke", "--out", str(tmp_path / "search")]
        assert main(search) == 2
    error = capsys.readouterr().err
    assert "beta=-4.0: --beta must be" in error
    assert "batch_size=0: --batch-size must be" in error

"""A run on texts is whole, is opened again, and is compared with a language model that is exact."""

import json

import pytest
import torch

from ppvae.cli.evaluate import main as evaluate
from ppvae.data import Vocabulary
from ppvae.evaluate import log_marginal
from ppvae.examples.text import Args, LanguageModel, build, decoder, load_texts, main, perplexity

FAST = ["--smoke", "--hidden-dim", "8", "--latent-dim", "2"]


def test_run_folder_is_complete_and_opened_again(tmp_path, capsys):
    out = tmp_path / "run"
    assert main([*FAST, "--free-bits", "0", "--out", str(out)]) == 0
    assert {path.stem for path in (out / "figures").glob("*.png")} == {"training", "codes"}
    assert len((out / "samples.txt").read_text(encoding="utf-8").splitlines()) == 9
    assert len((out / "between.txt").read_text(encoding="utf-8").splitlines()) == 8
    metrics = json.loads((out / "metrics.json").read_text())
    of_vae, of_other, above = metrics["measured"].values()
    n = metrics["num_dims"]
    log_p = metrics["test"]["log_marginal"]["mean"]
    assert torch.tensor(-log_p / n).exp().item() == pytest.approx(of_vae["mean"], rel=1e-4)
    ratio = torch.tensor(of_other["mean"] / of_vae["mean"]).log().item()
    assert above["mean"] == pytest.approx(n * ratio, abs=1e-3)
    capsys.readouterr()
    assert evaluate([str(out), "--num-samples", "10"]) == 0
    assert f"{log_p:.3f}" in capsys.readouterr().out


@pytest.mark.usefixtures("figures_undrawn")
@pytest.mark.parametrize("net", ["rnn", "transformer"])
def test_other_nets_on_lines_of_ones_own(net, tmp_path, capsys):
    path = tmp_path / "lines.txt"
    path.write_text("\n".join(f"so it goes {i % 7} \n" for i in range(60)), encoding="utf-8")
    mine = ["--dataset", "file", "--data-root", str(path), "--unit", "words", "--num-steps", "6", "--net", net]
    assert main([*FAST, *mine, "--word-dropout", "0.2", "--out", str(tmp_path / "run")]) == 0
    assert (
        "file: 44 texts to train on, 4 for validation, 12 for testing, 0 longer ones left out"
        in capsys.readouterr().out
    )


def test_names_are_the_same_in_every_python():
    data = load_texts(Args().resolved())
    sizes = [len(part[0]) for part in (data.train, data.valid, data.test)]
    assert sum(sizes) == 9105
    assert len(data.vocabulary) == 2 + 26 + 10 + 2  # letters, figures, space and hyphen
    names = data.vocabulary.decode(*data.test)
    assert all(0 < len(name) < 32 for name in names)
    train = set(data.vocabulary.decode(*data.train))
    assert not train & set(names)


def test_the_language_model_is_the_decoder_without_its_context():
    args = Args(hidden_dim=8, latent_dim=2).resolved()
    data = load_texts(args)
    vae, other = build(args, data), LanguageModel(decoder(args, data, None)).eval()
    sizes = [sum(p.numel() for p in d.parameters()) for d in (vae.p_x_given_z, other)]
    assert sizes[0] - sizes[1] == 2 * 8
    x, lengths = (t[:20] for t in data.test)
    found = log_marginal(other, x, lengths, num_samples=1)
    exact = other.p_x(None, x.shape[1], lengths).log_prob(x).double()
    torch.testing.assert_close(found.values, exact.detach())
    value = perplexity(found, lengths)
    by_hand = (-exact.sum() / lengths.sum()).exp().item()
    assert value["mean"] == pytest.approx(by_hand)
    rows = torch.randint(20, (2000, 20))
    again = (-exact[rows].sum(1) / lengths[rows].sum(1)).exp()
    assert value["std_error"] == pytest.approx(again.std().item(), rel=0.1)


def test_the_end_of_a_text_is_a_token():
    x, lengths = load_texts(Args().resolved()).test
    assert (x.gather(1, lengths[:, None] - 1) == Vocabulary.end).all()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num-steps", "2"], "--num-steps 2 leaves 0 of 12771 texts, too few"),
        (["--dataset", "file"], "--data-root must be a text file, and there is none at data"),
        (["--word-dropout", "1"], "--word-dropout must be a finite number >= 0 and < 1, got 1.0"),
        (["--free-bits", "-1"], "--free-bits must be a finite number >= 0, got -1.0"),
        (["--num-blocks", "0"], "--num-blocks must be a whole number >= 1, got 0"),
    ],
)
def test_wrong_flags_exit_with_2_and_say_why(flags, message, tmp_path, capsys):
    assert main(["--smoke", *flags, "--out", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err

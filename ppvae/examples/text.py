"""A VAE of texts beside a language model of the same decoder: `python -m ppvae.examples.text`.

    z ~ N(0, I)    x_t ~ p(x_t | z, the tokens before)    guide: z ~ q(z | x)     (Bowman et al. 2016, arXiv 1511.06349)

Trains on the names of characters in Unicode 3.2, which every Python has ("GREEK SMALL LETTER ALPHA"), letter by letter;
`--dataset file --data-root FILE` on lines of your own. The decoder sees few letters back, as in Yang et al. 2017 (arXiv
1702.08139), so that z is what holds a name together; `--net rnn` and `--net transformer` see all of them.
"""

from __future__ import annotations

import hashlib
import math
import sys
import unicodedata
from collections import Counter
from dataclasses import dataclass, replace
from typing import Literal, Self

import pyro
import torch
from matplotlib.figure import Figure
from pyro.infer import ELBO, Trace_ELBO
from torch import Tensor, nn

from ppvae import plot
from ppvae._validate import check_count, check_number
from ppvae.cli.experiment import Experiment, elbo_of_flag, fit_options
from ppvae.cli.flags import ExperimentArgs, flag
from ppvae.cli.report import Report, first
from ppvae.cli.tables import RowData, both_arguments, split_rows
from ppvae.data import LengthBuckets, Vocabulary
from ppvae.distributions import ConditionalCategorical, ConditionalNormal, ConditionalSequence, StandardNormal
from ppvae.evaluate import encode, log_marginal
from ppvae.evaluate.estimates import LogMarginal, mean_over_data
from ppvae.infer import Run, fit
from ppvae.models import Sequences, SequenceVAE
from ppvae.nn import RNN, SequenceDecoder, SequenceEncoder, SequenceNet, TemporalConv, Transformer
from ppvae.objectives import FreeBitsELBO


@dataclass(frozen=True)
class Args(ExperimentArgs):
    """Train a VAE on texts, and a language model of the same decoder; compare their perplexities."""

    batch_size: int = 64
    """Texts per minibatch."""
    lr: float = 1e-2
    """Learning rate of Adam."""
    lr_schedule: Literal["constant", "cosine", "burda"] = "cosine"
    """Whether the learning rate falls over the epochs: along half a cosine to a hundredth of --lr, or to a tenth in
    eight stages."""
    warmup: float = 5.0
    """Epochs over which the weight of the KL term goes from --warmup-from to its value."""
    num_samples: int = 100
    """Importance samples per text for log p(x) in the final table."""
    num_eval: int = 500
    """Texts of each split that the final table is of."""
    dataset: Literal["names", "file"] = "names"
    """Data set: names of characters, or the lines of the text file that --data-root names."""
    unit: Literal["characters", "words"] = "characters"
    """What a token is."""
    num_steps: int = 32
    """Longest text in tokens, its end included; longer ones are left out."""
    net: Literal["convolution", "rnn", "transformer"] = "convolution"
    """Of encoder and decoder; a convolution of --num-blocks 1 sees three tokens, of 2 seven."""
    hidden_dim: int = 48
    """Width of encoder and decoder."""
    num_blocks: int = 1
    """Blocks or layers of the decoder; the encoder has two more."""
    latent_dim: int = 16
    """Dimensions of z."""
    word_dropout: float = 0.0
    """Probability that the decoder does not see a token, in training."""
    free_bits: float = 0.15
    """Nats of every dimension of z that cost nothing, in training."""
    lm_epochs: int | None = None
    """Epochs of the language model, by default as many as of the VAE, of which each takes about four times as long."""

    def resolved(self) -> Self:
        """These arguments with every default that depends on another filled in."""
        for name in ("num_steps", "num_blocks"):
            check_count(flag(name), getattr(self, name), at_least=1)
        check_number("--word-dropout", self.word_dropout, at_least=0, below=1)
        check_number("--free-bits", self.free_bits, at_least=0)
        done = super().resolved()
        epochs = 15 if done.epochs is None else done.epochs
        lm_epochs = epochs if done.lm_epochs is None or done.smoke else check_count("--lm-epochs", done.lm_epochs)
        return replace(done, epochs=epochs, lm_epochs=lm_epochs)


@dataclass(frozen=True)
class TextData(RowData):
    """Texts as tokens (n, t) and lengths (n,).

    Attributes:
        vocabulary: the tokens of the training texts.
    """

    vocabulary: Vocabulary


def load_texts(args: Args, *, download: bool = True) -> TextData:
    """The texts of `args`; nothing is ever fetched.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: where it holds no texts that are short enough.
    """
    found, fingerprint = (_names(), "") if args.dataset == "names" else _lines(args)
    texts = [text for text in found if _size(text, args) < args.num_steps]
    if len(texts) < 5:
        raise ValueError(f"--num-steps {args.num_steps} leaves {len(texts)} of {len(found)} texts, too few")
    train, valid, test = split_rows(len(texts), args)
    vocabulary = Vocabulary.of([texts[i] for i in train.tolist()], args.unit)
    x, lengths = vocabulary.encode(texts, num_steps=args.num_steps)
    parts = [(x[rows], lengths[rows]) for rows in (train, valid, test)]
    said = (
        f"{args.dataset}: {len(train)} texts to train on, {len(valid)} for validation, {len(test)} for testing, "
        f"{len(found) - len(texts)} longer ones left out; {len(vocabulary)} tokens, "
        f"{float(parts[0][1].double().mean()):.1f} a text with its end"
    )
    return TextData(parts[0], parts[1], parts[2], said, fingerprint, vocabulary)


def _names() -> list[str]:
    """Names of characters in Unicode 3.2, but those that only count ideographs and syllables of Hangul."""
    found = (unicodedata.ucd_3_2_0.name(chr(code), "") for code in range(sys.maxunicode + 1))
    return [name for name in found if name and "CJK" not in name and "HANGUL SYLLABLE" not in name]


def _lines(args: Args) -> tuple[list[str], str]:
    """The lines of a file that hold something, and its hash."""
    if not args.data_root.is_file():
        raise FileNotFoundError(f"--data-root must be a text file, and there is none at {args.data_root}")
    content = args.data_root.read_bytes()
    try:
        lines = [line.strip() for line in content.decode("utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{args.data_root} must be UTF-8: {error}") from error
    return [line for line in lines if line], hashlib.sha256(content).hexdigest()


def _size(text: str, args: Args) -> int:
    return len(text if args.unit == "characters" else text.split())


def build(args: Args, data: TextData) -> SequenceVAE:
    """The pair that the flags describe."""
    embed = nn.Embedding(len(data.vocabulary), args.hidden_dim)
    net = SequenceEncoder(embed, net_of(args, args.num_blocks + 2, causal=False), (2, args.latent_dim))
    return SequenceVAE(StandardNormal(args.latent_dim), decoder(args, data, args.latent_dim), ConditionalNormal(net))


def decoder(args: Args, data: TextData, latent_dim: int | None) -> ConditionalSequence:
    """p(x|z), or of no latent p(x)."""
    size, dropout = len(data.vocabulary), args.word_dropout if latent_dim else 0.0
    net = net_of(args, args.num_blocks, causal=True)
    embed = nn.Embedding(size, args.hidden_dim)
    step = SequenceDecoder(embed, net, latent_dim, size, word_dropout=dropout)
    return ConditionalSequence(ConditionalCategorical(step, num_classes=size))


def net_of(args: Args, num_blocks: int, *, causal: bool) -> SequenceNet:
    """A net over the steps, of the kind that `--net` names."""
    dim = args.hidden_dim
    if args.net == "convolution":
        return TemporalConv(dim, num_blocks=num_blocks, causal=causal)
    if args.net == "transformer":
        return Transformer(dim, args.num_steps, num_blocks=num_blocks, causal=causal)
    return RNN(dim, dim, direction="forward" if causal else "both", num_layers=1 if causal else num_blocks - 1)


class LanguageModel(nn.Module):
    """The decoder alone: a model without latents, whose log p(x) is exact."""

    def __init__(self, p_x: ConditionalSequence) -> None:
        super().__init__()
        self.p_x = p_x

    def model(self, x: Tensor, lengths: Tensor) -> None:
        """X ~ p(x)."""
        with pyro.plate("data", len(x)):
            pyro.sample("x", self.p_x(None, x.shape[1], lengths), obs=x)

    def guide(self, x: Tensor, lengths: Tensor) -> None:
        """Nothing is latent."""


def batches(args: Args, data: TextData, device: torch.device) -> LengthBuckets:
    """Minibatches of texts that are about as long."""
    x, lengths = data.train
    return LengthBuckets(x, lengths, batch_size=args.batch_size, device=device, seed=args.seed)


def objective(args: Args) -> ELBO:
    """The ELBO, with free bits where they are asked for."""
    return FreeBitsELBO(args.free_bits) if args.free_bits else elbo_of_flag(args)


def measure(pair: SequenceVAE, args: Args, data: TextData) -> Report:
    """Perplexity per token of the VAE, by importance sampling, and of a language model of its decoder."""
    assert args.lm_epochs is not None
    device = next(pair.parameters()).device
    torch.manual_seed(args.seed)
    other = LanguageModel(decoder(args, data, None))
    valid = data.valid if len(data.valid[0]) else None
    run = fit(other, batches(args, data, device), valid, loss=Trace_ELBO(), **fit_options(args, device, args.lm_epochs))
    if run.stopped == "interrupted":
        raise KeyboardInterrupt
    test = first(data.test, args.num_eval)
    of_vae = log_marginal(pair, *test, num_samples=args.num_samples, seed=args.seed)
    of_other = log_marginal(other.eval(), *test, num_samples=1)
    assert test[1] is not None
    return {
        "perplexity per token of the VAE": perplexity(of_vae, test[1]),
        f"perplexity per token of a language model of its decoder, trained in {run.seconds:.0f} s": perplexity(
            of_other, test[1]
        ),
        "log p(x) of the VAE above that of the language model, nats a text": mean_over_data(
            of_vae.values - of_other.values
        ),
    }


def perplexity(estimate: LogMarginal, lengths: Tensor) -> dict[str, float]:
    """exp(−Σ log p(x) / Σ n) and its standard error, by the delta method."""
    value = estimate.perplexity()
    rest = estimate.values + math.log(value) * lengths.cpu()
    return {"mean": value, "std_error": value * mean_over_data(rest)["std_error"] / estimate.num_dims}


def draw(pair: SequenceVAE, args: Args, data: TextData, run: Run) -> None:
    """Prints and writes samples and a line between two texts; writes the training curves."""
    assert run.folder is not None
    device = next(pair.parameters()).device
    torch.manual_seed(args.seed)
    end, (x, lengths) = Vocabulary.end, (t[:2].to(device) for t in data.test)
    parts = {"samples": pair.sample(8, args.num_steps, end=end)}
    if len(x) == 2:
        parts["between two test texts"] = pair.interpolate(x, lengths, end=end)
    for name, found in parts.items():
        lines = "\n".join([f"{name}:", *(f"  {text}" for text in data.vocabulary.decode(*_on_cpu(found)))])
        print(lines)
        (run.folder / f"{name.split()[0]}.txt").write_text(lines + "\n", encoding="utf-8")
    plot.save(plot.training_curves(run.history), run.folder / "figures" / "training.png")
    if args.latent_dim > 1:
        plot.save(codes_by_first_word(pair, args, data), run.folder / "figures" / "codes.png")


def codes_by_first_word(pair: SequenceVAE, args: Args, data: TextData) -> Figure:
    """A map of the codes of those test texts that begin with one of the ten most frequent first words."""
    x, lengths = data.test
    assert lengths is not None
    words = [text.split(" ")[0] for text in data.vocabulary.decode(x, lengths)]
    names = [word for word, _ in Counter(words).most_common(10)]
    rows = [i for i, word in enumerate(words) if word in names]
    labels = torch.tensor([names.index(words[i]) for i in rows])
    codes = encode(pair, x[rows], lengths[rows], seed=args.seed)
    return plot.latent_scatter(codes, labels, names=names, tsne=True)


def _on_cpu(sequences: Sequences) -> Sequences:
    return Sequences(*(t.cpu() for t in sequences))


EXPERIMENT = Experiment(
    "text",
    Args,
    build,
    draw,
    load=load_texts,
    arguments=both_arguments,
    batches=batches,
    objective=objective,
    measure=measure,
)


def main(argv: list[str] | None = None) -> int:
    """Runs the example; returns its exit status."""
    return EXPERIMENT.main(argv)


if __name__ == "__main__":
    sys.exit(main())

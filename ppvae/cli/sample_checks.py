"""The sample quality of `python -m ppvae.evaluate RUN --samples`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ppvae import plot
from ppvae.cli.report import strict_json
from ppvae.cli.runs import Trained
from ppvae.evaluate.features import describe_features, train_features
from ppvae.evaluate.sample_quality import (
    SampleQuality,
    check_enough,
    compare_features,
    compute_features,
    draw_samples,
)
from ppvae.infer import RunFolder

NUM_DRAWN = 64
"""Images that are drawn of the data, and of the samples."""


@dataclass(frozen=True)
class SampleChecks:
    """Samples of a model, and beside them as many training data, each as though they were the samples.

    Attributes:
        model: of one draw for each datum of the test set.
        training: of the first training data: what samples without a fault would have, but for chance.
    """

    model: SampleQuality
    training: SampleQuality

    def summary(self) -> str:
        """What was found, for a person."""
        return (
            f"samples of the model: {self.model.in_numbers()}\n"
            f"training data in their place: {self.training.in_numbers()}\n"
            f"by {self.model.features}: not to be compared with numbers of other features, such as Inception's"
        )

    def figures(self) -> dict[str, Any]:
        """The same, ready for JSON."""
        return {"model": self.model.figures(), "training": self.training.figures()}


def check_samples(run: Trained, folder: Path, *, seed: int) -> SampleChecks:
    """Compares samples of a run with its test data; adds the figures to its metrics, and draws both.

    Args:
        run: the trained pair and its data.
        folder: of the run.
        seed: of the draws; the features have one of their own, 0, so that runs on the same data have the same.

    Raises:
        ValueError: where the run has no labels, or the pair cannot be drawn from.
    """
    if run.training is None:
        raise ValueError(
            f"--samples compares by features of a classifier, and {folder} has no labels to train it on: in Python, "
            "ppvae.evaluate.sample_quality(pair, x, features=a_module)"
        )
    real = run.test[0]
    check_enough(len(real), len(real))
    drawn = draw_samples(run.pair, run.test, seed=seed).cpu()
    x, y = run.training()
    features = train_features(x, y)
    of_data, text = compute_features(features, real), describe_features(features)

    def quality(samples: Tensor) -> SampleQuality:
        return compare_features(compute_features(features, samples), of_data, description=text)

    checks = SampleChecks(quality(drawn), quality(x[: len(real)]))
    content = RunFolder(folder)
    content.write_metrics({**content.read_metrics(), "samples": strict_json(checks.figures())})
    if real.dim() == 4 and real.shape[1] in (1, 3):
        (folder / "figures").mkdir(exist_ok=True)
        most = 1.0 if real.is_floating_point() else float(x.max())  # the highest of integer levels
        both = (images[:NUM_DRAWN].float() / most for images in (drawn, real))
        plot.save(plot.samples_beside_data(*both), folder / "figures" / "samples_beside_data.png")
    return checks

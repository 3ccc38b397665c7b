"""Encoders and decoders as files: what they give is what torch gives, for any number of data."""

import sys

import numpy as np
import pytest
import torch
from torch import nn

import ppvae
from ppvae.cli.export import export
from ppvae.cli.exported import NotExportableError, export_conditional
from ppvae.cli.main import main
from ppvae.data import Vocabulary
from ppvae.distributions import (
    ConditionalBernoulli,
    ConditionalCategorical,
    ConditionalNormal,
    ConditionalSequence,
    FlowPosterior,
    StandardNormal,
    UniformCategorical,
)
from ppvae.infer import Recipe
from ppvae.models import CVAE, PPCA, SSVAE, VAE, HierarchicalVAE, LadderVAE, SequenceVAE
from ppvae.nn import MLP, RNN, ConditionalMLP, ConvDecoder, ConvEncoder, OneHot, SequenceDecoder, SequenceEncoder
from tests.torture.pairs import vae as small_vae

X, Y = torch.bernoulli(torch.full((5, 16), 0.5)), torch.tensor([0, 2, 1, 2, 0])
IMAGES = X.reshape(5, 1, 4, 4)
VOCABULARY = Vocabulary.of(["so it goes", "so be it", "be"], "words")
TEXTS = VOCABULARY.encode(["so it goes", "be", "so be it"])


def embedding():
    return nn.Embedding(len(VOCABULARY), 4)


def bernoulli(k):
    return ConditionalBernoulli(MLP(k, (8,), 16))


def vae():
    return VAE(StandardNormal(2), bernoulli(2), ConditionalNormal(MLP(16, (8,), (2, 2))))


def conv():
    likelihood = ConditionalNormal(ConvDecoder(2, (4,), (1, 4, 4)), scale="learned")
    return VAE(StandardNormal(2), likelihood, ConditionalNormal(ConvEncoder((1, 4, 4), (4,), (2, 2))))


def of_label(model):
    p_x_given_zy = ConditionalBernoulli(ConditionalMLP(2, 3, (8,), 16, embed=OneHot(3)))
    q_z_given_xy = ConditionalNormal(ConditionalMLP(16, 3, (8,), (2, 2), embed=OneHot(3)))
    if model is CVAE:
        return CVAE(StandardNormal(2), p_x_given_zy, q_z_given_xy)
    q_y_given_x = ConditionalCategorical(MLP(16, (8,), 3), num_classes=3)
    return SSVAE(UniformCategorical(3), StandardNormal(2), p_x_given_zy, q_y_given_x, q_z_given_xy)


def hierarchical():
    q_z = [ConditionalNormal(MLP(16, (8,), (2, 3))), ConditionalNormal(MLP(3, (8,), (2, 2)))]
    return HierarchicalVAE([ConditionalNormal(MLP(2, (8,), (2, 3))), StandardNormal(2)], bernoulli(3), q_z)


def ladder():
    return LadderVAE(
        p_z=[ConditionalNormal(MLP(2, (8,), (2, 3), norm="batch")), StandardNormal(2)],
        p_x_given_z=bernoulli(3),
        d=[MLP(16, (8,), 8, norm="batch"), MLP(8, (8,), 8, norm="batch")],
        q_z_given_d=[ConditionalNormal(MLP(8, (), (2, 3))), ConditionalNormal(MLP(8, (), (2, 2)))],
    )


def sequence():
    decoder = SequenceDecoder(embedding(), RNN(4, 8), 2, len(VOCABULARY))
    likelihood = ConditionalSequence(ConditionalCategorical(decoder, num_classes=len(VOCABULARY)))
    encoder = SequenceEncoder(embedding(), RNN(4, 8, direction="both"), (2, 2))
    return SequenceVAE(StandardNormal(2), likelihood, ConditionalNormal(encoder))


PAIRS = {
    "vae": (vae, (X,), {"z_loc": 2, "z_scale": 2}, {"x_logits": 16}),
    "conv": (conv, (IMAGES,), {"z_loc": 2, "z_scale": 2}, {"x_loc": (1, 4, 4), "x_scale": (1, 4, 4)}),
    "cvae": (lambda: of_label(CVAE), (X, Y), {"z_loc": 2, "z_scale": 2}, {"x_logits": 16}),
    "ssvae": (lambda: of_label(SSVAE), (X, Y), {"z_loc": 2, "z_scale": 2}, {"x_logits": 16}),
    "hierarchical": (hierarchical, (X,), {"z1_loc": 3, "z1_scale": 3, "z2_loc": 2, "z2_scale": 2}, {"x_logits": 16}),
    "ladder": (ladder, (X,), {"z1_loc": 3, "z1_scale": 3, "z2_loc": 2, "z2_scale": 2}, {"x_logits": 16}),
    "sequence": (sequence, TEXTS, {"z_loc": 2, "z_scale": 2}, None),
    "ppca": (lambda: PPCA(16, 2), (X,), {"z_loc": 2, "z_precision_matrix": (2, 2)}, {"x_loc": 16, "x_scale": 16}),
}
"""A pair, its data, and what its encoder and its decoder return."""


def with_n(shapes):
    return {name: ("n", *((shape,) if isinstance(shape, int) else shape)) for name, shape in shapes.items()}


def run_onnx(path, inputs):
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert {value.shape[0] for value in (*session.get_inputs(), *session.get_outputs())} == {"n"}
    found = session.run(None, inputs)
    return [torch.from_numpy(np.asarray(value)) for value in found]


@pytest.mark.parametrize("name", PAIRS)
def test_both_are_programs_of_torch(name, tmp_path):
    make, data, encoded, decoded = PAIRS[name]
    pair = make()
    made = export(pair, *data, folder=tmp_path, format="pt2")
    assert made.encoder.outputs == with_n(encoded)
    assert pair.training
    if decoded is None:
        assert made.left_out == {
            "decoder": "decode needs num_steps, which is not of the data: it is no function of them"
        }
    else:
        assert made.decoder.outputs == with_n(decoded)
        assert made.left_out == {}
    run = torch.export.load(str(made.encoder.path)).module()
    twice = [torch.cat([t, t.flip(0)]) for t in data]  # twice as many data as it was traced on, in another order
    found = run(*twice)
    sites = pair.eval().encode(*twice)
    means = [q.mean for q in (sites.values() if isinstance(sites, dict) else [sites])]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found[::2], means, strict=True))


@pytest.mark.parametrize(
    "name", ["cvae", *(pytest.param(n, marks=pytest.mark.slow) for n in ("conv", "ladder", "sequence"))]
)
def test_onnxruntime_gives_what_torch_gives(name, tmp_path):
    pytest.importorskip("onnxscript", reason="pip install 'ppvae[onnx]'")
    make, data, encoded, decoded = PAIRS[name]
    pair = make().eval()
    made = export(pair, *data, folder=tmp_path)
    assert made.encoder.outputs == with_n(encoded)
    assert (made.decoder is None) == (decoded is None)
    assert made.encoder.difference < 1e-5
    three = {name: t[1:4] for name, t in zip(made.encoder.inputs, data, strict=True)}
    found = run_onnx(made.encoder.path, {name: t.numpy() for name, t in three.items()})
    sites = pair.encode(*three.values())
    means = [q.mean for q in (sites.values() if isinstance(sites, dict) else [sites])]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found[::2], means, strict=True))


def test_what_onnx_has_no_operator_for_is_named(tmp_path):
    pytest.importorskip("onnxscript", reason="pip install 'ppvae[onnx]'")
    made = export(PPCA(8, 2), torch.randn(5, 8), folder=tmp_path)
    assert made.left_out == {"encoder": "ONNX does not take it: it has no operator for aten.linalg_cholesky_ex"}
    assert [path.name for path in tmp_path.iterdir()] == ["decoder.onnx"]


def test_a_flow_is_not_told_by_parameters(tmp_path):
    flow = FlowPosterior(MLP(16, (8,), (3, 2)), num_flows=1, hidden_dims=8)
    made = export(VAE(StandardNormal(2), bernoulli(2), flow), X, folder=tmp_path, format="pt2")
    assert "is not told by named parameters" in made.left_out["encoder"]
    assert made.decoder is not None


class Noisy(nn.Module):
    def forward(self, x):
        return torch.distributions.Normal(x + torch.rand_like(x), torch.ones_like(x))


class Branching(nn.Module):
    def forward(self, x):
        return torch.distributions.Normal(x if x.sum() > 0 else -x, torch.ones_like(x))


def test_a_file_that_differs_from_torch_is_not_kept(tmp_path):
    with pytest.raises(ValueError, match=r"noisy\.pt2 differs from torch by .*: not kept"):
        export_conditional(Noisy(), {"x": X}, tmp_path / "noisy.pt2", site="z")
    assert list(tmp_path.iterdir()) == []


def test_what_torch_cannot_trace_is_said_in_a_line(tmp_path):
    with pytest.raises(NotExportableError, match=r"^torch.export does not trace it: .*$"):
        export_conditional(Branching(), {"x": X}, tmp_path / "branching.pt2", site="z")


def test_modules_of_any_pair_and_errors(tmp_path):
    pair = ppvae.Pair(small_vae().model, small_vae().guide)
    with pytest.raises(TypeError, match=r"must have encode and decode.*got Pair; ppvae\.export_conditional"):
        export(pair, X, folder=tmp_path)
    one = export_conditional(bernoulli(2), {"code": torch.randn(1, 2)}, tmp_path / "made" / "d.pt2", site="image")
    assert (one.inputs, one.outputs) == ({"code": ("n", 2)}, {"image_logits": ("n", 16)})
    assert one.families == {"image": "Bernoulli"}
    with pytest.raises(ValueError, match=r"path must end in \.onnx or \.pt2, got 'd\.pth'"):
        export_conditional(bernoulli(2), {"z": torch.randn(3, 2)}, tmp_path / "d.pth", site="x")
    with pytest.raises(ValueError, match="format must be 'onnx' or 'pt2', got 'tflite'"):
        export(vae(), X, folder=tmp_path, format="tflite")


def test_without_the_libraries_the_line_that_installs_them_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r'pip install "ppvae\[onnx\]"'):
        export(vae(), X, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def load_test():
    return X


def test_the_command_of_a_run(tmp_path, capsys):
    out = tmp_path / "run"
    ppvae.fit(vae(), X, epochs=1, out=out, recipe=Recipe(vae, load_test), progress=False)
    assert main(["export", str(out), "--format", "pt2"]) == 2
    assert "on your word alone" in capsys.readouterr().err
    assert main(["export", str(out), "--format", "pt2", "--trust"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"{out}/export/encoder.pt2: x (n, 16)"
    assert printed[3].strip().startswith("-> x_logits (n, 16)    x ~ Bernoulli; at most ")

import pytest
import torch

from ppvae.nn import Batched, Rescale, Reshape, as_shape


@pytest.mark.parametrize(("value", "shape"), [(3, (3,)), ([1, 2], (1, 2)), ((), ()), (torch.Size([4, 5]), (4, 5))])
def test_as_shape(value, shape):
    assert as_shape(value, "in_shape") == shape
    assert type(as_shape(value, "in_shape")) is tuple


@pytest.mark.parametrize("value", [0, -1, True, 2.0, "12", (3, 0), (3, 2.0), None, {3}])
def test_as_shape_names_the_argument_and_the_value(value):
    with pytest.raises(ValueError, match="out_shape must be a positive int or a sequence of positive ints") as error:
        as_shape(value, "out_shape")
    assert repr(value) in str(error.value)


@pytest.mark.parametrize("lead", [(), (2,), (2, 0, 3)])
def test_reshape_keeps_leading_dims_and_order(lead):
    x = torch.arange(torch.Size((*lead, 2, 3)).numel()).reshape(*lead, 2, 3)
    y = Reshape((2, 3), 6)(x)
    assert torch.equal(y, x.flatten(-2))
    assert torch.equal(Reshape(6, (2, 3))(y), x)


def test_reshape_to_and_from_scalars():
    x = torch.randn(4)
    assert torch.equal(Reshape((), 1)(x), x[:, None])
    assert torch.equal(Reshape(1, ())(x[:, None]), x)


def test_reshape_needs_as_many_elements():
    with pytest.raises(ValueError, match=r"out_shape \(5,\) must have as many elements as in_shape \(2, 3\)"):
        Reshape((2, 3), 5)


def test_batched_checks_the_event_shape():
    with pytest.raises(ValueError, match=r"expected an input of shape \(..., 3,\), got \(5, 4\)"):
        Batched(torch.nn.Identity(), 3, 3)(torch.zeros(5, 4))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32, torch.float64, torch.bfloat16])
def test_rescale_any_dtype(dtype):
    x = torch.tensor([[0, 1]]).to(dtype)
    y = Rescale(3, -1)(x)
    assert y.tolist() == [[-1.0, 2.0]]
    assert y.dtype == (dtype if dtype.is_floating_point else torch.float32)


def test_rescale_has_no_state_and_maps_pixels_to_the_unit_interval():
    net = Rescale(1 / 255)
    assert not net.state_dict()
    assert torch.allclose(net(torch.arange(256, dtype=torch.uint8)), torch.linspace(0, 1, 256))


@pytest.mark.parametrize(
    ("scale", "shift", "name"), [(float("nan"), 0, "scale"), (1, float("inf"), "shift"), ("2", 0, "scale")]
)
def test_rescale_errors(scale, shift, name):
    with pytest.raises(ValueError, match=f"{name} must be a finite number, got"):
        Rescale(scale, shift)

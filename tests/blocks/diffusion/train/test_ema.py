"""EMA: against a plain loop, in half precision, swapped in and out, and resumed."""

import copy
import pickle

import pytest
import torch
from torch import nn

from ropewalk.blocks.diffusion.train import EMA


class Tied(nn.Module):
    """A shared weight, a buffer, an integer parameter: what averages must get right."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.first = nn.Linear(3, 3, dtype=dtype)
        self.second = nn.Linear(3, 3, dtype=dtype)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(3, dtype=dtype)
        self.count = nn.Parameter(torch.tensor(7), requires_grad=False)


def plain():
    return nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).to(torch.bfloat16)


def wander(model):
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.add_(torch.randn(parameter.shape).to(parameter.dtype))


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("warm_up", [True, False])
def test_is_the_plain_loop(dtype, warm_up):
    model = Tied(dtype)
    ema = EMA(model, 0.6, warm_up=warm_up)
    expected = {n: p.detach().double().clone() for n, p in model.named_parameters()}
    for step in range(1, 30):
        wander(model)
        ema.update()
        decay = min(0.6, (1 + step) / (10 + step)) if warm_up else 0.6
        for name, parameter in model.named_parameters():
            expected[name] = decay * expected[name] + (1 - decay) * parameter.detach().double()
    assert set(ema.shadow) == set(expected) - {"count"}
    for name, average in ema.shadow.items():
        assert average.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        tolerance = 1e-13 if dtype == torch.float64 else 2e-5
        torch.testing.assert_close(average.double(), expected[name], rtol=0, atol=tolerance)


def test_warm_up_grows_from_two_elevenths_to_the_decay():
    model = nn.Linear(1, 1)
    ema = EMA(model, 0.9)
    assert ema.next_decay == 2 / 11
    seen = []
    for _ in range(200):
        seen.append(ema.next_decay)
        ema.update()
    assert seen == sorted(seen)
    assert seen[-1] == 0.9 == EMA(model, 0.9, warm_up=False).next_decay


def test_an_average_kept_in_bfloat16_would_never_move():
    model = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    nn.init.ones_(model.weight)
    ema = EMA(model, 0.9999, warm_up=False)
    nn.init.constant_(model.weight, 2.0)
    for _ in range(100):
        ema.update()
    torch.testing.assert_close(ema.shadow["weight"].item(), 2 - 0.9999**100, rtol=1e-4, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_swap_gives_the_averages_and_puts_the_weights_back_bit_by_bit(dtype):
    model = Tied(dtype)
    ema = EMA(model, 0.5)
    wander(model)
    ema.update()
    wander(model)
    before = state(model)
    buffer = before["norm.running_mean"]

    def fail_inside():
        with ema.swap():
            assert torch.equal(model.first.weight, ema.shadow["first.weight"].to(dtype))
            assert model.second.weight is model.first.weight
            assert torch.equal(model.norm.running_mean, buffer)
            with pytest.raises(RuntimeError, match="holds the averages"):
                ema.update()
            with pytest.raises(RuntimeError, match="holds the averages"):
                ema.swap().__enter__()
            raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        fail_inside()
    assert equal(before, state(model))
    ema.update()  # the refusal ends with the block
    assert ema.updates == 2


def test_copy_to_another_model():
    model = Tied()
    ema = EMA(model, 0.5)
    wander(model)
    ema.update()
    other = copy.deepcopy(model)
    ema.copy_to(other)
    with ema.swap():
        assert equal(state(model), state(other))


def test_a_resumed_average_goes_on_as_if_nothing_had_happened(tmp_path):
    model = plain()
    ema = EMA(model, 0.99)
    for _ in range(3):
        wander(model)
        ema.update()
    torch.save({"model": model.state_dict(), "ema": ema.state_dict()}, tmp_path / "state.pt")
    saved = torch.load(tmp_path / "state.pt", weights_only=True)

    model_again = plain()
    again = EMA(model_again, 0.5, warm_up=False)
    model_again.load_state_dict(saved["model"], assign=True)  # replaces the parameters
    again.load_state_dict(saved["ema"])
    assert repr(again) == repr(ema) == "EMA(decay=0.99, warm_up=True, updates=3)"
    for one, its in ((model, ema), (model_again, again)):
        torch.manual_seed(1)
        wander(one)
        its.update()
    assert equal(ema.shadow, again.shadow)
    assert equal(pickle.loads(pickle.dumps(ema)).shadow, ema.shadow)


def test_update_leaves_no_graph_and_works_on_meta_tensors():
    with torch.device("meta"):
        model = nn.Linear(2, 2)
    ema = EMA(model)
    ema.update()
    assert ema.shadow["weight"].is_meta
    assert not ema.shadow["weight"].requires_grad


@pytest.mark.parametrize("decay", [-0.1, 1.0, 2.0, float("nan")])
def test_refuses_a_decay_outside_its_range(decay):
    with pytest.raises(ValueError, match=r"EMA\.decay: expected a number in \[0, 1\)"):
        EMA(nn.Linear(1, 1), decay)


def test_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="floating-point parameters, got none"):
        EMA(nn.ReLU())
    with pytest.raises(TypeError, match="a number"):
        EMA(nn.Linear(1, 1), "0.9")
    ema = EMA(nn.Linear(2, 2))
    before = state(ema._model)
    other = EMA(nn.Linear(2, 3)).state_dict()
    with pytest.raises(ValueError, match=r"weight: expected shape \(2, 2\), got \(3, 2\)"):
        ema.load_state_dict(other)
    with pytest.raises(ValueError, match=r"missing \['bias'\]"):
        ema.load_state_dict({**ema.state_dict(), "shadow": {"weight": torch.zeros(2, 2)}})
    with pytest.raises(ValueError, match=r"\['updates'\] missing"):
        ema.load_state_dict({k: v for k, v in ema.state_dict().items() if k != "updates"})
    with pytest.raises(ValueError, match=r"EMA\.decay: expected a number in \[0, 1\), got 2"):
        ema.load_state_dict({**ema.state_dict(), "decay": 2.0})
    with pytest.raises(ValueError, match="same form"):
        ema.copy_to(nn.Linear(3, 2))
    assert equal(before, state(ema._model))


def test_refuses_parameters_that_came_or_went():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    ema = EMA(model, 0.5)
    before = {name: average.clone() for name, average in ema.shadow.items()}

    def refused(match):
        for method in ("update", "swap"):
            expected = rf"EMA.{method}: expected the parameters that .* make a new EMA .*{match}"
            with pytest.raises(ValueError, match=expected):
                ema.update() if method == "update" else ema.swap().__enter__()
        assert ema.updates == 0
        assert equal(ema.shadow, before)

    last = model.pop(1)
    refused(r"missing \['1.bias', '1.weight'\], unexpected \[\]")
    model.extend([last, nn.Linear(3, 1, bias=False)])
    refused(r"missing \[\], unexpected \['2.weight'\]")
    model.pop(2)
    model[1] = nn.Linear(3, 2)
    refused(r"1.weight: expected shape \(3, 3\), got \(2, 3\)")
    model[1] = last
    ema.update()
    assert ema.updates == 1

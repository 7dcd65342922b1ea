"""torch.compile of plugged models, in one graph."""

import pytest
import torch
from transformers import DynamicCache, StaticCache

from ropewalk.blocks.rotary import DynamicNTK, LeakyReRoPE, NTKAware, ReRoPE
from ropewalk.llm import plug

pytestmark = [
    pytest.mark.slow,
    # torch's own, on importing its compiler.
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
]
PLUGS = {
    "frequency": {"frequency": NTKAware(factor=4.0)},
    "distance": {"distance": LeakyReRoPE(window=4, factor=8.0), "log_n_length": 8},
    "dynamic": {"frequency": DynamicNTK(factor=2.0, original_length=8)},
}
CASES = [
    ("frequency", "llama"),
    ("distance", "llama"),
    ("distance", "gemma3"),
    ("distance", "glm"),
    ("dynamic", "llama"),
]


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()


def compiled(model, **options):
    return torch.compile(model, backend="aot_eager", fullgraph=True, **options)


@pytest.mark.parametrize(("rules", "name"), CASES)
def test_forward(make_model, tokens, rules, name):
    model = make_model(name)
    mask = torch.ones_like(tokens)
    mask[0, :5] = 0
    with plug(model, **PLUGS[rules]), torch.no_grad():
        fast = compiled(model)
        for inputs in ({}, {"attention_mask": mask}):
            expected = model(tokens, use_cache=False, **inputs).logits
            got = fast(tokens, use_cache=False, **inputs).logits
            valid = mask.bool() if inputs else torch.ones_like(mask, dtype=torch.bool)
            torch.testing.assert_close(got[valid], expected[valid], atol=1e-5, rtol=1e-5)


def test_training(make_model, tokens):
    model = make_model().train()
    with plug(model, distance=LeakyReRoPE.inverse(expansion=4, train_length=16)):
        model(tokens, labels=tokens, use_cache=False).loss.backward()
        expected = [p.grad.clone() for p in model.parameters()]
        model.zero_grad()
        compiled(model)(tokens, labels=tokens, use_cache=False).loss.backward()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_decoding_into_a_static_cache_compiles_once(make_model, tokens, name):
    model = make_model(name)
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    with plug(model, distance=ReRoPE(window=4)), torch.no_grad():
        expected = model(tokens).logits
        cache = StaticCache(model.config, max_cache_len=24)
        start = 12
        model(tokens[:, :start], past_key_values=cache)
        step = torch.compile(model, backend=counter, fullgraph=True)
        for index in range(start, tokens.shape[1]):
            got = step(
                tokens[:, index : index + 1],
                position_ids=torch.tensor([[index]]),
                past_key_values=cache,
            ).logits
            torch.testing.assert_close(got, expected[:, index : index + 1], atol=1e-5, rtol=1e-5)
    assert counter.frame_count <= 2


def test_unplugging_a_compiled_model(make_model, tokens):
    model = make_model(num_hidden_layers=1)
    fast = compiled(model)
    with torch.no_grad():
        native = fast(tokens, use_cache=False).logits
        with plug(model, distance=ReRoPE(window=4)):
            expected = model(tokens, use_cache=False).logits
            torch.testing.assert_close(fast(tokens, use_cache=False).logits, expected)
        torch.testing.assert_close(fast(tokens, use_cache=False).logits, native)


def test_the_default_compiler(make_model, tokens, tmp_path, monkeypatch):
    # A cache of its own, because two processes that compile the same at once spoil each other's.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    model = make_model(num_hidden_layers=1)
    with plug(model, distance=ReRoPE(window=4)), torch.no_grad():
        expected = model(tokens, past_key_values=DynamicCache(config=model.config)).logits
        fast = torch.compile(model, fullgraph=True)
        got = fast(tokens, use_cache=False).logits
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)

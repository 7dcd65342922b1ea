"""Parallel context windows against one forward pass with the mask and positions they amount to."""

import numpy as np
import pytest
import torch

from ropewalk.evals.logits import scored_logits
from ropewalk.evals.models import open_model
from ropewalk.evals.parallel_windows import has_parallel_windows, parallel_window_logits
from ropewalk.evals.tasks.task import Sample


def sample_of(lengths, *, prefix=0, question=9, scored=4):
    generator = np.random.default_rng(0)

    def tokens(length):
        return generator.integers(3, 259, length)

    contexts = tuple(tokens(length) for length in lengths)
    return Sample("", tokens(question), scored, {}, contexts, tokens(prefix), "windows")


def load(folder):
    return open_model(str(folder)).load(dtype=torch.float32, device=torch.device("cpu"))


def masked_logits(model, sample):
    """Contexts blind to each other, the question seeing all, in one sequence."""
    first, *rest = sample.contexts
    blocks = [np.concatenate([sample.prefix, first]), *rest]
    question = sample.tokens[:-1]
    tokens = np.concatenate([*blocks, question])
    prefix = len(sample.prefix)
    longest = prefix + max(map(len, sample.contexts))
    starts = [0, *(prefix for _ in rest)]
    positions = [start + np.arange(len(b)) for start, b in zip(starts, blocks, strict=True)]
    positions = np.concatenate([*positions, longest + np.arange(len(question))])
    owner = np.concatenate(
        [*(np.full(len(block), n) for n, block in enumerate(blocks)), np.full(len(question), -1)]
    )
    owner = torch.from_numpy(owner)
    shared = torch.arange(len(tokens)) < prefix
    seen = (owner[:, None] == owner[None]) | (owner[:, None] == -1) | shared[None]
    seen &= torch.ones_like(seen).tril()
    mask = torch.where(seen, 0.0, torch.finfo(torch.float32).min)[None, None]
    with torch.inference_mode():
        return model(
            input_ids=torch.from_numpy(tokens)[None],
            position_ids=torch.from_numpy(positions)[None],
            attention_mask=mask,
        ).logits[0, -sample.scored :]


@pytest.mark.parametrize(
    ("lengths", "prefix"), [([20], 0), ([20, 20, 20], 0), ([7, 20, 13, 20], 0), ([9, 5, 9], 2)]
)
@pytest.mark.parametrize("at_once", [1, 2, 8])
def test_windows_are_blocks_of_a_mask(tiny_model, lengths, prefix, at_once):
    model, sample = load(tiny_model), sample_of(lengths, prefix=prefix)
    with torch.inference_mode():
        ours = parallel_window_logits(model, sample, at_once=at_once, device=torch.device("cpu"))
    assert ours.shape == (4, 264)
    torch.testing.assert_close(ours, masked_logits(model, sample), rtol=1e-4, atol=1e-5)


def test_a_single_window_is_the_prompt(tiny_model):
    model, sample = load(tiny_model), sample_of([30], prefix=3)
    tokens = torch.from_numpy(np.concatenate([sample.prefix, *sample.contexts, sample.tokens]))
    with torch.inference_mode():
        ours = parallel_window_logits(model, sample, at_once=8, device=torch.device("cpu"))
        expected = scored_logits(model, tokens[None], sample.scored)[0]
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_models_with_sliding_windows_have_none(tiny_model):
    config = open_model(str(tiny_model)).config
    assert has_parallel_windows(config)
    config.layer_types = ["full_attention", "sliding_attention"]
    assert not has_parallel_windows(config)
    config.layer_types = None
    config.sliding_window = 8
    assert not has_parallel_windows(config)

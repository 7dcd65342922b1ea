import re

import numpy as np
import pytest

from ropewalk.evals.default_model import mixture
from ropewalk.evals.default_model.architecture import BYTE_OFFSET, to_tokens, tokenizer
from ropewalk.evals.default_model.corpus import TrainingText
from ropewalk.evals.default_model.recipe import RECIPES, Phase


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> TrainingText:
    folder = tmp_path_factory.mktemp("library")
    for number in range(20):
        (folder / f"module{number}.py").write_text(
            f"def function{number}(): return {number}. \n" * 99
        )
    return TrainingText(folder)


def as_text(tokens: np.ndarray) -> str:
    kept = tokens[tokens >= BYTE_OFFSET]
    return (kept - BYTE_OFFSET).astype(np.uint8).tobytes().decode()


def test_tokens_are_those_of_the_tokenizer() -> None:
    content = "naïve = 1\n"
    expected = tokenizer()(content, add_special_tokens=False)["input_ids"]
    assert to_tokens(content.encode()).tolist() == expected


@pytest.mark.parametrize("length", [128, 200, 512])
@pytest.mark.parametrize("seed", range(6))
def test_rows_fill_the_length_and_their_targets_are_their_tokens(
    text: TrainingText, length: int, seed: int
) -> None:
    for make in (
        lambda g: mixture.text_row(text, length, g),
        lambda g: mixture.copy_row(length, g),
        lambda g: mixture.pairs_row(length, g),
        lambda g: mixture.passkey_row(text, length, g),
        lambda g: mixture.passkey_row(None, length, g),
    ):
        row = make(np.random.default_rng(seed))
        assert row.tokens.shape == row.targets.shape == (length,)
        counted = row.targets != mixture.IGNORE
        assert counted.any()
        np.testing.assert_array_equal(row.targets[counted], row.tokens[counted])


@pytest.mark.parametrize("seed", range(6))
def test_a_copy_row_asks_only_for_what_stood_before(seed: int) -> None:
    row = mixture.copy_row(256, np.random.default_rng(seed))
    period = int(np.argmax(row.targets != mixture.IGNORE))
    np.testing.assert_array_equal(row.tokens[period:], row.tokens[:-period])


@pytest.mark.parametrize("seed", range(6))
def test_a_pairs_row_asks_for_values_that_the_context_defines(seed: int) -> None:
    row = mixture.pairs_row(512, np.random.default_rng(seed))
    lines = as_text(row.tokens).split("\n")[:-1]
    first = int(np.argmax(row.targets != mixture.IGNORE))
    given = as_text(row.tokens[:first]).rsplit("\n", 1)[0].split("\n")
    pairs = dict(line.split(" = ") for line in given)
    asked = lines[len(given) :]
    assert asked
    assert all(pairs[line.split(" = ")[0]] == line.split(" = ")[1] for line in asked)


@pytest.mark.parametrize("seed", range(12))
def test_a_passkey_row_asks_for_the_key_that_its_needle_states(
    text: TrainingText, seed: int
) -> None:
    row = mixture.passkey_row(text, 512, np.random.default_rng(seed))
    content = as_text(row.tokens)
    found = re.search(
        r"The pass key is (\d{5})\. Remember it\. (\d{5}) is the pass key\. ", content
    )
    assert found is not None
    assert content.endswith(f"The pass key is {found[1]}\n")
    assert as_text(row.targets) == f"{found[1]}{found[1]}\n"


def test_a_batch_holds_the_kinds_in_proportion(text: TrainingText) -> None:
    shares = {"text": 0.5, "copy": 0.25, "passkey": 0.25}
    rows = mixture.batch(text, shares, rows=16, length=128, generator=np.random.default_rng(0))
    counts = {kind: sum(row.kind == kind for row in rows) for kind in mixture.KINDS}
    assert sum(counts.values()) == 16
    assert counts["pairs"] == 0
    for kind, share in shares.items():
        assert abs(counts[kind] - 16 * share) <= 1


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=lambda recipe: recipe.name)
def test_recipes_cover_their_whole_run(recipe) -> None:
    assert recipe.phases[-1].until == 1.0
    for phase in recipe.phases:
        assert isinstance(phase, Phase)
        assert sum(phase.shares.values()) == pytest.approx(1.0)
        assert set(phase.shares) <= set(mixture.KINDS)
    lengths = [recipe.phase(step).length for step in range(recipe.steps)]
    assert lengths == sorted(lengths)
    factors = [recipe.rate_factor(step) for step in range(recipe.steps)]
    assert min(factors) > 0
    assert max(factors) == 1.0
    assert factors[-1] < 0.01

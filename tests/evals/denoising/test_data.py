"""The digits: their split is stratified and fixed, their levels are numbers in [−1, 1]."""

from dataclasses import replace

import pytest
import torch

from ropewalk.evals.denoising.data import digits, split
from ropewalk.evals.errors import InputError


def test_the_halves_of_the_digits_are_apart_and_have_all_classes_alike():
    data = digits()
    train, unseen = data.split
    assert (len(train), len(unseen)) == (898, 899)
    assert sorted([*train.tolist(), *unseen.tolist()]) == list(range(1797))
    assert data.labels is not None
    shares = [data.labels[part].bincount(minlength=10) for part in (train, unseen)]
    assert (shares[0] - shares[1]).abs().max() <= 1


def test_levels_span_minus_one_to_one():
    data = digits()
    images = data.continuous(torch.arange(len(data.images)))
    assert data.shape == (1, 8, 8)
    assert images.dtype == torch.float32
    assert (images.min().item(), images.max().item()) == (-1.0, 1.0)
    assert len(images.unique()) == data.levels
    assert torch.equal(((images + 1) * 8).round().to(torch.uint8), data.images)


def test_what_describes_the_data_tells_other_data_apart(few_digits):
    described = few_digits.describe()
    assert described["pictures"] == 100
    assert described == few_digits.describe()
    images = few_digits.images.clone()
    images[3, 0, 2, 2] += 1
    assert replace(few_digits, images=images).describe()["digest"] != described["digest"]
    swapped = replace(few_digits, labels=few_digits.labels.flip(0))
    assert swapped.describe()["digest"] != described["digest"]


def test_a_split_without_classes_covers_all():
    train, unseen = split(20, None, 0.25)
    assert len(unseen) == 5
    assert sorted([*train.tolist(), *unseen.tolist()]) == list(range(20))


@pytest.mark.parametrize(
    ("count", "labels", "share"),
    [(3, [0, 0, 1], 0.5), (1, None, 0.5), (6, [0, 0, 0, 1, 1, 1], 0.1)],
    ids=["a class of one", "one picture", "fewer unseen than classes"],
)
def test_too_few_pictures_are_refused(count, labels, share):
    with pytest.raises(InputError, match=f"{count} pictures, .* too few .* --unseen"):
        split(count, None if labels is None else torch.tensor(labels), share)

"""Hidden layers of a quarter of the parameters learn digits as well as dense ones.

1797 images of 8 × 8 pixels. A tenth of them stays aside for choosing the recipe below, a third for
the test, which nothing was chosen by; both models get the same images, order, seeds and recipe.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from ropewalk.blocks.monarch import MonarchLinear

SEEDS = 3
EPOCHS, BATCH, LEARNING_RATE = 30, 128, 1e-2
HIDDEN = 256


def monarch(inputs, outputs):
    return MonarchLinear(inputs, outputs, nblocks=8, rank=None if inputs < outputs else 3)


def network(hidden):
    return nn.Sequential(
        hidden(64, HIDDEN), nn.ReLU(), hidden(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 10)
    )


def parts():
    """Images and labels: to train on, to choose by, to test on."""
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    images = torch.from_numpy(images)[order].float() / 8 - 1
    labels = torch.from_numpy(labels)[order].long()
    held, tested = len(labels) // 10, len(labels) // 3
    sizes = [len(labels) - held - tested, held, tested]
    return list(zip(images.split(sizes), labels.split(sizes), strict=True))


def train(hidden, images, labels, seed):
    torch.manual_seed(seed)
    model = network(hidden)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=0.01)
    steps = EPOCHS * -(-len(labels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    shuffle = torch.Generator().manual_seed(seed)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(labels), generator=shuffle).split(BATCH):
            optimizer.zero_grad()
            cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
            schedule.step()
    return model


@torch.no_grad()
def accuracy(model, images, labels):
    return (model(images).argmax(-1) == labels).double().mean().item()


def count(model):
    return sum(p.numel() for p in model.parameters())


def test_a_quarter_of_the_parameters_learn_digits_within_a_point():
    train_on, _, test_on = parts()
    sizes = {hidden: count(network(hidden)) for hidden in (monarch, nn.Linear)}
    assert sizes[monarch] <= sizes[nn.Linear] / 4
    means = {}
    for hidden in (monarch, nn.Linear):
        reached = [accuracy(train(hidden, *train_on, seed), *test_on) for seed in range(SEEDS)]
        means[hidden] = sum(reached) / SEEDS
    assert means[nn.Linear] > 0.96
    assert means[monarch] > means[nn.Linear] - 0.01

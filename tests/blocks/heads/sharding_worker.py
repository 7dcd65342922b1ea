"""One of two ranks: trains a tied head under FSDP2 and compares it; run by test_sharding.

    python sharding_worker.py <case> <file to meet at> <rank>

Each rank gets half of the batch. A single process with the whole batch, starting from the same
weights, must see the same losses and end at the same weights.
"""

import itertools
import math
import os
import sys

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from ropewalk.blocks.heads import OUTPUT_FORMS, TiedEmbedding

TOKENS, WIDTH, STEPS = 37, 12, 5
WHOLE = StateDictOptions(full_state_dict=True)


class Model(nn.Module):
    def __init__(self, output):
        super().__init__()
        self.head = TiedEmbedding(
            TOKENS, WIDTH, output=output, bias=True, padding_idx=3, softcap=20.0, input_scale=2.0
        )
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.RMSNorm(WIDTH)

    def forward(self, ids):
        x = self.head(ids)
        return self.head.loss(self.norm(x + self.layer(x).tanh()), ids, shift=True)


def shard(model, *, alone):
    if alone:
        fully_shard(model.head)
        register_fsdp_forward_method(model.head, "loss")
        fully_shard(model.layer)
    return fully_shard(model)


def train(model, ids):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = model(ids)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach().clone())
    return torch.stack(losses)


def compare(model, output, rank):
    """Trains the sharded model, and a single one from where it starts."""
    start = get_model_state_dict(model, options=WHOLE)
    ids = torch.randint(TOKENS, (4, 9), generator=torch.Generator().manual_seed(1))
    losses = train(model, ids[2 * rank : 2 * rank + 2])
    dist.all_reduce(losses)  # gloo has no mean
    end = get_model_state_dict(model, options=WHOLE)
    if rank == 0:
        single = Model(output)
        single.load_state_dict(start)
        torch.testing.assert_close(losses / 2, train(single, ids), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(end, dict(single.state_dict()), rtol=1e-4, atol=1e-5)
        assert list(end) == list(single.state_dict())
    dist.barrier()


def made_on_meta(rank):
    for output in ("identity", "orthogonal", "untied"):
        with torch.device("meta"):
            model = Model(output)
        shard(model, alone=True)
        model.to_empty(device="cpu")
        torch.manual_seed(rank)  # what must agree between ranks has to be made to
        for module in (model.head, model.layer, model.norm):
            module.reset_parameters()
        state = get_model_state_dict(model, options=WHOLE)
        if rank == 0:
            table = state["head.weight"]
            assert isinstance(table, torch.Tensor)
            assert not table[3].any()
            assert 0.8 < table.std() / (math.log(TOKENS) / WIDTH) < 1.2
            if output == "orthogonal":
                projection = state["head.projection"]
                torch.testing.assert_close(projection @ projection.mT, torch.eye(WIDTH))
        compare(model, output, rank)


def loaded(rank):
    torch.manual_seed(0)
    source = Model("shuffle").state_dict()
    with torch.device("meta"):
        model = Model("shuffle")
    shard(model, alone=True).to_empty(device="cpu")
    set_model_state_dict(model, dict(source), options=WHOLE)  # it changes what it is given
    state = get_model_state_dict(model, options=WHOLE)
    if rank == 0:
        torch.testing.assert_close(state, dict(source), rtol=0, atol=0)
    compare(model, "shuffle", rank)


def trained(rank):
    """As a part of a sharded model, and sharded by itself."""
    for alone, output in itertools.product((False, True), OUTPUT_FORMS):
        torch.manual_seed(0)
        compare(shard(Model(output), alone=alone), output, rank)


def not_announced(rank):
    """A head that is sharded by itself gathers its weights for methods that it knows of."""
    head = fully_shard(Model("identity").head)
    with pytest.raises(ValueError, match="register_fsdp_forward_method"):
        head.loss(torch.zeros(2, 3, WIDTH), torch.zeros(2, 3, dtype=torch.int64))


CASES = {
    "not announced": not_announced,
    "trained": trained,
    "made on meta": made_on_meta,
    "loaded": loaded,
}


def main(case, meeting, rank):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    CASES[case](rank)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    sys.stdout.flush()
    # Without the interpreter's end, which at times aborts in a thread of the process group.
    os._exit(0)

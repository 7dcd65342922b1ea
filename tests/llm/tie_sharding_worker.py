"""One of two ranks: trains a tied transformers model under FSDP2; run by test_tie_sharding.

python tie_sharding_worker.py <output form> <file to meet at> <rank>
"""

import copy
import os
import sys

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.fsdp import fully_shard
from transformers import PhiConfig, PhiForCausalLM

from ropewalk.llm import tie

WHOLE = StateDictOptions(full_state_dict=True)


def make(form):
    """With a bias in its head, tied in this form."""
    config = PhiConfig(
        vocab_size=48, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, pad_token_id=0, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model = PhiForCausalLM(config).train()
    tie(model, output=form, fused_loss=True)
    return model


def shard(model):
    for layer in model.model.layers:
        fully_shard(layer)
    return fully_shard(model)


def train(model, tokens):
    # Not Adam, which makes steps of the rounding in gradients that are zero (of key biases).
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    losses = []
    for _ in range(4):
        output = model(tokens, labels=tokens)
        assert output.logits is None
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(output.loss.detach().clone())
    return torch.stack(losses)


def main(form, meeting, rank):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    single = make(form)
    tokens = torch.randint(2, 48, (4, 12), generator=torch.Generator().manual_seed(1))
    start = copy.deepcopy(single.state_dict())
    expected = train(single, tokens)
    # Sharded as it is; and emptied, then filled from the first rank alone.
    for emptied in (False, True):
        model = shard(make(form))
        if emptied:
            model.to_empty(device="cpu")
            for name, buffer in single.named_buffers():
                model.get_buffer(name).copy_(buffer)
            options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
            set_model_state_dict(model, dict(start) if rank == 0 else {}, options=options)
        losses = train(model, tokens[2 * rank : 2 * rank + 2])
        dist.all_reduce(losses)  # gloo has no mean
        torch.testing.assert_close(losses / 2, expected, rtol=1e-5, atol=1e-6)
        assert model.lm_head.embedding is model.model.embed_tokens
        end = get_model_state_dict(model, options=WHOLE)
        if rank == 0:
            torch.testing.assert_close(end, dict(single.state_dict()), rtol=1e-4, atol=1e-5)
    dist.barrier()
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    sys.stdout.flush()
    # Without the interpreter's end, which at times aborts in a thread of the process group.
    os._exit(0)

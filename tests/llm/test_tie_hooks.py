"""Hooks that were put on the ends of a tied model go on after `untie`."""

import torch

from ropewalk.llm import tie, untie


def test_inputs_go_on_to_require_gradients(make_model, tokens):
    model = make_model(tie_word_embeddings=True)
    tie(model)
    model.requires_grad_(False)
    model.enable_input_require_grads()
    for undo in (lambda: untie(model), model.disable_input_require_grads):
        assert model.model(tokens).last_hidden_state.requires_grad
        undo()
    assert not model.model(tokens).last_hidden_state.requires_grad


def test_checkpointing_goes_on(make_model, tokens):
    model = make_model(tie_word_embeddings=True).train()
    tie(model, fused_loss=True)
    model.activation_checkpointing_enable()
    hooks = len(model.model.embed_tokens._forward_hooks)
    untie(model)
    assert len(model.model.embed_tokens._forward_hooks) == hooks
    model(tokens, labels=tokens, use_cache=False).loss.backward()
    assert model.lm_head.weight.grad.any()


def test_every_kind_of_hook_keeps_its_handle(make_model, tokens):
    model = make_model(tie_word_embeddings=True)
    tie(model)
    called = []
    handles = []
    for end in (model.model.embed_tokens, model.lm_head):
        handles += [
            end.register_forward_pre_hook(lambda *_: called.append("pre")),
            end.register_forward_hook(lambda *_: called.append("forward")),
            end.register_forward_hook(
                lambda module, args, kwargs, output: called.append("kwargs"), with_kwargs=True
            ),
            end.register_full_backward_pre_hook(lambda *_: called.append("backward pre")),
            end.register_full_backward_hook(lambda *_: called.append("backward")),
        ]
    untie(model)
    hidden = torch.randn(1, 32, requires_grad=True)
    model.lm_head(hidden).sum().backward()
    assert called == ["pre", "forward", "kwargs", "backward pre", "backward"]
    called.clear()
    model.model.embed_tokens(tokens)
    assert called[:3] == ["pre", "forward", "kwargs"]
    for handle in handles:
        handle.remove()
    called.clear()
    model(tokens).logits.sum().backward()
    assert not called

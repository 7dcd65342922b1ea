"""What is gathered of a model's inputs, and what it is good for."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from ropewalk.blocks.monarch.conversion import monarchize
from ropewalk.blocks.monarch.conversion.calibration import gather


def moment_of(rows: Tensor) -> Tensor:
    return (rows.double().mT @ rows.double()) / len(rows)


def test_the_moment_is_that_of_all_rows_of_all_batches() -> None:
    layer = nn.Linear(6, 4)
    rows = torch.randn(40, 6)
    for batches in (
        [rows],
        rows.split(7),
        [(rows.view(5, 8, 6),)],
        [{"input": rows}],
        [[rows]],
    ):
        found = gather(layer, [layer], batches, progress=False)[layer]
        assert found.rows == 40
        torch.testing.assert_close(found.mean().double(), moment_of(rows), atol=1e-5, rtol=1e-5)
    one = gather(layer, [layer], [rows[0]], progress=False)[layer]
    assert one.rows == 1


def test_it_is_in_float32_whatever_the_model_computes_in() -> None:
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        layer = nn.Linear(6, 4, dtype=dtype)
        rows = (torch.randn(3000, 6) * 3).to(dtype)
        with torch.autocast("cpu", enabled=dtype == torch.float32):
            moment = gather(layer, [layer], [rows], progress=False)[layer].mean()
        assert moment.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(moment.double(), moment_of(rows), atol=1e-5, rtol=1e-5)


class Encoder(nn.Module):
    """Reads ids, perhaps with a mask, through one layer; flat, as experts read, if told so."""

    def __init__(self, *, flat: bool) -> None:
        super().__init__()
        self.embedding, self.layer, self.flat = nn.Embedding(9, 6), nn.Linear(6, 4), flat

    def forward(self, input_ids: Tensor, attention_mask: Any = None, **rest: Any) -> Tensor:
        x = self.embedding(input_ids)
        return self.layer(x.flatten(0, 1) if self.flat else x)


@pytest.mark.parametrize("flat", [False, True])
def test_padding_is_left_out(flat) -> None:
    model = Encoder(flat=flat)
    ids = torch.tensor([[1, 2, 3, 0], [4, 0, 0, 0]])
    batch = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    found = gather(model, [model.layer], [batch], progress=False)[model.layer]
    assert found.rows == 4
    expected = moment_of(model.embedding.weight[[1, 2, 3, 4]].detach())
    torch.testing.assert_close(found.mean().double(), expected, atol=1e-6, rtol=1e-5)
    # Masks of attention itself, or of another length, say nothing of these rows.
    for mask in (torch.ones(2, 1, 4, 4), torch.ones(2, 3), None):
        batch = {"input_ids": ids, "attention_mask": mask}
        assert gather(model, [model.layer], [batch], progress=False)[model.layer].rows == 8
    # Where a decoder reads as many positions, whose they are cannot be told.
    model.config = type("Config", (), {"is_encoder_decoder": True})()
    batch = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    for decoder, rows in ((torch.zeros(2, 5), 4), (torch.zeros(2, 4), 8)):
        labelled = {**batch, "labels": decoder.long()}
        assert gather(model, [model.layer], [labelled], progress=False)[model.layer].rows == rows
    masked = {**batch, "decoder_attention_mask": batch["attention_mask"], "labels": ids}
    assert gather(model, [model.layer], [masked], progress=False)[model.layer].rows == 4


def test_positions_with_more_axes_after_them() -> None:
    class Heads(Encoder):
        def forward(self, input_ids: Tensor, attention_mask: Any = None) -> Tensor:
            return self.layer(self.embedding(input_ids).unsqueeze(2).expand(-1, -1, 3, -1))

    ids = torch.tensor([[1, 2, 3, 0], [4, 0, 0, 0]])
    batch = {"input_ids": ids, "attention_mask": ids != 0}
    model = Heads(flat=False)
    found = gather(model, [model.layer], [batch], progress=False)[model.layer]
    assert found.rows == 12
    expected = moment_of(model.embedding.weight[[1, 2, 3, 4]].detach())
    torch.testing.assert_close(found.mean().double(), expected, atol=1e-6, rtol=1e-5)


def test_a_layer_that_the_calibration_never_reaches_is_projected_by_weight(
    make_model, inputs
) -> None:
    model, plain = make_model(), make_model()
    report = monarchize(model, match="*", nblocks=2, rank=1, calibration=lambda _: model[0](inputs))
    monarchize(plain, match="*", nblocks=2, rank=1)
    errors = {row.name: row.output_error for row in report.layers}
    assert [name for name, error in errors.items() if error is None] == [
        "1.mlp.up",
        "1.mlp.down",
        "2",
    ]
    assert "never came here" in str(report)
    assert torch.equal(model[2].right, plain[2].right)
    assert not torch.equal(model[0].mlp["up"].right, plain[0].mlp["up"].right)


def test_inputs_that_are_not_finite_are_refused(make_model, inputs) -> None:
    model = make_model()
    inputs[0, 0, 0] = float("inf")
    with pytest.raises(ValueError, match=r"0\.mlp\.up: calibration: expected finite inputs"):
        monarchize(model, match="*.mlp.*", nblocks=2, rank=1, calibration=[inputs])


def test_the_model_is_run_in_evaluation_mode_and_without_gradients(inputs) -> None:
    seen = []

    class Probe(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append((self.training, torch.is_grad_enabled()))
            return x

    model = nn.Sequential(Probe(), nn.Dropout(0.5), nn.Linear(24, 8)).train()
    monarchize(model, match="*", nblocks=2, rank=1, calibration=[inputs])
    assert seen == [(False, False)]
    assert all(module.training for module in model.modules())


def test_the_bundled_model_loses_much_less_on_text_it_has_not_seen() -> None:
    """By output on held-out text, layer by layer; and in the loss of the whole."""
    from ropewalk.evals.default_model import held_out_documents
    from ropewalk.evals.default_model.architecture import to_tokens
    from ropewalk.evals.models import open_model

    dense = open_model("default").load(dtype=torch.float32, device=torch.device("cpu"))
    texts = [torch.from_numpy(to_tokens(d.text.encode()[4096:6144])) for d in held_out_documents()]
    calibration, held_out = (torch.stack(part).view(-1, 256) for part in (texts[:2], texts[2:4]))
    layers = ["model.layers.1.mlp.*", "model.layers.4.mlp.*"]
    inputs: dict[str, Tensor] = {}
    names = [f"{layer[:-2]}.{name}_proj" for layer in layers for name in ("gate", "up", "down")]
    for name in names:
        dense.get_submodule(name).register_forward_hook(
            lambda _, args, output, name=name: inputs.__setitem__(name, args[0])
        )

    @torch.no_grad()
    def loss(model: Any) -> float:
        logits = model(input_ids=held_out).logits[:, :-1]
        return functional.cross_entropy(logits.mT, held_out[:, 1:]).item()

    losses = {"dense": loss(dense)}
    errors: dict[str, list[float]] = {}
    for kind, batches in (("plain", None), ("calibrated", calibration.split(16))):
        model = copy.deepcopy(dense)
        report = monarchize(
            model, match=layers, nblocks=4, target_compression=3, calibration=batches
        )
        assert [row.name for row in report.layers] == names
        losses[kind] = loss(model)
        with torch.no_grad():
            for name in names:
                before, after = (m.get_submodule(name).weight for m in (dense, model))
                x = inputs[name].flatten(0, -2)
                error = (x @ (before - after).mT).norm() / (x @ before.mT).norm()
                errors.setdefault(kind, []).append(float(error))
    assert all(b < 0.8 * a for a, b in zip(errors["plain"], errors["calibrated"], strict=True))
    assert losses["calibrated"] - losses["dense"] < 0.5 * (losses["plain"] - losses["dense"])


def test_what_a_model_says_of_a_batch_names_the_batch() -> None:
    model = Encoder(flat=False)
    good = {"input_ids": torch.tensor([[1, 2]])}
    cases: list[tuple[Any, type[Exception], str]] = [
        (
            {"ids": good["input_ids"]},
            TypeError,
            r"batch 1: Encoder failed on it \(ids\): .*missing",
        ),
        (torch.full((1, 2), 99), RuntimeError, r"batch 1: Encoder failed on it \(Tensor\): index"),
        (3, TypeError, "batch 1: expected batches that are a tensor"),
    ]
    for batch, kind, message in cases:
        with pytest.raises(kind, match=f"^calibration: {message}") as caught:
            gather(model, [model.layer], [good, batch], progress=False)
        assert isinstance(batch, int) or caught.value.__cause__ is not None


@pytest.mark.parametrize("name", ["atention_mask", "attention_masks", "Attention_Mask"])
def test_a_misspelt_mask_is_refused_where_nobody_would_read_it(name) -> None:
    model = Encoder(flat=False)
    ids = torch.tensor([[1, 2, 3, 0]])
    with pytest.raises(ValueError, match=f"batch 0: .*got '{name}'.*'attention_mask' meant"):
        gather(model, [model.layer], [{"input_ids": ids, name: ids != 0}], progress=False)
    # Other names are the model's affair.
    for other in ("cross_attention_mask", "encoder_attention_mask", "num_items_in_batch"):
        batch = {"input_ids": ids, other: 1}
        assert gather(model, [model.layer], [batch], progress=False)[model.layer].rows == 4

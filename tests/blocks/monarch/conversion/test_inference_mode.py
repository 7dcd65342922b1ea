"""Converting where no gradients are wanted, and training afterwards."""

import pytest
import torch

from ropewalk.blocks.monarch.conversion import load_monarch_state_dict, merge, monarchize


@pytest.mark.parametrize("calibrated", [False, True])
def test_layers_made_there_can_be_trained(make_model, inputs, calibrated) -> None:
    model, loaded = make_model(), make_model()
    with torch.inference_mode():
        options = {"calibration": [inputs]} if calibrated else {}
        monarchize(model, match="*", nblocks=2, rank=1, **options)
        load_monarch_state_dict(loaded, model.state_dict())
    merged = make_model()
    load_monarch_state_dict(merged, model.state_dict())
    with torch.inference_mode():
        merge(merged)
    for trained in (model, loaded, merged):
        trained(inputs).square().sum().backward()
        assert all(p.grad is not None and p.grad.any() for p in trained.parameters())

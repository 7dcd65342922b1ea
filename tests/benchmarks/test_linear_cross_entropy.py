"""The vocabulary loss's peers compute its definition, a wrong one shows, inputs are as said."""

import inspect
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional

from benchmarks.case import Unavailable, Work
from benchmarks.goals import additional_mib, peak_mib
from benchmarks.linear_cross_entropy import IGNORE_INDEX, LossShape, LossWorkload
from benchmarks.peers import linear_cross_entropy as peers
from benchmarks.peers import loss_libraries
from benchmarks.roofline import linear_cross_entropy_work
from benchmarks.suites import make_suite
from benchmarks.token_distributions import draw

FUSED = hasattr(functional, "linear_cross_entropy")
ON_CPU = ["auto", "reference", "reference-skipping", "materialised"]
ON_CPU += ["torch-fused", "torch-fused-512"] if FUSED else []


def workload(dtype=torch.float32, **options) -> LossWorkload:
    return LossWorkload(LossShape(200, 24, 700, dtype, "cpu", **options))


@pytest.mark.parametrize("ignored", [0.0, 0.5])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "training"])
@pytest.mark.parametrize("distribution", ["initial", "trained"])
@pytest.mark.parametrize("peer", ON_CPU)
def test_peers_agree_with_the_oracle(peer, distribution, backward, ignored):
    problem = workload(distribution=distribution, ignored=ignored, backward=backward)
    problem.build(peer)()
    assert problem.check(peer).error < 1e-5


def test_the_oracle_is_the_definition_differentiated():
    problem = workload(distribution="trained", ignored=0.5)
    hidden, weight = (
        x.detach().double().requires_grad_() for x in (problem.hidden, problem.weight)
    )
    loss = functional.cross_entropy(hidden @ weight.T, problem.targets)
    hidden_grad, weight_grad = torch.autograd.grad(loss, (hidden, weight))
    torch.testing.assert_close(problem._loss, loss.detach())
    of_hidden, *of_weight = problem._expected_gradients
    torch.testing.assert_close(of_hidden, hidden_grad[problem._rows])
    for found, columns in zip(of_weight, problem._columns, strict=True):
        torch.testing.assert_close(found, weight_grad[columns])


def test_rows_of_the_weight_are_of_both_kinds():
    problem = workload(ignored=0.5)
    targets, others = problem._columns
    valid = problem.targets[problem.targets != IGNORE_INDEX]
    assert torch.isin(targets, valid).all()
    assert not torch.isin(others, valid).any()
    everybody = LossWorkload(LossShape(500, 8, 3, torch.float32, "cpu"))
    assert len(everybody._columns) == 1
    everybody.build("auto")()
    assert everybody.check("auto").error < 1e-5


@pytest.mark.parametrize("distribution", ["initial", "trained"])
@pytest.mark.parametrize("peer", ["auto", "auto-skipping", "materialised"])
def test_half_precision_passes_with_room(peer, distribution):
    problem = workload(torch.bfloat16, distribution=distribution)
    problem.build(peer)()
    check = problem.check(peer)
    assert check.error < 0.8 * check.tolerance


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "training"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wrong_result_is_found_out(dtype, backward):
    """Tokens left out, another scale, a gradient of other columns than its loss, no number."""
    problem = workload(dtype, backward=backward)
    right = peers.build("auto", problem)
    detached = problem.weight.detach()
    wrong = {
        "another scale": lambda h, w, y: 1.1 * right(h, w, y),
        "a part of the columns": lambda h, w, y: right(h, w[:-350], y % (len(w) - 350)),
        "not a number": lambda h, w, y: right(h, w, y) * float("nan"),
    }
    if backward:  # the loss of a part is no other than that of all, in half precision
        wrong["a part of the tokens"] = lambda h, w, y: right(h[:150], w, y[:150])
        wrong["no gradient of other columns"] = lambda h, w, y: functional.cross_entropy(
            (h @ detached.T)
            .float()
            .scatter_add(1, y[:, None], (h * (w[y] - detached[y])).sum(1)[:, None].float()),
            y,
        )
    for what, loss in wrong.items():
        problem._losses["auto"] = loss
        assert not problem.check("auto").passes, what


def test_a_peer_that_may_skip_is_judged_by_all_columns_together():
    problem = workload(torch.bfloat16, distribution="trained")
    problem.build("auto-skipping")()
    problem.build("auto")()
    assert problem.check("auto-skipping").tolerance > problem.check("auto").tolerance


@pytest.mark.parametrize(
    ("peer", "reason"),
    [
        ("triton", "backend 'triton' cannot run"),
        ("triton-skipping", "backend 'triton' cannot run"),
        *((peer, r"is not installed|needs a GPU") for peer in loss_libraries.BUILDERS),
    ],
)
def test_a_peer_that_cannot_take_part_says_why(monkeypatch, peer, reason):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(Unavailable, match=reason):
        workload().build(peer)


def test_torch_without_the_fused_loss_says_so(monkeypatch):
    monkeypatch.delattr(functional, "linear_cross_entropy", raising=False)
    with pytest.raises(Unavailable, match=r"has no F\.linear_cross_entropy; 2\.13 has"):
        workload().build("torch-fused")


def test_a_library_that_does_not_import_is_absent(monkeypatch):
    monkeypatch.setattr(loss_libraries.importlib.util, "find_spec", lambda name: name)

    def fail(name):
        raise AttributeError("module 'triton' has no attribute 'gone'\nmore")

    monkeypatch.setattr(loss_libraries.importlib, "import_module", fail)
    reason = "^liger-kernel cannot be imported: module 'triton' has no attribute 'gone'$"
    with pytest.raises(Unavailable, match=reason):
        loss_libraries._imported("liger-kernel", "liger_kernel.transformers", "cuda")


def of_logits(hidden, weight, targets):
    return functional.cross_entropy(hidden @ weight.T, targets)


class Told:
    """What a library was called with; the loss itself is torch's."""

    def __init__(self) -> None:
        self.options: dict = {}

    def released(self, e, c, targets, ignore_index=-100, filter_eps="high", impl="cce"):
        self.options = {"filter_eps": filter_eps, "impl": impl}
        return of_logits(e, c, targets)

    def with_presets(self, e, c, targets, filter_eps="auto", accum_c_fp32=False, impl="cce"):
        self.options = {"impl": impl}
        return of_logits(e, c, targets)

    def quack(self, x, weight, target, chunk_size=4096):
        return of_logits(x, weight, target)

    def liger(self):
        told = self

        class LigerFusedLinearCrossEntropyLoss:
            def __init__(self, ignore_index=-100, accum_dtype=None):
                told.options = {"accum_dtype": accum_dtype}

            def __call__(self, lin_weight, _input, target, bias=None):
                return of_logits(_input, lin_weight, target)

        return LigerFusedLinearCrossEntropyLoss


@pytest.mark.parametrize(
    ("peer", "function", "options"),
    [
        ("cce", "released", {"filter_eps": "high", "impl": "cce"}),
        ("cce-exact", "released", {"filter_eps": None, "impl": "cce"}),
        ("cce", "with_presets", {"impl": "cce"}),
        ("cce-exact", "with_presets", {"impl": "cce_exact"}),
        ("cce-kahan", "with_presets", {"impl": "cce_kahan_full_c"}),
        ("liger", "liger", {"accum_dtype": None}),
        ("liger-float32", "liger", {"accum_dtype": torch.float32}),
        ("quack", "quack", {}),
    ],
)
def test_libraries_are_called_as_they_are_documented(monkeypatch, peer, function, options):
    told = Told()
    module = SimpleNamespace(
        linear_cross_entropy=getattr(told, function),
        chunked_linear_cross_entropy=told.quack,
        LigerFusedLinearCrossEntropyLoss=told.liger(),
    )
    monkeypatch.setattr(loss_libraries, "_imported", lambda *names: module)
    problem = LossWorkload(LossShape(200, 24, 704, torch.float32, "cpu"))
    problem.build(peer)()
    assert told.options == options
    assert problem.check(peer).error < 1e-5


@pytest.mark.parametrize(
    ("peer", "reason"),
    [("cce-kahan", "no preset cce_kahan_full_c"), ("liger-float32", "no accum_dtype")],
)
def test_an_option_that_an_older_release_lacks_is_a_reason(monkeypatch, peer, reason):
    module = SimpleNamespace(
        linear_cross_entropy=Told().released, LigerFusedLinearCrossEntropyLoss=lambda: None
    )
    monkeypatch.setattr(loss_libraries, "_imported", lambda *names: module)
    with pytest.raises(Unavailable, match=reason):
        workload().build(peer)


def test_quack_says_which_size_it_cannot_take(monkeypatch):
    monkeypatch.setattr(loss_libraries, "_imported", lambda *names: SimpleNamespace())
    with pytest.raises(Unavailable, match="multiples of 8: 700"):
        workload().build("quack")


def test_inputs_are_as_sharp_as_said():
    generator = torch.Generator().manual_seed(0)
    drawn = {kind: draw(kind, 1024, 256, 32768, generator) for kind in ("initial", "trained")}
    logits = {kind: hidden @ weight.T for kind, (hidden, weight, _) in drawn.items()}
    losses = {
        kind: functional.cross_entropy(logits[kind], drawn[kind].targets).item() for kind in drawn
    }
    assert losses["initial"] == pytest.approx(torch.tensor(32768.0).log().item() + 0.5, abs=0.1)
    assert 2 < losses["trained"] < 3
    probabilities = logits["trained"].softmax(-1)
    assert 0.6 < probabilities.amax(-1).mean() < 0.75
    assert 1e-3 < (probabilities > 2**-12).float().mean() < 3e-3
    entropy = -(probabilities * probabilities.log()).sum(-1).mean().item()
    assert losses["trained"] == pytest.approx(entropy, abs=0.3)  # targets are drawn from it


def test_half_of_the_targets_are_ignored():
    problem = workload(ignored=0.5)
    assert int((problem.targets == IGNORE_INDEX).sum()) == 100 == problem.shape.valid
    assert int((workload().targets == IGNORE_INDEX).sum()) == 0


def test_work_counted_by_hand():
    sizes = {"tokens": 5, "valid": 4, "dim": 3, "vocabulary": 7, "itemsize": 2}
    forward = linear_cross_entropy_work(**sizes, backward=False)
    assert forward == Work(2 * 4 * 3 * 7, 2 * (5 + 7) * 3 + 8 * 5)
    training = linear_cross_entropy_work(**sizes, backward=True)
    assert training == Work(3 * 2 * 4 * 3 * 7, 2 * 2 * (5 + 7) * 3 + 8 * 5)


def test_goals_are_judged_by_the_main_sizes():
    assert {goal["name"] for goal in make_suite("linear_cross_entropy", "cpu").goals({})} == {
        "forward and backward: speed over materialised logits",
        "forward and backward: additional memory over that of materialised logits",
        "forward and backward: additional memory beside the gradients",
    }
    suite = make_suite("linear_cross_entropy", "cuda")
    gradients = (8192 + 256000) * 2304 * 2 / 2**20
    times = {"triton": 2.0, "triton-skipping": 1.0, "cce-exact": 2.0, "cce": 1.5, "liger": 1.9}
    figures = {peer: {"median_ms": ms, "peak_mib": 1.2 * gradients} for peer, ms in times.items()}
    figures["triton-skipping"]["peak_mib"] = 1.05 * gradients
    results = {
        f"{kind}/training/8192x2304x256000": {"peers": figures} for kind in ("initial", "trained")
    }
    status = {goal["name"]: goal["status"] for goal in suite.goals(results)}
    for kind in ("initial", "trained"):
        prefix = f"{kind}, forward and backward"
        assert status.pop(f"{prefix}: speed over ml-cross-entropy, exact") == "pass"
        assert status.pop(f"{prefix}: speed over ml-cross-entropy, skipping") == "pass"
        assert status.pop(f"{prefix}: speed over Liger") == "miss"
        over = "peak memory over that of the gradients"
        assert status.pop(f"{prefix}, triton: {over}") == "miss"
        assert status.pop(f"{prefix}, triton-skipping: {over}") == "pass"
    assert not status


def test_memory_figures_come_from_the_case():
    results = {"case": {"peers": {"a": {"additional_mib": 3.0}, "b": {"peak_mib": 4.0}}}}
    assert additional_mib(results, "case", "a") == 3.0
    assert peak_mib(results, "case", "b") == 4.0


def test_every_peer_has_a_line_in_its_module():
    told = inspect.getdoc(peers) or ""
    named = {*peers.BACKENDS, *loss_libraries.BUILDERS, "materialised", "torch-fused"}
    assert all(name in told for name in named)

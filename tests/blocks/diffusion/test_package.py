"""The package: everything from one place, and no other library is imported for it."""

import subprocess
import sys

from ropewalk.blocks import diffusion

PARTS = ("guidance", "ode", "process", "sampler", "schedule", "solvers", "train")
# Types of annotations, base classes, and what only the rest of the package needs.
INNER = {
    *("Affine", "Continuous", "Discrete", "EditNoise", "Guided", "Predict"),
    *("Callback", "Progress", "Times", "Weighting"),
    *("Run", "Span", "Stepped", "named"),
}


def test_what_the_parts_offer_can_be_had_from_the_package():
    for name in PARTS:
        part = getattr(diffusion, name)
        for each in set(part.__all__) - INNER:
            assert getattr(diffusion, each) is getattr(part, each)
            assert each in diffusion.__all__
    assert len(set(diffusion.__all__)) == len(diffusion.__all__)


def test_importing_it_imports_no_other_library():
    others = ("torchdiffeq", "diffusers", "triton", "transformers", "rich", "scipy")
    code = (
        "import sys, ropewalk.blocks.diffusion as package\n"
        "for name in package.__all__: getattr(package, name)\n"
        f"print(sorted(set(sys.modules) & set({others!r})))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"

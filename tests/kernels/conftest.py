"""Where kernels run, how exact they must be, and what their compiled code takes.

kernel_device     the interpreter, or a CUDA device: the same cases prove a kernel on both
as_exact_as       the rule for half precision
uninitialised     fresh memory holds NaN, so that nobody reads what nobody wrote
peaks             peak memory, of a process of its own
compile_kernel    a kernel with given types and constants, compiled for a chip that is not here
compile_launches  what a host function would launch there, compiled and not run
"""

import contextlib
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor


@pytest.fixture(
    params=[
        pytest.param("cpu", marks=pytest.mark.interpret),
        pytest.param("cuda", marks=pytest.mark.gpu),
    ]
)
def kernel_device(request: pytest.FixtureRequest) -> torch.device:
    """Where Triton kernels run here: interpreted on the CPU, or on a CUDA device."""
    return torch.device(request.param)


def check_as_exact_as(
    peer: Tensor, ours: Tensor, truth: Tensor, *, times: float = 2.0, floor: float = 1e-5
) -> None:
    """Our greatest error is at most `times` plain torch's in the same dtype, plus a floor.

    Args:
        peer: what plain torch gives in the dtype of `ours`.
        ours: what the kernel gives.
        truth: the same in float64.
        times: how much worse than torch a kernel may be.
        floor: relative to the truth's greatest magnitude; torch may be exact by luck.
    """
    assert ours.shape == truth.shape, f"expected shape {truth.shape}, got {ours.shape}"
    ours, peer, truth = ours.double().cpu(), peer.double().cpu(), truth.double().cpu()
    finite = truth.isfinite()
    torch.testing.assert_close(ours[~finite], truth[~finite], rtol=0, atol=0)
    ours, peer, truth = ours[finite], peer[finite], truth[finite]
    if truth.numel() == 0:
        return
    error, allowed = (ours - truth).abs().max(), (peer - truth).abs().max()
    limit = times * allowed + floor * truth.abs().max()
    # A NaN on our side makes the comparison false, one on torch's side too.
    assert error <= limit, f"error {error:.3g}, plain torch's {allowed:.3g}, limit {limit:.3g}"


@pytest.fixture(scope="session")
def as_exact_as() -> Callable[..., None]:
    """`check_as_exact_as(peer, ours, truth)`."""
    return check_as_exact_as


@pytest.fixture
def uninitialised(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.empty and its relatives give NaN, so that what a kernel leaves unwritten shows."""

    def poisoned(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def empty(*args: Any, **kwargs: Any) -> Tensor:
            fresh = make(*args, **kwargs)
            return fresh.fill_(torch.nan) if fresh.is_floating_point() else fresh

        return empty

    for owner, name in (
        (torch, "empty"), (torch, "empty_like"), (torch, "empty_strided"),
        (Tensor, "new_empty"), (Tensor, "new_empty_strided"),
    ):  # fmt: skip
        monkeypatch.setattr(owner, name, poisoned(getattr(owner, name)))


PEAK_OF = """
from pathlib import Path

def resident(field):  # VmRSS now, VmHWM at its peak
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024

def peak_of(call):
    # The peak that getrusage tells may be that of the process which started this one.
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    call()
    return resident("VmHWM") - before
"""


@pytest.fixture
def peaks() -> Callable[..., list[int]]:
    """`peaks(script, *arguments)`: the numbers of bytes that a script prints.

    It runs in a process of its own, where `peak_of(call)` gives the peak of the resident memory
    during a call beyond what was held before it.
    """
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("peak memory is read from /proc, which this system lacks")

    def measured(script: str, *arguments: object) -> list[int]:
        command = [sys.executable, "-c", PEAK_OF + script, *map(str, arguments)]
        run = subprocess.run(command, check=True, capture_output=True, text=True)
        return list(map(int, run.stdout.split()))

    return measured


@dataclass(frozen=True)
class Chip:
    """What a kernel may use there, and what host code may ask about it."""

    capability: tuple[int, int]
    shared_limit: int
    processors: int


CHIPS = {
    80: Chip((8, 0), 163 * 1024, 108),
    89: Chip((8, 9), 99 * 1024, 128),
    90: Chip((9, 0), 227 * 1024, 132),
}


@dataclass(frozen=True)
class Compiled:
    """What a compiled kernel takes.

    Attributes:
        name: the kernel's.
        arch: a key of CHIPS.
        constexprs: by name.
        shared: bytes of shared memory of a program.
        registers: of a thread.
        stack: bytes of local memory of a thread.
        spill_bytes: of them, stored and loaded because registers ran out.
        seconds: the compiler's time; next to nothing where its cache already held the kernel.
        asm: the stages of the compilation.
    """

    name: str
    arch: int
    constexprs: dict[str, Any]
    shared: int
    registers: int
    stack: int
    spill_bytes: int
    seconds: float
    asm: dict[str, Any]

    def __str__(self) -> str:
        return (
            f"{self.name} sm_{self.arch}: {self.shared} bytes shared, {self.registers} registers, "
            f"{self.stack} bytes stack, {self.spill_bytes} bytes spilled, {self.seconds:.1f} s"
        )

    def check(self) -> None:
        """Fits into the chip's shared memory and spills nothing."""
        limit = CHIPS[self.arch].shared_limit
        assert self.shared <= limit, f"{self}; at most {limit} bytes shared"
        assert self.spill_bytes == 0, f"{self}; {self.constexprs}"


def _resources(asm: dict[str, Any], arch: int, folder: Path) -> tuple[int, int, int]:
    """(registers, bytes of stack, bytes spilled)."""
    from triton import knobs

    cubin = folder / "kernel.cubin"
    cubin.write_bytes(asm["cubin"])
    tool = knobs.nvidia.cuobjdump.path
    usage = subprocess.check_output([tool, "--dump-resource-usage", cubin], text=True)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found is not None, usage
    registers, stack = int(found[1]), int(found[2])
    if stack == 0:  # spilled registers live on the stack
        return registers, stack, 0
    ptx = folder / "kernel.ptx"
    ptx.write_text(asm["ptx"])
    target = f"sm_{arch}a" if arch >= 90 else f"sm_{arch}"
    command = [knobs.nvidia.ptxas.path, "-v", "-lineinfo", f"--gpu-name={target}", ptx]
    ran = subprocess.run(
        [*command, "-o", folder / "again.cubin"], check=True, capture_output=True, text=True
    )
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", ran.stderr)
    assert spills is not None, ran.stderr
    return registers, stack, int(spills[1]) + int(spills[2])


@pytest.fixture
def compile_kernel(tmp_path: Path) -> Callable[..., Compiled]:
    """`compile_kernel(kernel, signature, constexprs, arch=90, num_warps=4, num_stages=2)`.

    `signature` gives a type ("*bf16", "i32", "fp32") or an example (a tensor, which may be a meta
    tensor, or a number) by argument; examples are specialised as a launch does it: addresses and
    integers that 16 divides are known to be so, and an integer 1 is a constant.
    """

    def compiled(
        kernel: Any,
        signature: dict[str, Any],
        constexprs: dict[str, Any],
        *,
        arch: int,
        num_warps: int = 4,
        num_stages: int = 2,
        **options: Any,
    ) -> Compiled:
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler.compiler import ASTSource, make_backend
        from triton.runtime.errors import PTXASError
        from triton.runtime.jit import create_function_from_signature

        target = GPUTarget("cuda", arch, 32)
        backend = make_backend(target)
        # The launcher's own functions, so that what is compiled here is what runs there. An
        # argument that is only a type passes through them as a number that is no multiple of 16.
        given = {name: x if not isinstance(x, str) else 3 for name, x in signature.items()}
        bind = create_function_from_signature(kernel.signature, kernel.params, backend)
        options |= {"num_warps": num_warps, "num_stages": num_stages}
        bound, specialization, options = bind(**given, **constexprs, **options)
        packed = kernel._pack_args(backend, options, bound, specialization, options)
        parsed, types, constants, attributes = packed
        types |= {name: x for name, x in signature.items() if isinstance(x, str)}
        source = ASTSource(kernel, types, constants, attributes)
        start = time.perf_counter()
        try:
            # Where the assembler gives up, Triton prints all of the assembly.
            with contextlib.redirect_stdout(None):
                result = triton.compile(source, target=target, options=parsed.__dict__)
        except PTXASError as error:
            pytest.fail(f"{kernel.__name__} sm_{arch} {constexprs}: {error}", pytrace=False)
        seconds = time.perf_counter() - start
        registers, stack, spilled = _resources(result.asm, arch, tmp_path)
        return Compiled(
            kernel.__name__, arch, constexprs, result.metadata.shared,
            registers, stack, spilled, seconds, dict(result.asm),
        )  # fmt: skip

    return compiled


@pytest.fixture
def compile_launches(
    compile_kernel: Callable[..., Compiled], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[Compiled]]:
    """`compile_launches(host, *args, arch=90)` calls the host function and compiles its launches.

    Nothing runs: tensors may be meta tensors of full size, and outputs hold no values. Host code
    that asks torch for the device's capability or number of processors hears the chip's.
    """
    from triton.runtime.jit import JITFunction

    def launches(host: Callable[..., Any], *args: Any, arch: int, **kwargs: Any) -> list[Compiled]:
        chip, seen = CHIPS[arch], []

        def record(self: Any, *given: Any, grid: Any, warmup: bool, **named: Any) -> None:
            positional = dict(zip(self.arg_names, given, strict=False))
            constants = {self.arg_names[index] for index in self.constexprs}
            arguments = positional | {k: v for k, v in named.items() if k in self.arg_names}
            options = {k: v for k, v in named.items() if k not in self.arg_names}
            signature = {k: v for k, v in arguments.items() if k not in constants}
            constexprs = {k: v for k, v in arguments.items() if k in constants}
            seen.append(compile_kernel(self, signature, constexprs, arch=arch, **options))

        with monkeypatch.context() as patch:
            patch.setattr(JITFunction, "run", record)
            patch.setattr(torch.cuda, "get_device_capability", lambda *_: chip.capability)
            patch.setattr(torch.cuda, "get_device_properties", lambda *_: _Properties(chip))
            host(*args, **kwargs)
        assert seen, f"{host} launched nothing"
        return seen

    return launches


@dataclass(frozen=True)
class _Properties:
    """The part of a device's properties that host code asks for."""

    chip: Chip

    @property
    def multi_processor_count(self) -> int:
        return self.chip.processors

    @property
    def major(self) -> int:
        return self.chip.capability[0]

    @property
    def minor(self) -> int:
        return self.chip.capability[1]


@pytest.fixture(params=[80, 90], ids="sm_{}".format)
def arch(request: pytest.FixtureRequest) -> int:
    """The chips that kernels are compiled for."""
    return request.param

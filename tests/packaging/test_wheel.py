"""The wheel holds every sub-package, and nothing in the repository shadows an installed package."""

import importlib.util
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

pytestmark = [pytest.mark.packaging, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("blocks", "kernels", "llm", "evals")
OPTIONAL = ROOT / ".venv" / "optional"
IMPORT_TRANSFORMERS = (
    "import transformers; from transformers import LlamaForCausalLM; "
    "from transformers.utils import is_kernels_available; import importlib.util; "
    "found = importlib.util.find_spec('kernels'); "
    "print(is_kernels_available(), found.origin if found else None)"
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy so that a stale `build/` folder cannot leak into it."""
    source = tmp_path_factory.mktemp("source")
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    for name in tracked:
        origin = ROOT / name
        if origin.is_file():
            target = source / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(origin.read_bytes())
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out)]
    built = subprocess.run([*command, str(source)], capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def python(code: str, *, path: list[Path], cwd: Path, processing_pth: bool) -> str:
    """Runs `code`; without `.pth` files an editable install cannot take part."""
    flags = [] if processing_pth else ["-S"]
    site = [] if processing_pth else [Path(sysconfig.get_path("purelib"))]
    result = subprocess.run(
        [sys.executable, *flags, "-c", code],
        cwd=cwd,
        env={"PYTHONPATH": ":".join(map(str, [*path, *site])), "PATH": "", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_the_wheel_holds_every_sub_package_and_its_typing_marker(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in FOLDERS:
        for source in (ROOT / folder).rglob("*.py"):
            assert f"ropewalk/{source.relative_to(ROOT).as_posix()}" in names
        for marker in (ROOT / folder).rglob("py.typed"):
            assert f"ropewalk/{marker.relative_to(ROOT).as_posix()}" in names


def test_every_regular_package_is_marked_as_typed() -> None:
    for folder in FOLDERS:
        for package in (ROOT / folder).rglob("__init__.py"):
            parents = [package.parent, *package.parent.parents]
            inside = parents[: parents.index(ROOT)]
            assert any((parent / "py.typed").exists() for parent in inside), package


def test_the_wheel_ships_the_default_models_and_their_text(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    names = archive.namelist()
    weights = [name for name in names if name.endswith(".safetensors")]
    assert weights
    assert any("default_model/text/" in name and name.endswith(".xz") for name in names)
    for name in weights:
        assert archive.getinfo(name).file_size <= 12_000_000
        folder = name.rsplit("/", 1)[0]
        assert {f"{folder}/config.json", f"{folder}/README.md"} <= set(names)


def test_nothing_but_the_namespace_is_installed(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"ropewalk"}
    assert not any(
        name == "ropewalk/kernels/__init__.py" for name in zipfile.ZipFile(wheel).namelist()
    )


def test_every_module_of_the_wheel_imports_outside_the_repository(
    unpacked: Path, tmp_path: Path
) -> None:
    script = (ROOT / ".ci" / "import_wheel.py").read_text()
    code = script.replace("__file__", repr(str(ROOT / ".ci" / "import_wheel.py")))
    printed = python(code, path=[unpacked], cwd=tmp_path, processing_pth=False)
    assert str(unpacked) in printed


@pytest.mark.parametrize("with_kernels", [False, True], ids=["without-kernels", "with-kernels"])
@pytest.mark.parametrize("installed", ["editable", "wheel"])
def test_transformers_imports_from_the_repository_root(
    installed: str, with_kernels: bool, unpacked: Path
) -> None:
    """`kernels/` must not shadow the package of that name which transformers imports."""
    optional = OPTIONAL / "kernels"
    if with_kernels and not optional.is_dir():
        pytest.skip("the package `kernels` is not at hand; `make setup` fetches it")
    if not with_kernels and importlib.util.find_spec("kernels.layer") is not None:
        pytest.skip("the package `kernels` is installed in this environment")
    path = ([unpacked] if installed == "wheel" else []) + ([optional] if with_kernels else [])
    code = f"import ropewalk.blocks.rotary; {IMPORT_TRANSFORMERS}"
    printed = python(code, path=path, cwd=ROOT, processing_pth=installed == "editable")
    available, origin = printed.splitlines()[-1].split()
    if with_kernels:
        # Whether transformers *uses* it depends on its version; that it is the one found does not.
        assert origin == str(optional / "kernels" / "__init__.py")
    else:
        assert (available, origin) == ("False", "None")


def test_kernels_has_no_init_file() -> None:
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_type_checks_read_every_folder() -> None:
    """The checker does not follow links below a folder it includes, so each is named."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    included = set(project["tool"]["pyright"]["include"])
    assert {f"build/typing/ropewalk/{folder}" for folder in FOLDERS} <= included

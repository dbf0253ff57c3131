"""Bundles out of Hugging Face folders: what is in them, and what is refused."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    LlamaConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

from cutline.cloud.model.loader import load_model
from cutline.core.conversation import question
from cutline.errors import BundleError, InputError
from cutline.models.bundle import Bundle, DecoderSpec
from cutline.models.export import decoder, export_bundle, make, prefixes, vision
from cutline.models.export.source import read_source
from cutline.models.families.smolvlm import SmolVLM
from cutline.models.layerline import LayerLine
from cutline.models.pairs.pair import DESCRIPTION, Shared, served_model
from cutline.models.prompt import PromptBuilder
from cutline.testing.models.random_models import write_text

FAMILIES: dict[str, tuple[Any, Any]] = {
    "smolvlm": (SmolVLMConfig, SmolVLMForConditionalGeneration),
    "idefics3": (Idefics3Config, Idefics3ForConditionalGeneration),
}
SPECIAL = {"<pad>": 0, "<|im_start|>": 1, "<end_of_utterance>": 2, "<image>": 7, "<fake_token_around_image>": 8}
WHOLE = {"do_image_splitting": False, "size": {"longest_edge": 32}, "max_image_size": {"longest_edge": 32}}
PROCESSOR = {
    "do_image_splitting": True,
    "size": {"longest_edge": 128},
    "max_image_size": {"longest_edge": 32},
    "image_mean": [0.1, 0.2, 0.3],
    "image_std": [0.4, 0.5, 0.6],
}


def make_folder(folder: Path, config: dict[str, Any], family: str = "smolvlm") -> Path:
    config_class, model_class = FAMILIES[family]
    torch.manual_seed(3)
    model_class(config_class(**config)).save_pretrained(folder)
    write_text(folder, SPECIAL, config["text_config"]["vocab_size"])
    (folder / "preprocessor_config.json").write_text(json.dumps(WHOLE))
    return folder


def make_bundle(hf: Path, out: Path, **options: Any) -> Bundle:
    chosen: dict[str, Any] = {
        "role": "target",
        "precision": "fp32",
        "name": "tiny",
        "progress": lambda step: None,
    } | options
    return export_bundle(hf, out, **chosen)


def edit_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.fixture(scope="module")
def hf(tiny: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("hf") / "tiny", tiny())


@pytest.fixture(scope="module")
def target(hf: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(hf, tmp_path_factory.mktemp("out") / "target")


@pytest.fixture(scope="module")
def drafter(hf: Path, target: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("out") / "drafter"
    return make_bundle(hf, out, role="drafter", precision="int8", target=target)


@pytest.fixture
def copied(hf: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(hf, tmp_path / "copied"))


@pytest.mark.usefixtures("one_tower")
def test_a_target_is_the_folders_own_files(hf: Path, tmp_path: Path) -> None:
    steps: list[make.ExportProgress] = []
    bundle = make_bundle(hf, tmp_path / "deep" / "target", progress=steps.append)
    names = {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"}
    spans = {"image-spans.data", *(f"image-to-{cut}.onnx" for cut in ("vision.0", "connector", "decoder.0"))}
    prefixes = {"decoder-spans.data", "embeddings.safetensors"}
    prefixes |= {f"decoder.0-to-{cut}.onnx" for cut in ("decoder.1", "head")}
    assert bundle.manifest.files.keys() == names | spans | prefixes
    for name in names:
        assert bundle.file(name).read_bytes() == (hf / name).read_bytes()
    manifest = bundle.manifest
    assert (manifest.role, manifest.precision, manifest.target) == ("target", "fp32", None)
    assert manifest.line == LayerLine(vision=1, decoder=2)
    assert manifest.family == SmolVLM(tile=32, patch=8, tile_tokens=4, longest_edge=32, split=False)
    assert manifest.decoder == DecoderSpec(
        width=32, layers=2, heads=4, kv_heads=2, head_dim=16, vocabulary=90, context=64
    )
    assert (manifest.stop_tokens, manifest.image_token) == ((2,), 7)
    assert len(steps) >= 3


def test_a_drafter_holds_graphs_that_say_nothing_of_where_they_were_made(drafter: Bundle) -> None:
    assert drafter.manifest.files.keys() == {
        "image-to-decoder.0.onnx",
        "image-spans.data",
        "decoder.onnx",
        "decoder.onnx.data",
        "embeddings.safetensors",
        "tokenizer.json",
        "chat_template.jinja",
    }
    session = ort.InferenceSession(drafter.file("decoder.onnx"))
    assert {value.name for value in session.get_inputs()} >= {"inputs_embeds", "wanted", "seqlens_k"}
    for name in ("image-to-decoder.0.onnx", "decoder.onnx"):
        assert b".py" not in drafter.file(name).read_bytes()
    assert onnx.load(drafter.file("decoder.onnx"), load_external_data=False).producer_version == ""


def test_attention_that_masks_nothing_is_onnx_runtimes_own(target: Bundle, qwen: Bundle) -> None:
    for bundle, own, masked in ((target, 1, 0), (qwen, 2, 2)):  # of Qwen's four layers two attend within windows
        graph = onnx.load(bundle.file("image-to-decoder.0.onnx"), load_external_data=False).graph
        operators = [node.op_type for node in graph.node]
        assert (operators.count("MultiHeadAttention"), operators.count("Attention")) == (own, masked)


def test_the_same_folder_gives_the_same_bundle_without_chatter(
    drafter: Bundle, target: Bundle, hf: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    handlers = logging.getLogger().handlers[:]
    again = make_bundle(hf, tmp_path / "again", role="drafter", precision="int8", target=target)
    assert again.manifest.identity == drafter.manifest.identity
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger().handlers == handlers


def test_a_folder_of_the_older_name_with_untied_embeddings(tiny: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    hf = make_folder(tmp_path / "hf", tiny(tied=False), "idefics3")
    bundle = make_bundle(hf, tmp_path / "out", role="drafter")
    stored = load_file(bundle.file("embeddings.safetensors"))["embeddings"]
    assert torch.equal(stored, load_file(hf / "model.safetensors")["model.text_model.embed_tokens.weight"])


def test_a_folder_of_the_older_name_can_be_asked(tiny: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    hf = make_folder(tmp_path / "hf", tiny(), "idefics3")
    bundle = make_bundle(hf, tmp_path / "out")
    assert len(PromptBuilder.open(bundle).build([question("?")], [(0, 0)]).image_positions) == 4
    assert isinstance(load_model(bundle), Idefics3ForConditionalGeneration)


@pytest.mark.parametrize("nested", [False, True])
def test_the_image_processor_is_followed(copied: Path, nested: bool) -> None:
    (copied / "preprocessor_config.json").unlink()
    name = "processor_config.json" if nested else "preprocessor_config.json"
    (copied / name).write_text(json.dumps({"image_processor": PROCESSOR} if nested else PROCESSOR))
    spec = read_source(copied).family
    expected = SmolVLM(tile=32, patch=8, tile_tokens=4, longest_edge=128, split=True)
    assert spec == msgspec.structs.replace(expected, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))


def test_stop_tokens_come_from_the_generation_config(copied: Path) -> None:
    edit_json(copied / "generation_config.json", lambda said: said.update(eos_token_id=[5, 6]))
    assert read_source(copied).stop_tokens == (5, 6)


@pytest.mark.parametrize(
    "stored",
    [
        {"chat_template.json": "mine<image>"},
        {"tokenizer_config.json": "mine<image>"},
        {"tokenizer_config.json": "no", "chat_template.json": "mine<image>"},
        {"chat_template.json": "no", "processor_config.json": "mine<image>"},
        {"chat_template.jinja": "no", "chat_template.json": "mine<image>"},
    ],
)
def test_the_chat_template_of_an_older_folder(copied: Path, tmp_path: Path, stored: dict[str, str]) -> None:
    (copied / "chat_template.jinja").unlink()
    for name, template in stored.items():
        said = template if name.endswith(".jinja") else json.dumps({"chat_template": template, "other": 1})
        (copied / name).write_text(said)
    assert read_source(copied).companions["chat_template.jinja"] == b"mine<image>"


def have_another_stop_token(folder: Path) -> None:
    edit_json(folder / "generation_config.json", lambda said: said.update(eos_token_id=[2, 1]))


def have_a_context_of(tokens: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        edit_json(folder / "config.json", lambda config: config["text_config"].update(max_position_embeddings=tokens))

    return change


@pytest.mark.parametrize(
    ("change", "shared"),
    [
        (lambda folder: write_text(folder, SPECIAL | {"<other>": 9}, 90), Shared(False, True, True)),
        (lambda folder: (folder / "chat_template.jinja").write_text("so <image>"), Shared(True, False, True)),
        (
            lambda folder: (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR)),
            Shared(True, True, False),
        ),
        (have_another_stop_token, Shared(False, True, True)),
    ],
)
@pytest.mark.usefixtures("one_tower")
def test_a_drafter_that_reads_otherwise_than_its_target_has_the_targets_files_too(
    target: Bundle, copied: Path, tmp_path: Path, change: Callable[[Path], object], shared: Shared
) -> None:
    change(copied)
    drafter = make_bundle(copied, tmp_path / "other", role="drafter", target=target)
    served = served_model(drafter)
    assert served.shared == shared
    told = shared.told
    assert [name in told for name in ("tokens", "template", "images")] == [
        not one for one in (shared.tokens, shared.template, shared.images)
    ]
    assert served.manifest.family == target.manifest.family
    assert served.manifest.stop_tokens == target.manifest.stop_tokens
    assert served.manifest.identity == drafter.manifest.identity
    asked = [question("What is it?")], [target.manifest.family.example(0).grid]
    assert served.prompts.build(*asked).ids == PromptBuilder.open(target).build(*asked).ids
    (drafter.path / DESCRIPTION).write_bytes(b"{}")
    with pytest.raises(BundleError, match="hash differs"):
        Bundle.open(drafter.path)


def test_a_drafter_that_reads_the_same_prompts_must_hold_them(target: Bundle, copied: Path, tmp_path: Path) -> None:
    have_a_context_of(63)(copied)
    with pytest.raises(InputError, match=r"holds 63 tokens, its target .* 64; a drafter must hold as many"):
        make_bundle(copied, tmp_path / "other", role="drafter", target=target)


@pytest.mark.usefixtures("one_tower")
def test_a_drafter_belongs_to_its_target(drafter: Bundle, target: Bundle, copied: Path, tmp_path: Path) -> None:
    assert drafter.manifest.target == target.manifest.identity
    have_a_context_of(65)(copied)  # longer does no harm
    assert make_bundle(copied, tmp_path / "other", role="drafter", target=target).manifest.target is not None
    with pytest.raises(InputError, match="holds a drafter"):
        make_bundle(copied, tmp_path / "third", role="drafter", target=drafter)


def drop(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def lose_a_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.connector.modality_projection.proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def cut_the_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:5000])


def be_a_llama(folder: Path) -> None:
    LlamaConfig().save_pretrained(folder)


def have_a_qwen_decoder(folder: Path) -> None:
    edit_json(folder / "config.json", lambda config: config["text_config"].update(model_type="qwen2"))


def split_otherwise(folder: Path) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR | {"max_image_size": {"longest_edge": 64}}))


def split_somehow(folder: Path) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps({"max_image_size": {}}))


def name_a_template(folder: Path) -> None:
    drop("chat_template.jinja")(folder)
    templates = [{"name": "default", "template": "one of several"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": templates}))


def pickle_the_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@pytest.mark.threat("code")
@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (drop("config.json"), "has no config.json"),
        (drop("tokenizer.json"), "has no tokenizer.json"),
        (drop("chat_template.jinja"), "has no chat_template.jinja"),
        (name_a_template, "chat template in .*tokenizer_config.json does not read"),
        (drop("model.safetensors"), "do not load"),
        (pickle_the_weights, "do not load"),
        (cut_the_weights, "do not load"),
        (lose_a_weight, "lack 1 tensors, model.connector"),
        (be_a_llama, "kind llama; supported are smolvlm, idefics3, "),
        (have_a_qwen_decoder, r"has a decoder of the kind qwen2 \(text_config\), where llama is supported"),
        (lambda folder: (folder / "config.json").write_text("{"), "does not read"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "mystery"}'), "supported are"),
        (split_otherwise, "max_image_size 64 in its image processor, and a tower whose tiles are 32"),
        (split_somehow, "max_image_size None in its image processor, and a tower whose tiles are 32"),
    ],
)
def test_a_folder_that_cannot_be_exported_is_named(
    copied: Path, tmp_path: Path, break_it: Callable[[Path], object], message: str
) -> None:
    break_it(copied)
    with pytest.raises(InputError, match=message) as caught:
        make_bundle(copied, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("one_tower")
def test_a_targets_own_weights_are_not_quantized(hf: Path, tmp_path: Path) -> None:
    bundle = make_bundle(hf, tmp_path / "out", precision="int8")
    assert bundle.manifest.precision == "int8"
    assert bundle.file("model.safetensors").read_bytes() == (hf / "model.safetensors").read_bytes()


def test_a_folder_that_is_no_bundle_is_left_alone(hf: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="is not a bundle"):
        make_bundle(hf, tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.usefixtures("one_tower")
def test_a_bundle_is_replaced_when_the_new_one_is_whole(
    hf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_bundle(hf, tmp_path / "out", name="old")

    def fail(*_: object) -> float:
        raise BundleError("differs")

    with monkeypatch.context() as patch:
        patch.setattr(make, "export_vision", fail)
        with pytest.raises(BundleError, match="differs"):
            make_bundle(hf, tmp_path / "out", role="drafter", name="broken")
    assert Bundle.open(tmp_path / "out").manifest.name == "old"
    make_bundle(hf, tmp_path / "out", name="new")
    assert Bundle.open(tmp_path / "out").manifest.name == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("part", ["vision", "decoder", "prefixes"])
def test_an_export_that_computes_something_else_is_refused(
    hf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """The graphs are made from other weights than those they are compared with."""
    source = read_source(hf, dtype=torch.float32)
    other = read_source(hf, dtype=torch.float32).model
    with torch.no_grad():
        for weight in (other.model.vision_model if part == "vision" else other.model.text_model).parameters():
            weight.add_(torch.from_numpy(np.full(weight.shape, 0.05, np.float32)))
    if part == "vision":
        tower = vision.TowerGraph
        monkeypatch.setattr(vision, "TowerGraph", lambda family, _, beside: tower(family, other.model, beside))
        with pytest.raises(BundleError, match="vision tower differs from torch's"):
            vision.export_vision(source.model, source.family, tmp_path, ["decoder.0"])
    elif part == "prefixes":
        monkeypatch.setattr(prefixes, "build", lambda _, *rest, head: decoder.build(other, *rest, head=head))
        with pytest.raises(BundleError, match=r"up to decoder\.1 differs from torch's"):
            prefixes.export_prefixes(source.model, source.family, source.line, source.decoder, tmp_path, "fp32")
    else:
        build = decoder.build
        monkeypatch.setattr(decoder, "build", lambda _, *rest, head: build(other, *rest, head=head))
        with pytest.raises(BundleError, match="fp32 decoder differs from torch's"):
            decoder.export_decoder(source.model, source.family, source.decoder, tmp_path / "decoder.onnx", "fp32")

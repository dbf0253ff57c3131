"""Models that are attacks: code, pickled weights and files beside them, though every hash is right; and templates."""

from __future__ import annotations

import json
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from cutline.cloud.model.loader import load_model
from cutline.core.conversation import question
from cutline.demo.bundles import DRAFTER, TARGET
from cutline.demo.publish import write_processor
from cutline.edge.api.errors import Refused
from cutline.edge.api.requests.schema import read_request
from cutline.edge.inference.runtime import open_session
from cutline.errors import BundleError, CutlineError, InputError, PromptError
from cutline.models.bundle import Bundle, read_manifest, write_manifest
from cutline.models.export.source import read_source
from cutline.models.prompt import TEMPLATE, PromptBuilder
from cutline.testing.models.manifests import edit_manifest

Ran = Callable[[], bool]


@pytest.fixture
def ran(tmp_path: Path) -> Ran:
    """Whether anything planted by `brings_code` or `pickled` has run."""
    return (tmp_path / "ran").exists


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """The demo's target in a folder that may change."""
    return Path(shutil.copytree(TARGET, tmp_path / "target"))


def brings_code(folder: Path, **changes: object) -> None:
    """As models of the hub say that their own code is to be run."""
    ran = folder.parent / "ran"
    (folder / "evil.py").write_text(f"open({str(ran)!r}, 'w').close()\nclass Config: pass\nclass Model: pass\n")
    config = json.loads((folder / "config.json").read_text())
    auto = {"AutoConfig": "evil.Config", "AutoModelForImageTextToText": "evil.Model", "AutoModel": "evil.Model"}
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": auto} | changes))


def pickled(folder: Path) -> None:
    code = f"cposix\nsystem\n(S'touch {folder.parent / 'ran'}'\ntR."
    (folder / "model.safetensors").unlink()
    for name in ("pytorch_model.bin", "model.pt", "model.safetensors.bin", "pytorch_model.bin.index.json"):
        (folder / name).write_text(code)


def sealed(folder: Path) -> Bundle:
    """The folder as a bundle all of whose hashes are right."""
    write_manifest(folder, read_manifest(folder))
    return Bundle.open(folder)


@pytest.mark.threat("code")
@pytest.mark.parametrize("kind", ["smolvlm", "mystery"])
def test_a_models_own_code_is_never_run(target: Path, ran: Ran, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a worker, and at an export; nobody is asked whether it may be."""
    asked: list[str] = []

    def agrees(text: str = "") -> str:
        asked.append(text)
        return "y"

    monkeypatch.setattr("builtins.input", agrees)
    brings_code(target, model_type=kind)
    if kind == "smolvlm":
        assert type(load_model(sealed(target))).__module__.startswith("transformers.models.smolvlm")
        write_processor(target)
        assert read_source(target).model is not None
    else:
        with pytest.raises(CutlineError):
            load_model(sealed(target))
        with pytest.raises(InputError):
            read_source(target)
    assert not ran()
    assert asked == []


@pytest.mark.threat("code", "pickle")
def test_pickled_weights_are_not_looked_at(target: Path, ran: Ran) -> None:
    pickled(target)
    with pytest.raises(BundleError):
        load_model(sealed(target))
    with pytest.raises(InputError):
        read_source(target)
    assert not ran()


@pytest.mark.threat("code")
def test_a_file_put_beside_a_models_own_is_refused(target: Path, ran: Ran) -> None:
    """Into a bundle that was made elsewhere, with the manifest that it has."""
    brings_code(target)
    with pytest.raises(BundleError, match="hash differs"):
        Bundle.open(target)
    shutil.copyfile(TARGET / "config.json", target / "config.json")
    with pytest.raises(BundleError, match=r"evil.py .* not in the manifest"):
        Bundle.open(target)
    assert not ran()


def graph(folder: Path, location: str) -> Path:
    """A graph that gives out what stands in a file at `location`."""
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    weights.external_data.add(key="location", value=location)
    made = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "reads",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])],
        [weights],
    )
    path = folder / "graph.onnx"
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


@pytest.mark.threat("outside")
@pytest.mark.parametrize("way", ["up", "absolute", "link", "folder link"])
def test_weights_outside_a_bundle_are_not_read(tmp_path: Path, way: str) -> None:
    """The graph's own hash is right; the file it names is not the bundle's."""
    secret, folder = tmp_path / "secret", tmp_path / "bundle"
    secret.write_bytes(bytes(range(16)))
    folder.mkdir()
    if way == "link":
        (folder / "weights").symlink_to(secret)
    if way == "folder link":
        (folder / "linked").symlink_to(tmp_path)
    location = {"up": "../secret", "absolute": str(secret), "link": "weights", "folder link": "linked/secret"}[way]
    with pytest.raises(BundleError, match="does not load"):
        open_session(graph(folder, location), threads=1)


@pytest.mark.threat("outside")
def test_weights_beside_a_graph_are_read(tmp_path: Path) -> None:
    """Or the test before this one would show nothing."""
    (tmp_path / "weights").write_bytes(struct.pack("<4f", 1, 2, 3, 4))
    session = open_session(graph(tmp_path, "weights"), threads=1)
    assert session.run(None, {"x": np.zeros(4, np.float32)})[0].tolist() == [1, 2, 3, 4]


@pytest.mark.threat("outside")
@pytest.mark.parametrize("way", ["link", "up", "absolute"])
def test_files_outside_a_bundle_are_not_its_own(tmp_path: Path, way: str) -> None:
    """Even with the right hash in its manifest."""
    secret, folder = tmp_path / "secret", tmp_path / "bundle"
    shutil.copytree(DRAFTER, folder)
    (folder / "tokenizer.json").rename(secret)
    manifest = read_manifest(folder)
    name = {"link": "tokenizer.json", "up": "../secret", "absolute": str(secret)}[way]
    if way == "link":
        (folder / name).symlink_to(secret)
    files = dict(manifest.files)
    files[name] = files.pop("tokenizer.json")
    edit_manifest(folder, lambda said: said.update(files=files))
    with pytest.raises(BundleError):
        Bundle.open(folder)


def templated(tmp_path: Path, template: str) -> PromptBuilder:
    folder = Path(shutil.copytree(DRAFTER, tmp_path / "drafter"))
    (folder / TEMPLATE).write_text(template)
    return PromptBuilder.open(sealed(folder))


ENDLESS = "{% for a in range(9999) %}{% for b in range(9999) %}{{ a * b }}{% endfor %}{% endfor %}"
MACRO = "{% macro a() %}{{ a() }}{{ a() }}{% endmacro %}{{ a() }}"
INTO_PYTHON = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ self._TemplateReference__context }}",
    "{{ messages[0].role.format.__globals__ }}",
    "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "{% import 'os' as os %}{{ os }}",
    "{% include '/etc/hostname' %}",
    "{{ namespace.__init__.__globals__ }}",
]


@pytest.mark.threat("templates")
@pytest.mark.parametrize("template", [ENDLESS, MACRO, "{{ 'a' * 999999999 }}", "{{ range(10**9)|list }}", *INTO_PYTHON])
def test_a_bundles_template_ends_and_reaches_nothing(tmp_path: Path, template: str) -> None:
    builder, began = templated(tmp_path, template + "<image>{{ messages[0].content[1].text }}"), time.thread_time()
    with pytest.raises((BundleError, PromptError)) as refused:
        builder.build([question("What?")], [(0, 0)])
    assert time.thread_time() - began < 2
    assert "class" not in str(refused.value)


@pytest.mark.threat("templates")
@pytest.mark.parametrize(
    "field", ["chat_template", "chat_template_kwargs", "template", "add_generation_prompt", "documents", "tokenize"]
)
def test_a_request_brings_no_template(field: str) -> None:
    message: dict[str, Any] = {"role": "user", "content": "What?"}
    for body in (
        {"messages": [message], field: ENDLESS},
        {"messages": [message | {field: ENDLESS}]},
        {"messages": [message], "cutline": {field: ENDLESS}},
    ):
        with pytest.raises(Refused) as refused:
            read_request(msgspec.json.encode(body))
        assert refused.value.status == 400


@pytest.mark.threat("templates")
def test_a_template_in_a_question_is_text() -> None:
    """Nothing in it is worked out: it comes back as it was written."""
    builder = PromptBuilder.open(Bundle.open(DRAFTER))
    for text in ("{{ 7 * 7 }}", "{% for a in range(99) %}a{% endfor %}", "{# gone #}", "<image>{{ messages }}"):
        ids = builder.build([question(text)], [(0, 0)]).ids
        assert text in builder.vocabulary.decode(ids)

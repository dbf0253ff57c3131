"""What is GIT's own: prompts without a template, one picture, no turns, and a tokenizer of words."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import AutoImageProcessor, GitProcessor, PreTrainedTokenizerFast

from cutline.core.constraint import Constraint
from cutline.core.conversation import ImagePart, Message, TextPart, question
from cutline.demo.bundles import TARGET
from cutline.errors import InputError, PromptError
from cutline.models.bundle import Bundle
from cutline.models.export import export_bundle
from cutline.models.export.quiet import quiet
from cutline.models.export.source import SourceModel, read_source
from cutline.models.law.grammars import Grammars
from cutline.models.prompt import TEMPLATE, PromptBuilder
from cutline.models.vocabulary import TOKENIZER, Vocabulary
from cutline.testing.models.small_models import SMALL

PICTURE = Message("user", (ImagePart(),))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> SourceModel:
    folder = tmp_path_factory.mktemp("git")
    SMALL["git"].write(folder)
    return read_source(folder)


@pytest.fixture(scope="module")
def prompts(source: SourceModel) -> PromptBuilder:
    manifest = source.manifest(name="seeded", role="target", precision="fp32", target=None)
    vocabulary = Vocabulary.read(source.companions[TOKENIZER])
    return PromptBuilder.read(manifest, vocabulary, source.companions[TEMPLATE])


@pytest.mark.parametrize("asked", ["what is on the card?", "Is it RED", ""])
def test_a_prompt_is_what_transformers_processor_makes_of_it(
    source: SourceModel, prompts: PromptBuilder, asked: str
) -> None:
    """A question stands behind the token that begins a text, and a caption begins with that alone."""
    with quiet():
        images = AutoImageProcessor.from_pretrained(source.path, backend="pil", local_files_only=True)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(source.path / TOKENIZER), cls_token="[CLS]")
    theirs = GitProcessor(images, tokenizer)
    text = theirs(text=asked, add_special_tokens=False)["input_ids"] if asked else []
    ids = np.array(prompts.build([question(asked) if asked else PICTURE], [(0, 0)]).ids)
    gaps = ids == source.image_token
    assert [tokenizer.cls_token_id, *text] == source.family.given_ids(ids, gaps).tolist()
    tower = source.model.git.image_encoder.vision_model
    assert gaps.sum() == source.family.tokens((0, 0)) == tower.embeddings.num_positions
    places = source.family.positions(gaps, [(0, 0)]).at(0, len(ids) + 2)[0]
    assert places[gaps.sum() :].tolist() == list(range(len(text) + 3))


@pytest.mark.parametrize(
    ("messages", "grids", "said"),
    [
        (
            [Message("user", (ImagePart(), ImagePart(), TextPart("what?")))],
            2,
            "takes 1 image in a question, and 2 came",
        ),
        ([question("what?"), Message("assistant", (TextPart("a card"),)), question("why?")], 2, "neither turns nor"),
        ([Message("system", (TextPart("be brief"),)), question("what?")], 1, "neither turns nor instructions"),
        ([Message("user", (TextPart(" "),))], 0, "question is empty"),
    ],
)
def test_what_it_cannot_be_asked_is_refused_by_name(
    prompts: PromptBuilder, messages: list[Message], grids: int, said: str
) -> None:
    with pytest.raises(PromptError, match=said):
        prompts.build(messages, [(0, 0)] * grids)


def test_a_worker_takes_no_rows_of_a_picture_but_the_first(source: SourceModel) -> None:
    for tokens, pictures in ((np.arange(40) >= 20, 1), (np.arange(40) < 34, 2)):
        with pytest.raises(InputError, match="begins with the rows of one image"):
            source.family.positions(tokens, [(0, 0)] * pictures)


def test_constraints_are_refused_by_name(prompts: PromptBuilder, source: SourceModel) -> None:
    manifest = source.manifest(name="seeded", role="target", precision="fp32", target=None)
    with pytest.raises(InputError, match="seeded has a WordPiece tokenizer"):
        Grammars(lambda: prompts.vocabulary, manifest).compiled(Constraint.choice(["a", "b"]))


def test_a_drafter_of_other_tokens_is_refused(source: SourceModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has a WordPiece tokenizer, which its drafter, or its target, must share"):
        export_bundle(
            source.path,
            tmp_path / "out",
            role="drafter",
            precision="int8",
            name="it",
            target=Bundle.open(TARGET),
            progress=lambda _: None,
        )


@pytest.mark.parametrize(
    ("file", "changed", "said"),
    [
        ("config.json", {"num_image_with_embedding": 6}, "num_image_with_embedding 6, of videos"),
        ("preprocessor_config.json", {"size": {"shortest_edge": 90}}, "supported: a shortest_edge 64"),
        ("preprocessor_config.json", {"crop_size": {"height": 32, "width": 32}}, "and a tower that sees 64"),
        ("preprocessor_config.json", {"do_center_crop": False}, "and a tower that sees 64"),
    ],
)
def test_what_does_not_run_is_named(
    source: SourceModel, tmp_path: Path, file: str, changed: dict[str, object], said: str
) -> None:
    for other in source.path.iterdir():
        (tmp_path / other.name).symlink_to(other)
    settings = json.loads((tmp_path / file).read_text()) | changed
    (tmp_path / file).unlink()
    (tmp_path / file).write_text(json.dumps(settings))
    with pytest.raises(InputError, match=said):
        read_source(tmp_path)


def test_a_picture_is_seen_in_its_middle(source: SourceModel) -> None:
    """What stands at the ends of a wide picture is not seen, as of transformers' processor."""
    black, ends = Image.new("RGB", (300, 100)), Image.new("RGB", (300, 100))
    ends.paste("white", (0, 0, 40, 100))
    np.testing.assert_array_equal(
        source.family.preprocess(black).values[..., 8:], source.family.preprocess(ends).values[..., 8:]
    )

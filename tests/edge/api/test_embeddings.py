"""`/v1/embeddings`: OpenAI's own client, and what it refuses, with the quotas and counts of every other path."""

from __future__ import annotations

import asyncio
import base64
import threading
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import ollama
import openai
import pytest
from PIL import Image

from cutline.edge.api.embeddings.schema import EmbeddingList
from cutline.edge.inference.encoder import Encoder
from cutline.models.encoders.bundle import EncoderBundle
from cutline.models.images import as_png
from cutline.protos.channel.token_file import Tokens, token_entry

Serving = Callable[..., AbstractAsyncContextManager[str]]
Made = Callable[[str], tuple[Path, EncoderBundle]]

PICTURE = as_png(Image.linear_gradient("L").convert("RGB"))
URL = "data:image/png;base64," + base64.b64encode(PICTURE).decode()
IMAGE = {"type": "image_url", "image_url": {"url": URL}}
TEXTS = ["a photo of a cat", "a person at the gate"]


@pytest.fixture(scope="module")
def encoder(encoders: Made) -> Encoder:
    return Encoder(encoders("siglip")[1], threads=1)


def posted(serving: Serving, *bodies: Any, token: str = "", **options: Any) -> list[httpx.Response]:
    """What the server says to each of these bodies."""

    async def run() -> list[httpx.Response]:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        async with (
            serving(**options) as url,
            httpx.AsyncClient(base_url=url, trust_env=False, headers=headers, timeout=60) as client,
        ):
            found = [await client.post("/v1/embeddings", json=body) for body in bodies]
            return [*found, await client.get("/metrics")]

    return asyncio.run(run())


@pytest.mark.parametrize("how", [{}, {"encoding_format": "float"}, {"encoding_format": "base64"}, {"user": "me"}])
def test_openais_client_reads_the_rows(how: dict[str, Any], encoder: Encoder, serving: Serving) -> None:
    async def run() -> Any:
        async with (
            serving(encoder=encoder) as url,
            openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
        ):
            many = await client.embeddings.create(model="cutline", input=TEXTS, **how)
            one = await client.embeddings.create(model=encoder.manifest.name, input=TEXTS[1], dimensions=48, **how)
            return many, one

    many, one = asyncio.run(run())
    expected = encoder.embed_texts(TEXTS)
    for answer, rows in ((many, expected), (one, expected[1:])):
        assert answer.model == encoder.manifest.name
        assert [found.index for found in answer.data] == [*range(len(rows))]
        for found, row in zip(answer.data, rows, strict=True):
            given = found.embedding
            if isinstance(given, str):  # what a client asks for in base64 by itself, it does not decode
                given = np.frombuffer(base64.b64decode(given), "<f4")
            assert np.array_equal(np.asarray(given, np.float32), row)
    assert many.usage.prompt_tokens == many.usage.total_tokens == sum(map(encoder.count_tokens, TEXTS))


def test_ollamas_client_reads_the_rows(encoder: Encoder, serving: Serving) -> None:
    name = encoder.manifest.name

    async def run() -> Any:
        async with serving(encoder=encoder) as url, ollama.AsyncClient(url, trust_env=False) as client:
            many = await client.embed("cutline", TEXTS, truncate=True, options={"num_ctx": 99}, keep_alive="1h")
            one = await client.embed(f"{name}:latest", TEXTS[1], dimensions=48)
            old = await client.embeddings(name, TEXTS[1])
            for call, status, said in (
                (client.embed("other", "x"), 404, f"encoder is {name}"),
                (client.embed(name, ""), 400, "is empty"),
                (client.embed(name, "x", dimensions=24), 400, "48 numbers"),
                (client.embeddings(name, "a person at the gate " * 9), 400, "encoder reads 16"),
            ):
                with pytest.raises(ollama.ResponseError, match=said) as error:
                    await call
                assert error.value.status_code == status
            return many, one, old

    many, one, old = asyncio.run(run())
    expected = encoder.embed_texts(TEXTS)
    assert np.array_equal(np.asarray(many.embeddings, np.float32), expected)
    assert np.array_equal(np.asarray([*one.embeddings, old.embedding], np.float32), expected[[1, 1]])
    assert (many.model, one.model) == ("cutline", f"{name}:latest")
    assert many.prompt_eval_count == sum(map(encoder.count_tokens, TEXTS))
    assert many.total_duration > 0


def test_images_and_texts_stand_in_one_list(encoder: Encoder, serving: Serving) -> None:
    body = {"input": [IMAGE, TEXTS[0], {"type": "text", "text": TEXTS[1]}, IMAGE]}
    response, metrics = posted(serving, body, encoder=encoder)
    assert response.status_code == 200, response.text
    answer = msgspec.json.decode(response.content, type=EmbeddingList)
    image, texts = encoder.embed_images([PICTURE]), encoder.embed_texts(TEXTS)
    assert np.array_equal([one.embedding for one in answer.data], np.concatenate([image, texts, image]))
    assert answer.usage.total_tokens == 2 * encoder.manifest.patches + sum(map(encoder.count_tokens, TEXTS))
    assert 'cutline_agent_embedded_total{kind="image"} 2.0' in metrics.text
    assert 'cutline_agent_embedded_total{kind="text"} 2.0' in metrics.text
    assert 'cutline_agent_requests_total{mode="embeddings",status="200"} 1.0' in metrics.text


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"input": TEXTS, "dimensions": 24}, 400, "48 numbers, and cannot be cut to 24"),
        ({"input": TEXTS, "model": "other"}, 404, "this agent's encoder is siglip"),
        ({"input": []}, 400, "input"),
        ({"input": ["x"] * 129}, 400, "input"),
        ({"input": ["x"] * 2000}, 400, "input"),
        ({"input": [1, 2, 3]}, 400, "input"),
        ({"input": [[1, 2], [3]]}, 400, "input"),
        ({"input": " "}, 400, "is empty"),
        ({"input": "a person at the gate " * 9}, 400, "tokens, and the encoder reads 16"),
        ({"input": [IMAGE] * 33}, 400, "images are too many"),
        ({"input": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,x"}}]}, 400, "not base64"),
        ({"input": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,eHh4"}}]}, 400, "image"),
        ({"input": [{"type": "image_url", "image_url": {"url": "http://10.0.0.1/x.png"}}]}, 400, "--allow-url"),
        ({"input": "x", "encoding_format": "int8"}, 400, "encoding_format"),
        ({"input": "x", "truncate": True}, 400, "truncate"),
        ({"model": "cutline"}, 400, "input"),
    ],
)
def test_what_cannot_be_is_refused_by_name(
    body: dict[str, Any], status: int, words: str, encoder: Encoder, serving: Serving
) -> None:
    response, metrics = posted(serving, body, encoder=encoder)
    assert response.status_code == status, response.text
    message = response.json()["error"]["message"]
    assert any(word in message for word in words.split("|")), message
    assert "\n" not in message
    assert f'cutline_agent_requests_total{{mode="embeddings",status="{status}"}} 1.0' in metrics.text


def test_an_agent_without_an_encoder_says_so(serving: Serving) -> None:
    response, _ = posted(serving, {"input": "x"})
    assert response.status_code == 404
    assert "--encoder BUNDLE" in response.json()["error"]["message"]

    async def run() -> None:
        async with serving() as url, ollama.AsyncClient(url, trust_env=False) as client:
            with pytest.raises(ollama.ResponseError, match="--encoder BUNDLE"):
                await client.embed("cutline", "x")

    asyncio.run(run())


@pytest.mark.threat("caches")
def test_nothing_of_a_text_is_kept(encoders: Made, serving: Serving) -> None:
    """Else the time of a second request would tell whether another had asked for the same."""
    encoder = Encoder(encoders("siglip")[1], threads=1)
    assert posted(serving, {"input": TEXTS}, encoder=encoder)[0].status_code == 200
    assert encoder._texts.size == 0
    encoder.embed_texts(TEXTS)
    assert encoder._texts.size == len(TEXTS)


def test_it_is_held_to_tokens_and_their_quotas(encoder: Encoder, serving: Serving, tmp_path: Path) -> None:
    file = tmp_path / "tokens.toml"
    file.write_text(token_entry("one", "one") + "[tenant.one]\nopenings_per_minute = 6\n")
    tokens = Tokens(file, agent=True)
    refused, _ = posted(serving, {"input": "x"}, encoder=encoder, tokens=tokens)
    assert refused.status_code == 401
    *found, metrics = posted(serving, *[{"input": "x"}] * 4, token="one", encoder=encoder, tokens=tokens)
    assert [one.status_code for one in found][:1] == [200]
    assert found[-1].status_code == 429
    assert found[-1].json()["error"]["type"] == "WorkerBusy"
    assert 'mode="embeddings",status="429"' in metrics.text


def test_as_many_are_in_work_as_may_be(encoder: Encoder, serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    """One holds the encoder until another was refused."""
    held, freed = threading.Event(), threading.Event()
    embed = Encoder.embed_texts

    def waiting(self: Encoder, texts: Any, **how: Any) -> Any:
        held.set()
        assert freed.wait(60)
        return embed(self, texts, **how)

    monkeypatch.setattr(Encoder, "embed_texts", waiting)

    async def run() -> tuple[int, int, int]:
        async with (
            serving(encoder=encoder, most=lambda: 1) as url,
            httpx.AsyncClient(base_url=url, trust_env=False, timeout=60) as client,
        ):
            first = asyncio.create_task(client.post("/v1/embeddings", json={"input": "x"}))
            await asyncio.to_thread(held.wait, 60)
            second = await client.post("/v1/embeddings", json={"input": "x"})
            freed.set()
            return (
                (await first).status_code,
                second.status_code,
                (await client.post("/v1/embeddings", json={"input": "x"})).status_code,
            )

    assert asyncio.run(run()) == (200, 429, 200)

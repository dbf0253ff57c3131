"""Pulls the weights of a model from a hub, by huggingface_hub: only what an export reads, and nothing that is code.

huggingface_hub says what there is, where, and who asks; the bytes come by `download`, since it begins a file anew after
an interruption, and knows no limit of one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import msgspec

from cutline.core.storage.files import replace_file, storing, sync_folder
from cutline.core.telemetry import is_offline_wanted
from cutline.errors import AccessDenied, BundleError, InputError, WorkerUnavailable
from cutline.errors.extras import missing
from cutline.models.hub.download import (
    Downloader,
    OnTotal,
    Patience,
    RemoteFile,
    Tell,
    check_room,
    fetch_all,
    locked,
)
from cutline.models.hub.library import PARTIAL, RECORD, PulledFile, PulledModel, find_weights, read_record, weights_path
from cutline.models.hub.names import ModelName

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo

MOST_FILES = 500
MAX_FILE = 1 << 40  # bytes
LOG_IN = "accept its terms there if it has any, then log in by `hf auth login` or set HF_TOKEN"
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors", re.ASCII)
_INDEX, _WHOLE, _CONFIG = "model.safetensors.index.json", "model.safetensors", "config.json"
_COMPANIONS = frozenset(
    {
        _CONFIG,
        "generation_config.json",
        "processor_config.json",
        "preprocessor_config.json",
        "video_preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.json",
        "chat_template.jinja",
    }
)
_COMMIT, _SHA256 = re.compile(r"[0-9a-f]{40}"), re.compile(r"[0-9a-f]{64}")


def pull_weights(
    name: ModelName, *, tell: Tell, on_total: OnTotal, patience: Patience | None = None
) -> tuple[Path, PulledModel]:
    """Pull a commit of a model, unless it is here; returns its folder, and what it is.

    A pull that was broken off goes on. Raises InputError if the hub has no such model, or HF_HUB_OFFLINE forbids to
    ask; AccessDenied; WorkerUnavailable if it does not answer; BundleError if it gives what it did not say it has;
    StorageError if there is no room.
    """
    if not name.owned:
        raise InputError(f"{name} has no owner; a model on a hub is OWNER/NAME")
    if is_offline_wanted():
        if (here := find_weights(name)) is None:
            raise InputError(f"HF_HUB_OFFLINE is set, so {name} cannot be pulled; unset it, or copy its folder here")
        tell(f"{name} is here already; HF_HUB_OFFLINE is set, so nobody was asked for a newer one")
        return here, read_record(here)
    patience = Patience() if patience is None else patience
    api = _api()
    info = _described(api, name, patience)
    commit, files = str(info.sha), _files(api, name, info)
    folder = weights_path(name.name, commit)
    if (folder / RECORD).is_file():
        tell(f"{name.name} is here already, as of {commit[:12]}")
        return folder, read_record(folder)
    partial = folder.with_name(f".{folder.name}{PARTIAL}")
    size = sum(file.size for file in files)
    tell(f"{name.name} as of {commit[:12]}: {len(files)} files, {size / 1e6:.1f} MB")
    with locked(partial):
        if (folder / RECORD).is_file():  # another process was faster
            partial.rmdir()
            return folder, read_record(folder)
        check_room(partial, files)
        with _client(api, patience) as client:
            hashes = fetch_all(Downloader(client, patience, denied=LOG_IN), files, partial, on_total)
        record = PulledModel(
            hub=str(httpx.URL(api.endpoint).copy_with(username=None, password=None)),
            name=name.name,
            revision=name.revision or "main",
            commit=commit,
            files={file.name: PulledFile(file.size, hashes[file.name]) for file in files},
        )
        with storing(folder):
            replace_file(partial / RECORD, msgspec.json.format(msgspec.json.encode(record)))
            partial.rename(folder)
            sync_folder(folder.parent)
    return folder, record


def _api() -> HfApi:
    """The hub that HF_ENDPOINT names, else Hugging Face's. Raises InputError."""
    try:
        from huggingface_hub import HfApi
    except ModuleNotFoundError:
        raise missing("pulling models needs huggingface_hub", "hub") from None
    endpoint = os.environ.get("HF_ENDPOINT") or None  # read now, as the library reads it when it is imported
    try:
        known = endpoint is None or (httpx.URL(endpoint).scheme in ("http", "https") and httpx.URL(endpoint).host)
    except httpx.InvalidURL:
        known = False
    if not known:
        raise InputError("HF_ENDPOINT is no URL of a hub; give one such as https://huggingface.co")
    return HfApi(endpoint=endpoint, library_name="cutline", library_version=version("cutline"))


@contextmanager
def _online() -> Iterator[None]:
    """Within, huggingface_hub may ask a hub, which this process forbids it otherwise."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, False
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _described(api: HfApi, name: ModelName, patience: Patience) -> ModelInfo:
    """What the hub has of a model. Raises as `pull_weights`."""
    from huggingface_hub import errors

    where = httpx.URL(api.endpoint).netloc.decode()
    try:
        with _online():
            info = api.model_info(name.name, revision=name.revision, files_metadata=True, timeout=patience.timeout)
    except errors.GatedRepoError:
        raise AccessDenied(f"{where} gives {name} only to who may have it; {LOG_IN}") from None
    except errors.RevisionNotFoundError:
        raise InputError(f"{where} has no revision {name.revision!r} of {name.name}") from None
    except errors.RepositoryNotFoundError:
        raise InputError(f"{where} has no model {name.name}, or shows it to others; {LOG_IN}") from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise AccessDenied(f"{where} does not take this token; {LOG_IN}") from None
        raise WorkerUnavailable(f"{where} does not say what {name} is: status {status}; try again later") from None
    except (AttributeError, KeyError, TypeError, ValueError):  # of reading what came
        raise BundleError(f"{where} answers as no hub does; is HF_ENDPOINT right?") from None
    except Exception as error:  # of the library's own HTTP client, whichever it has
        why = " ".join(str(error).split())[:120] or type(error).__name__
        raise WorkerUnavailable(f"{where} does not answer ({why}); pull again, and it goes on") from None
    if not isinstance(info.sha, str) or _COMMIT.fullmatch(info.sha) is None:
        raise BundleError(f"{where} names no commit of {name}; is HF_ENDPOINT right?")
    return info


def _files(api: HfApi, name: ModelName, info: ModelInfo) -> list[RemoteFile]:
    """The files that an export reads. Raises InputError where there are no weights that it could, and BundleError."""
    from huggingface_hub import hf_hub_url

    where = httpx.URL(api.endpoint).netloc.decode()
    known = {str(one.rfilename): one for one in info.siblings or ()}
    shards = sorted(file for file in known if _SHARD.fullmatch(file))
    if _WHOLE in known:
        weights = [_WHOLE]
    elif _INDEX in known and shards:
        weights = [_INDEX, *shards]
    else:
        raise InputError(f"{name} has no safetensors; weights in other formats may hold code, and are not read")
    if _CONFIG not in known:
        raise InputError(f"{name} has no {_CONFIG}, so it is no model of transformers'")
    if len(weights) > MOST_FILES:
        raise BundleError(f"{where} has {len(weights)} files of {name}, which is more than a model has")
    found = []
    for file in (*sorted(_COMPANIONS & known.keys()), *weights):
        size, sha256, blob = _facts(known[file])
        if not isinstance(size, int) or not 0 <= size <= MAX_FILE or not (sha256 or blob):
            raise BundleError(f"{where} does not say how large {file} of {name} is, and what its hash is")
        url = hf_hub_url(name.name, file, revision=info.sha, endpoint=api.endpoint)
        found.append(RemoteFile(name=file, url=url, size=size, sha256=sha256, blob=blob))
    return found


def _facts(one: Any) -> tuple[object, str, str]:
    """Size, SHA-256 and git's name of a file, the latter two empty where they are none."""
    sha256, blob = getattr(one.lfs, "sha256", ""), one.blob_id
    return (
        one.size,
        sha256 if isinstance(sha256, str) and _SHA256.fullmatch(sha256) else "",
        blob if isinstance(blob, str) and _COMMIT.fullmatch(blob) else "",
    )


def _client(api: HfApi, patience: Patience) -> httpx.Client:
    """What downloads. The hub's token is not sent to other hosts, which it may send us on to."""
    from huggingface_hub import get_token

    with _online():  # a token may have to be renewed
        token = get_token()
    headers = {"user-agent": f"cutline/{version('cutline')}"} | ({"authorization": f"Bearer {token}"} if token else {})
    secure = api.endpoint.startswith("https:")

    def check(request: httpx.Request) -> None:
        if secure and request.url.scheme != "https":
            raise BundleError(f"the hub sends us on to {request.url.host} in plain text; nothing was taken from there")

    return httpx.Client(
        headers=headers, follow_redirects=True, timeout=patience.timeout, event_hooks={"request": [check]}
    )

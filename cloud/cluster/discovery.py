"""Where the workers of a cluster show metrics: told to Prometheus, which asks for it over HTTP."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from cutline.protos.directory import Listing


def targets(listing: Listing) -> list[dict[str, Any]]:
    """The workers that show metrics, in the form of Prometheus' HTTP service discovery: a group for each.

    A scraped series gets the label `worker`, its place's name; the labels of `__meta_cutline_` are for relabelling.
    """
    return [
        {
            "targets": [one.metrics],
            "labels": {
                "worker": one.name,
                "__meta_cutline_address": one.address,
                "__meta_cutline_standing": one.standing,
                "__meta_cutline_model": one.model,
            },
        }
        for one in listing.workers
        if one.metrics
    ]


def discovery(listing: Callable[[], Listing]) -> Callable[..., Iterable[bytes]]:
    """A WSGI application that answers whatever is asked with the `targets` of the listing now."""

    def answer(environ: dict[str, Any], start: Callable[..., object]) -> Iterable[bytes]:
        del environ
        start("200 OK", [("content-type", "application/json")])
        return [msgspec.json.encode(targets(listing()))]

    return answer

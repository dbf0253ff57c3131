"""Prometheus' HTTP service discovery for the metrics of a cluster's workers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from cutline.protos.directory import Listing


def targets(listing: Listing) -> list[dict[str, Any]]:
    """The workers that show metrics, in the form of Prometheus' HTTP service discovery: one group each.

    A scraped series gets the label `worker`, the member's name. The labels `__meta_cutline_…` are for relabelling.
    """
    return [
        {
            "targets": [worker.metrics],
            "labels": {
                "worker": worker.name,
                "__meta_cutline_address": worker.address,
                "__meta_cutline_standing": worker.standing,
                "__meta_cutline_model": worker.model,
            },
        }
        for worker in listing.workers
        if worker.metrics
    ]


def discovery(listing: Callable[[], Listing]) -> Callable[..., Iterable[bytes]]:
    """A WSGI application that answers every request with the `targets` of the current listing."""

    def answer(environ: dict[str, Any], start: Callable[..., object]) -> Iterable[bytes]:
        del environ
        start("200 OK", [("content-type", "application/json")])
        return [msgspec.json.encode(targets(listing()))]

    return answer

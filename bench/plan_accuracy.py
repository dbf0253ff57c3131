"""Predictions beside measurements: `python -m cutline.bench.plan_accuracy [--json FILE] [--plot FILE]`."""
from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import httpx
import numpy as np

from cutline.bench.slow import pinned, slowed
from cutline.cli.processes import agent_process, worker_process
from cutline.cli.setting import open_drafter, open_target
from cutline.demo.cards import Split
from cutline.demo.requests import requests
from cutline.devices.emulator import LinkEmulator
from cutline.devices.link import load_link
from cutline.edge.agent import Agent
from cutline.edge.answer import Answer, Mode, Question
from cutline.edge.drafter import Drafter
from cutline.edge.gate import open_gate
from cutline.edge.remote import ask_over
from cutline.models.bundle import Bundle
from cutline.models.images import decode_image
from cutline.models.prompt import PromptBuilder, question
from cutline.models.sampling import Sampling
from cutline.models.wire import Wire
from cutline.partitioner.plan import Choice, Space
from cutline.protos.address import parse_address

EDGE_CORE, CLOUD_CORE = 0, 1
CUTS = ("image", "vision.0", "vision.2", "decoder.0", "decoder.2", "head")
WIRES = (Wire.FLOAT32, Wire.INT8)
MAX_TOKENS = 64
GREEDY = Sampling()

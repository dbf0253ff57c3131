"""The node with a stand-in for ROS: parameters, topics and the demo's models; and what it takes of Cutline."""

from __future__ import annotations

import ast
import importlib
import json
import queue
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

import cutline

ROOT = Path(__file__).resolve().parents[2]


class StandIn:
    """A node as far as ours uses one: what it publishes arrives in `said`, by topic."""

    given: ClassVar[dict[str, Any]] = {}

    def __init__(self, name: str) -> None:
        self.name = name
        self.heard: dict[str, Any] = {}
        self.said: dict[str, queue.Queue[str]] = {}
        self.warned: list[str] = []

    def declare_parameter(self, name: str, default: Any) -> Any:
        return SimpleNamespace(value=self.given.get(name, default))

    def create_publisher(self, kind: type, topic: str, depth: int) -> Any:
        self.said[topic] = queue.Queue()
        return SimpleNamespace(publish=lambda message: self.said[topic].put(message.data))

    def create_subscription(self, kind: type, topic: str, callback: Any, quality: object) -> None:
        self.heard[topic] = callback

    def get_logger(self) -> Any:
        return SimpleNamespace(warning=self.warned.append)


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module of the node."""
    modules: dict[str, dict[str, Any]] = {
        "rclpy": {},
        "rclpy.executors": {"ExternalShutdownException": RuntimeError},
        "rclpy.node": {"Node": StandIn},
        "rclpy.qos": {"qos_profile_sensor_data": "sensor data"},
        "sensor_msgs": {},
        "sensor_msgs.msg": {"Image": SimpleNamespace},
        "std_msgs": {},
        "std_msgs.msg": {"String": SimpleNamespace},
    }
    for name, names in modules.items():
        module = ModuleType(name)
        vars(module).update(names)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "cutline_ros.node", raising=False)
    monkeypatch.setattr(StandIn, "given", {"mode": "edge", "jpeg_quality": 0})
    yield importlib.import_module("cutline_ros.node")
    sys.modules.pop("cutline_ros.node", None)


def message(card: Path) -> Any:
    with Image.open(card) as file:
        pixels = np.asarray(file.convert("RGB"))
    header = SimpleNamespace(stamp=SimpleNamespace(sec=3, nanosec=4), frame_id="camera")
    height, width, _ = pixels.shape
    return SimpleNamespace(
        header=header, width=width, height=height, encoding="rgb8", step=width * 3, data=bytearray(pixels.tobytes()),
        is_bigendian=1,
    )  # fmt: skip


def test_a_question_about_a_picture_is_answered(node: Any) -> None:
    card = ROOT / "demo/examples/card1.png"
    one = node.AnswersNode()
    one.heard["image"](message(card))
    one.heard["question"](SimpleNamespace(data="Describe the card."))
    text, report = one.said["answer"].get(timeout=60), json.loads(one.said["report"].get(timeout=60))
    one.heard["image"](SimpleNamespace(**vars(message(card)) | {"encoding": "mono16"}))
    one.heard["question"](SimpleNamespace(data="And now?"))
    refused = json.loads(one.said["report"].get(timeout=60))
    one.close()

    with cutline.BlockingAgent(cutline.Agent(cutline.Bundle.open(ROOT / "demo/bundles/drafter"), threads=1)) as agent:
        request = cutline.Request.about(
            card.read_bytes(), "Describe the card.", mode=cutline.Mode.EDGE, max_tokens=None
        )
        assert text == report["text"] == agent.answer(request).text, "of the same pixels"
    assert report["frame_id"] == "camera"
    assert one.warned == [refused["error"]]
    assert one.said["answer"].empty()


def test_what_the_parameters_ask_for_is_refused_in_a_line(node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(StandIn.given, "drafter", "/nowhere")
    with pytest.raises(cutline.BundleError, match="/nowhere"):
        node.AnswersNode()


def test_it_ends_in_order(node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """At Ctrl-C, and in a line where it cannot begin."""
    done: list[str] = []

    def spin(one: Any) -> None:
        done.append(one.name)
        raise KeyboardInterrupt

    monkeypatch.setattr(StandIn, "destroy_node", lambda one: done.append("destroyed"), raising=False)
    for name, what in {"init": lambda: None, "spin": spin, "try_shutdown": lambda: done.append("shut down")}.items():
        monkeypatch.setattr(node.rclpy, name, what, raising=False)
    node.main()
    assert done == ["cutline", "destroyed", "shut down"]
    monkeypatch.setitem(StandIn.given, "drafter", "/nowhere")
    with pytest.raises(SystemExit, match="/nowhere"):
        node.main()


def test_it_is_built_on_what_programs_may_use() -> None:
    """On `cutline` itself, and the demo's bundles; never on a room."""
    taken, used = set[str](), set[str]()
    for file in (ROOT / "ros2/cutline_ros").glob("*.py"):
        for one in ast.walk(ast.parse(file.read_text())):
            match one:
                case ast.Import(names):
                    taken |= {name.name for name in names}
                case ast.ImportFrom(module=str(module)):
                    taken.add(module)
                case ast.Attribute(value=ast.Name(id="cutline"), attr=name):
                    used.add(name)
    assert {name for name in taken if name.split(".")[0] == "cutline"} == {"cutline", "cutline.demo.bundles"}
    assert used - {"demo"} <= set(cutline.__all__)

"""The node: topics and parameters in, what an Inquiry tells out. README.md says what each is."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image
from std_msgs.msg import String

import cutline
import cutline.demo.bundles
from cutline_ros.inquiry import Frame, Inquiry, InquiryOptions, Outcome
from cutline_ros.pictures import RawPicture

PARAMETERS: dict[str, Any] = {
    "drafter": "",
    "target": "",
    "workers": [""],
    "offline": False,
    "ca": "",
    "cert": "",
    "key": "",
    "token_file": "",
    "question": "",
    "mode": "auto",
    "max_tokens": 0,
    "timeout": 60.0,
    "jpeg_quality": 90,
}


class AnswersNode(Node):  # type: ignore[misc]
    """Subscribes to `image` and `question`, publishes `answer` and `report`."""

    def __init__(self) -> None:
        super().__init__("cutline")
        given = {name: self.declare_parameter(name, value).value for name, value in PARAMETERS.items()}
        self._answers = self.create_publisher(String, "answer", 10)
        self._reports = self.create_publisher(String, "report", 10)
        self._stack = ExitStack()
        agent = self._stack.enter_context(cutline.BlockingAgent(_agent(given)))
        options = InquiryOptions(
            standing=given["question"],
            mode=given["mode"],
            max_tokens=given["max_tokens"] or None,
            timeout=given["timeout"],
            quality=given["jpeg_quality"],
        )
        self._inquiry = self._stack.enter_context(Inquiry(agent.answer, self._tell, options))
        self.create_subscription(Image, "image", self._see, qos_profile_sensor_data)
        self.create_subscription(String, "question", lambda message: self._inquiry.ask(message.data), 10)

    def close(self) -> None:
        """Finish what is being answered, and let the models go."""
        self._stack.close()

    def _see(self, message: Any) -> None:
        picture = RawPicture(
            width=message.width,
            height=message.height,
            encoding=message.encoding,
            step=message.step,
            data=memoryview(message.data),
        )
        stamp = message.header.stamp
        self._inquiry.see(Frame(picture=picture, stamp=(stamp.sec, stamp.nanosec), frame_id=message.header.frame_id))

    def _tell(self, outcome: Outcome) -> None:
        if outcome.answer is None:
            self.get_logger().warning(outcome.error)
        else:
            self._answers.publish(String(data=outcome.answer.text))
        self._reports.publish(String(data=outcome.report))


def _agent(given: dict[str, Any]) -> cutline.Agent:
    """The agent that the parameters ask for. Raises cutline.CutlineError."""
    files = {name: Path(given[name]) if given[name] else None for name in ("ca", "cert", "key", "token_file")}
    return cutline.Agent(
        cutline.Bundle.open(Path(given["drafter"]) if given["drafter"] else cutline.demo.bundles.DRAFTER),
        target=cutline.Bundle.open(Path(given["target"])) if given["target"] else None,
        worker=[one for one in given["workers"] if one] or None,
        keys=cutline.AgentKeys(
            ca=files["ca"], certificate=files["cert"], key=files["key"], token_file=files["token_file"]
        ),
        settings=cutline.AgentSettings(offline=given["offline"]),
    )


def main() -> None:
    """What `ros2 run cutline_ros answers` runs."""
    rclpy.init()
    try:
        node = AnswersNode()
    except cutline.CutlineError as error:
        raise SystemExit(str(error)) from None
    try:
        rclpy.spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        node.close()
        node.destroy_node()
        rclpy.try_shutdown()

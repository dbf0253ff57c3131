"""The node on a camera's topic: `ros2 launch cutline_ros cutline_launch.py image:=/camera/image_raw`."""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

ARGUMENTS = {
    "image": ("/camera/image_raw", "the camera's topic"),
    "drafter": ("", "the drafter's bundle; the demo's, where nothing is given"),
    "workers": ("['']", "addresses of workers, first the one that is asked first; none: the robot alone"),
    "question": ("", "asked of the newest picture, again and again; nothing: only what comes by the topic"),
}
KINDS = {"drafter": str, "workers": list[str], "question": str}  # else a question would be read as YAML


def generate_launch_description() -> LaunchDescription:
    """What `ros2 launch` runs."""
    given = {name: LaunchConfiguration(name) for name in ARGUMENTS}
    node = Node(
        package="cutline_ros",
        executable="answers",
        name="cutline",
        output="screen",
        parameters=[{name: ParameterValue(given[name], value_type=kind) for name, kind in KINDS.items()}],
        remappings=[("image", given["image"])],
    )
    declared = [
        DeclareLaunchArgument(name, default_value=value, description=what) for name, (value, what) in ARGUMENTS.items()
    ]
    return LaunchDescription([*declared, node])

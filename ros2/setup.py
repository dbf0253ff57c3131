"""The package as colcon installs it. `cutline` itself comes from pip: README.md."""

from setuptools import setup

NAME = "cutline_ros"

setup(
    name=NAME,
    version="0.1.0",
    description="Answers questions about a camera's pictures with Cutline",
    license="MIT",
    packages=[NAME],
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        (f"share/{NAME}/launch", ["launch/cutline_launch.py"]),
    ],
    install_requires=["setuptools"],
    zip_safe=True,
    entry_points={"console_scripts": [f"answers = {NAME}.node:main"]},
)

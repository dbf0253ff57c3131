"""Generate the gRPC stubs beside their .proto files; with `--check`, only say whether they are fresh.

The stubs are committed, so that an install needs no compiler. They are written through the symlinks of .dev, which
gives them the imports `cutline.protos.v1...` that the package has.

Stubs ask for a grpcio and a protobuf no older than the compiler's own. So it is an old one, and stands apart, in
build/, for it would have everything else be as old; the lower bounds in pyproject.toml follow it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
COMPILER = "grpcio-tools==1.76.0"  # asks for grpcio 1.76.0 and protobuf 6.31.1


def compiler() -> Path:
    """The folder of the compiler, which is installed if it is not there."""
    folder = ROOT / "build" / COMPILER.replace("==", "-")
    if not folder.is_dir():
        with tempfile.TemporaryDirectory(dir=ROOT) as made:
            install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", f"--target={made}/tools"]
            subprocess.run([*install, COMPILER], check=True)
            folder.parent.mkdir(exist_ok=True)
            Path(made, "tools").replace(folder)
    return folder


def generate(out: Path) -> None:
    """Compile every .proto file; the stubs land in `out`/cutline/protos/..."""
    sources = sorted(str(path.relative_to(ROOT)) for path in PROTOS.rglob("*.proto"))
    outs = [f"--{kind}_out={out}" for kind in ("python", "pyi", "grpc_python")]
    command = [sys.executable, "-m", "grpc_tools.protoc", "-Icutline/protos=protos", *outs, *sources]
    subprocess.run(command, cwd=ROOT, check=True, env=os.environ | {"PYTHONPATH": str(compiler())})


def stale() -> list[str]:
    """The stubs that a fresh run would write otherwise, add or leave out."""
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        fresh = _stubs(Path(folder) / "cutline" / "protos")
    committed = _stubs(PROTOS)
    return sorted(name for name in fresh.keys() | committed.keys() if fresh.get(name) != committed.get(name))


def _stubs(folder: Path) -> dict[str, bytes]:
    found = [path for ending in ("py", "pyi") for path in folder.rglob(f"*_pb2*.{ending}")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def main() -> None:
    """Generate, or check and exit with 1 where something is stale."""
    parser = argparse.ArgumentParser(description="Generate the gRPC stubs.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a stub is stale")
    if not parser.parse_args().check:
        generate(ROOT / ".dev")
    elif names := stale():
        sys.exit(f"stale in protos/: {', '.join(names)}; run `make stubs`")


if __name__ == "__main__":
    main()

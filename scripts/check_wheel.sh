#!/bin/sh
# Build sdist and wheel, install the wheel with no extras in a clean environment outside the repository, and ask it a
# question there. Usage: scripts/check_wheel.sh PYTHON, where PYTHON has `build`.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
python=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT INT TERM

echo "Building sdist and wheel"
"$python" -m build --outdir "$work/dist" "$root" >"$work/build.log" 2>&1 || { cat "$work/build.log"; exit 1; }

echo "Installing the wheel alone"
cd "$work"
"$python" -m venv venv
venv/bin/python -m pip install --quiet dist/*.whl

venv/bin/python - <<'PY'
import importlib.metadata
import importlib.util

import cutline.errors

assert importlib.metadata.version("cutline")
assert "site-packages" in (cutline.errors.__file__ or ""), "the wheel is not what was imported"
for heavy in ("torch", "transformers", "matplotlib", "sklearn", "onnx"):
    assert importlib.util.find_spec(heavy) is None, f"a bare install brings {heavy}"
PY

card=$(venv/bin/python -c 'import cutline.demo, pathlib
print(min(pathlib.Path(cutline.demo.__path__[0]).rglob("*.png")))')
venv/bin/cutline ask "$card" "What digits are on the card?" --mode edge --json >answer.json
venv/bin/python - <<'PY'
import json

answer = json.load(open("answer.json"))
assert answer["text"] and answer["mode"] == "edge" and all(t["source"] == "edge" for t in answer["tokens"]), answer
print("A bare install answers:", answer["text"])
PY

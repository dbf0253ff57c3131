#!/usr/bin/env bash
# Installs Cutline with the oldest versions that pyproject.toml allows, and sees that it does what an install must do.
# Arguments: the Python to make the environment with, then extras such as cloud, whose torch is $TORCH.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1 extras=${2:-} env=build/lowest
rm -rf "$env"
"$python" -m venv "$env"
"$env/bin/pip" install --quiet uv
case ",$extras," in *,cloud,*) "$env/bin/pip" install --quiet "$TORCH" ;; esac
export VIRTUAL_ENV=$PWD/$env
"$env/bin/uv" pip install --quiet --resolution lowest-direct --editable ".${extras:+[$extras]}"
"$env/bin/uv" pip install --quiet pytest pytest-timeout openai # beside it, as new as goes with those
"$env/bin/uv" pip freeze
# What else tests stand on needs more than this install has.
OMP_NUM_THREADS=1 "$env/bin/python" -m pytest -q -p no:cacheprovider --noconftest tests/install

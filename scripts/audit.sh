#!/bin/sh
# Ask for known vulnerabilities of everything that is installed, and list it as CycloneDX in build/audit/sbom.json.
# Usage: scripts/audit.sh PYTHON [pypi|osv], where PYTHON has the packages. Exit status 1: there are some; 3: not known.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
python=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
service=${2:-pypi}
work="$root/build/audit"
mkdir -p "$work"

# In an environment of their own: what the tools bring is not what is audited.
[ -x "$work/venv/bin/pip-audit" ] || {
    "$python" -m venv "$work/venv"
    "$work/venv/bin/python" -m pip install --quiet 'pip-audit~=2.10.1' 'cyclonedx-bom~=7.5.0'
}

"$python" -m pip freeze --exclude-editable >"$work/installed.txt"
"$work/venv/bin/cyclonedx-py" environment --output-format JSON --output-file "$work/sbom.json" "$python"
echo "$(wc -l <"$work/installed.txt") packages are installed; $work/sbom.json lists them"

ask() { # FILE: writes what the service says of the packages in it, and succeeds if it knew any of them
    "$work/venv/bin/pip-audit" --requirement "$1" --no-deps --disable-pip --vulnerability-service "$service" \
        --format json --progress-spinner off --output "$work/advisories.json" 2>"$work/audit.log" || true
    "$work/venv/bin/python" - "$work/advisories.json" <<'PY'
import json, pathlib, sys

file = pathlib.Path(sys.argv[1])
packages = json.loads(file.read_text())["dependencies"] if file.exists() else []
known = [one for one in packages if "vulns" in one]
for one in known:
    for found in one["vulns"]:
        print(f"{one['name']} {one['version']}: {found['id']}, fixed in {' or '.join(found['fix_versions']) or 'nothing'}")
print(f"{len(known)} of {len(packages)} packages are known to the service")
sys.exit(3 if not known else any(one["vulns"] for one in known))
PY
}

# One first: where that gets no answer, two hundred would not either.
rm -f "$work/advisories.json"
grep -m 1 '^pillow==' "$work/installed.txt" >"$work/one.txt"
ask "$work/one.txt" >/dev/null || [ $? -eq 1 ] || {
    echo "the advisory service $service does not answer ($work/audit.log), so nothing is known" >&2
    exit 3
}
ask "$work/installed.txt"

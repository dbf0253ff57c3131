#!/usr/bin/env bash
# Proves the install of a 64-bit ARM board on any other machine: into a fresh Debian for arm64, run by qemu's user
# emulation, pip installs the wheel with nothing but what it asks for, and a question about a card is answered.
# Needs Debian or Ubuntu, root, the registries of both and of PyPI, and 2 GB of disk; takes some minutes.
#
#     make arm64             which is: scripts/arm64.sh PYTHON [FOLDER]
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1
root=${2:-build/arm64}
suite=${SUITE:-bookworm} # as Raspberry Pi OS and Jetson's containers have it: Python 3.11

if [ "$(id -u)" != 0 ]; then
    echo "root is needed, for chroot; run it with sudo" >&2
    exit 2
fi
command -v debootstrap >/dev/null && command -v qemu-aarch64-static >/dev/null || {
    apt-get update -q
    apt-get install -q -y debootstrap qemu-user-static binfmt-support
}
# The kernel hands arm64 programs to qemu; a container may have to be told.
mountpoint -q /proc/sys/fs/binfmt_misc || mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
[ -e /proc/sys/fs/binfmt_misc/qemu-aarch64 ] || update-binfmts --enable qemu-aarch64

if [ ! -e "$root/done" ]; then
    rm -rf "$root"
    mkdir -p "$root"
    debootstrap --arch=arm64 --foreign --variant=minbase --include=python3,python3-venv,ca-certificates "$suite" "$root"
    cp "$(command -v qemu-aarch64-static)" "$root/usr/bin/"
    chroot "$root" /debootstrap/debootstrap --second-stage
    touch "$root/done"
fi
root=$(realpath "$root")
# Names and certificates as this machine has them: it may sit behind a proxy that signs.
cp /etc/resolv.conf "$root/etc/"
cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
# Without /proc a library does not find the files that its weights lie in.
mountpoint -q "$root/proc" || mount -t proc proc "$root/proc"
trap 'umount "$root/proc"' EXIT

rm -rf "$root/dist" "$root/venv"
"$python" -m build --wheel --outdir "$root/dist" >/dev/null
inside() { chroot "$root" /usr/bin/env -i PATH=/venv/bin:/usr/bin:/bin HOME=/root LANG=C.UTF-8 "$@"; }
inside uname -m
inside python3 -m venv /venv
inside pip install --quiet --only-binary :all: --disable-pip-version-check "/dist/$(basename "$root"/dist/*.whl)"
card=$(inside python -c 'import cutline.demo, pathlib
print(min(pathlib.Path(cutline.demo.__path__[0]).rglob("*.png")))')
inside cutline ask "$card" "What digits are on the card?" --mode edge
inside cutline doctor || true # an emulated board has much to say of

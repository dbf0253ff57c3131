#!/usr/bin/env bash
# Installs Chromium and its driver, for the tests of the page, on Debian or Ubuntu; does nothing where both are there.
set -euo pipefail
if command -v chromium >/dev/null && command -v chromedriver >/dev/null; then
    exit 0
fi
if [ "$(id -u)" != 0 ]; then
    echo "browser.sh: chromium with chromedriver is missing; run this script as root" >&2
    exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -qq --no-install-recommends chromium chromium-driver fonts-inter fonts-liberation

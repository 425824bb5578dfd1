#!/usr/bin/env bash
# Install a browser for the tests of pages, on Debian and as root. Does nothing where it is there.
set -euo pipefail

if command -v chromium > /dev/null && command -v chromedriver > /dev/null; then
    exit
fi
if [[ $EUID != 0 ]] || ! command -v apt-get > /dev/null; then
    echo "not root, or no apt-get: install chromium and chromedriver to test pages" >&2
    exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends chromium chromium-driver

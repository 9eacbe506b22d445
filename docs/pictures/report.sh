#!/usr/bin/env bash
# Takes the picture of a report: int8 beside fp32 on the held-out digits. Needs Chromium.
#
#   docs/pictures/report.sh      # → docs/pictures/report.png
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export PATH="$root/.venv/bin:$PATH"

vistazo export lenet --models models
vistazo export lenet --models models --precision int8
python -m vistazo_export.networks.digits --out digits
vistazo evaluate digits --models models --model lenet-int8 --baseline lenet --report report.html
chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --window-size=1100,2370 \
  --screenshot="$work/report.png" "file://$work/report.html"
# Few colours: the page has no more.
python -c 'import sys; from PIL import Image
Image.open(sys.argv[1]).convert("RGB").quantize(128).save(sys.argv[2], optimize=True)' \
  "$work/report.png" "$root/docs/pictures/report.png"

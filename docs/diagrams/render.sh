#!/usr/bin/env bash
# Draws each NAME.mmd here as NAME.svg, so that readers and builds need no JavaScript. `make diagrams` calls it after
# a drawing was changed; it takes npm, Chromium and the network. The sum at the end of an SVG tells which text it is of.
set -euo pipefail
cd "$(dirname "$0")"

export PUPPETEER_SKIP_DOWNLOAD=1 PUPPETEER_EXECUTABLE_PATH="${CHROMIUM:-$(command -v chromium || command -v google-chrome)}"
browser=$(mktemp --suffix=.json)
trap 'rm -f "$browser"' EXIT
echo '{"args": ["--no-sandbox"]}' >"$browser"
for source in *.mmd; do
  svg=${source%.mmd}.svg
  npx --yes @mermaid-js/mermaid-cli@11 --quiet --puppeteerConfigFile "$browser" --configFile config.json \
    --backgroundColor white --input "$source" --output "$svg"
  echo "<!-- sha256 of $source: $(sha256sum <"$source" | cut -d' ' -f1) -->" >>"$svg"
done

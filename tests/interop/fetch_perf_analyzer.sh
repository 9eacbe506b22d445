#!/usr/bin/env bash
# Puts NVIDIA's perf_analyzer with the two libraries that it needs into a folder: fetch_perf_analyzer.sh DIR.
# For x86-64 Linux with Debian's or Ubuntu's apt. Nothing is installed.
set -euo pipefail
target=$1
# With 2.51 the binary moved to a package of its own, built for a newer glibc than Debian 12 has.
client=tritonclient==2.50.0
if [[ -x $target/bin/perf_analyzer ]]; then exit 0; fi
mkdir -p "$target"
folder=$(mktemp -d "$target/fetch.XXXXXX")
trap 'rm -rf "$folder"' EXIT
python=${PYTHON:-python3}
"$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
  --platform manylinux1_x86_64 --dest "$folder" "$client"
"$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
  --platform manylinux2014_x86_64 --dest "$folder" 'nvidia-cuda-runtime-cu12==12.*'
cd "$folder"
# A fresh machine may have no lists of packages yet.
apt-get download --quiet --quiet libb64-0d || { apt-get update --quiet --quiet && apt-get download --quiet --quiet libb64-0d; }
cd "$OLDPWD"
for wheel in "$folder"/*.whl; do "$python" -m zipfile --extract "$wheel" "$folder/unpacked"; done
dpkg-deb --extract "$folder"/libb64-0d_*.deb "$folder/unpacked"
mkdir -p "$target/lib" "$target/bin"
find "$folder/unpacked" \( -name 'libb64.so.0d' -o -name 'libcudart.so.12' \) -exec cp --dereference {} "$target/lib" \;
cp "$(find "$folder/unpacked" -name perf_analyzer)" "$target/bin/"
chmod +x "$target/bin/perf_analyzer"
LD_LIBRARY_PATH=$target/lib "$target/bin/perf_analyzer" --version

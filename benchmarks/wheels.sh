#!/usr/bin/env bash
# The wheels that benchmarks/on_gpu.sh needs beside torch, transformers and accelerate, for a machine without network.
#
#     benchmarks/wheels.sh FOLDER [PYTHON_VERSION]
#
# For x86-64 Linux and Python 3.12 unless said otherwise; some 16 MB, bitsandbytes' library for CUDA 13.0 alone.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$1
version=${2:-3.12}

pinned() { # the requirement as requirements.txt pins it
	grep -oE "^$1==[^ ]+" requirements.txt
}

options=(-q --only-binary=:all: --python-version "$version" --implementation cp -d "$folder")
for glibc in 2_17 2_24 2_27 2_28; do options+=(--platform "manylinux_${glibc}_x86_64"); done
options+=(--platform manylinux2014_x86_64 --platform manylinux1_x86_64)

python3 -m pip download "${options[@]}" "$(pinned pydantic)" "$(pinned pydantic-settings)"
python3 -m pip download "${options[@]}" --no-deps \
	"$(pinned diffusers)" "$(pinned torchao)" "$(pinned bitsandbytes)" "$(pinned peft)" \
	importlib_metadata
python3 - "$folder" <<'PYTHON'
"""The wheel of bitsandbytes without the libraries for other versions of CUDA and other makers' cards: 43 to 4 MB."""
import pathlib, re, sys, zipfile

(wheel,) = pathlib.Path(sys.argv[1]).glob("bitsandbytes-*.whl")
whole = wheel.rename(wheel.with_suffix(".whole"))
with zipfile.ZipFile(whole) as source, zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as target:
    for name in source.namelist():
        if not re.search(r"libbitsandbytes_(?!cpu|cuda130)", name):
            target.writestr(name, source.read(name))
whole.unlink()
PYTHON
du -ch "$folder"/*.whl | tail -1

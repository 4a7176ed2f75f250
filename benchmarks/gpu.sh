#!/usr/bin/env bash
# Measures what is asked of one GPU, on a machine that is rented for ten minutes and may have
# no network. Options go to benchmarks/gpu.py:
#
#   bash benchmarks/gpu.sh --out gpu --budget 540
#
# Called again, it makes what is missing. gpu/campaign.md and gpu/campaign.json have what was
# measured. Copy the folder gpu back, and in again before the next call.
#
# What is installed is used where it suffices: PYTHON names the interpreter. Else it is
# installed from a folder of wheels, WHEELS (default: wheels). To fill that, on a machine with
# a network, of the same kind and with the same version of Python:
#
#   python -m pip download --dest wheels '.[cuda]' 'setuptools>=77' wheel
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

wheels=${WHEELS:-wheels}
venv=${VENV:-${TMPDIR:-/tmp}/harmoniad-campaign-venv}
suffices='
import flax, grain, jax, matplotlib, ml_collections, orbax.checkpoint, scipy, transformers
assert jax.default_backend() != "cpu" or "--tiny" in __import__("sys").argv
'

fits() {
    "$1" -c "$suffices" "${@:2}" > /dev/null 2>&1
}

for python in ${PYTHON:-.venv/bin/python python3} "$venv/bin/python"; do
    if command -v "$python" > /dev/null && fits "$python" "$@"; then
        exec "$python" benchmarks/gpu.py "$@"
    fi
done
if [ ! -d "$wheels" ]; then
    echo "error: no Python here has JAX with an accelerator and the other packages, and" \
        "there is no folder $wheels to install them from; the first lines of" \
        "benchmarks/gpu.sh tell how to fill it." >&2
    exit 2
fi
echo "Installing from $wheels into $venv ..." >&2
"${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --no-index --find-links "$wheels" setuptools wheel
"$venv/bin/python" -m pip install --quiet --no-index --find-links "$wheels" \
    --no-build-isolation '.[cuda]'
if ! fits "$venv/bin/python" "$@"; then
    echo "error: JAX finds no accelerator here." >&2
    exit 2
fi
exec "$venv/bin/python" benchmarks/gpu.py "$@"

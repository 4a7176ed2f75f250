#!/usr/bin/env bash
# From nothing to a trained and evaluated demo: installs into .venv, draws three products,
# trains on their good images and prints a table. Needs Python >= 3.11 and PyPI, no model
# hub: the encoder is untrained, so the figures say nothing about real images.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_venv.sh" ""

python -m harmoniad_jax.train --config configs/demo.py --workdir runs/demo "$@"
cat <<'EOF'

That was the demo: drawn products and an encoder with random weights.
For your own photos see "Your own products" in README.md.
EOF

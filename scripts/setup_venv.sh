# Sourced by the other scripts: makes .venv in the project's root once, and enters it.
# Needs Python >= 3.11; PYTHON names another interpreter than the first that fits.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || return

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
            2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "error: found no Python 3.11 to 3.13 (tried ${PYTHON:-python3, python3.13," \
        "python3.12, python3.11}); install one, or name it with PYTHON=..." >&2
    return 1
}

python=$(find_python)
# The mark is written last, so that an interrupted installation is repeated. It names the
# folder too: a virtual environment that was moved does not work.
mark=.venv/installed
wanted="$PWD $(cat setup.py setup.cfg | cksum)"
if [ "$(cat "$mark" 2> /dev/null)" != "$wanted" ]; then
    echo "Installing into .venv with $("$python" --version) ..."
    # Over what is there: an accelerator's packages stay installed.
    "$python" -m venv .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
    echo "$wanted" > "$mark"
fi
source .venv/bin/activate

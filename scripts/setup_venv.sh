# Sourced by the other scripts: makes .venv in the project's root once, and enters it.
# Needs Python >= 3.11; PYTHON names another interpreter than the first that fits.
#
#   source scripts/setup_venv.sh EXTRAS    with these extras of setup.cfg, or ""

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

pip() { .venv/bin/python -m pip --disable-pip-version-check "$@"; }

# uv does not read pip's settings, which may name an index of one's own.
give_uv() { # SETTING VARIABLE
    local value
    value=$(sed -n "s/^\(global\|install\|:env:\)\.$1='\(.*\)'\$/\2/p" <<< "$told" | tail -n 1)
    if [ -n "$value" ] && [ -z "${!2:-}" ]; then export "$2=$value"; fi
}

with_uv() ( # PROJECT
    set +e
    uv=$(command -v uv)
    if [ -z "$uv" ]; then pip install --quiet uv 2> /dev/null && uv=.venv/bin/uv; fi
    if [ -z "$uv" ]; then return 1; fi
    told=$(pip config list 2> /dev/null)
    give_uv index-url UV_DEFAULT_INDEX
    give_uv extra-index-url UV_INDEX
    give_uv find-links UV_FIND_LINKS
    give_uv constraint UV_CONSTRAINT
    give_uv cert SSL_CERT_FILE
    # The best version of all indexes, as pip takes it.
    export UV_INDEX_STRATEGY=${UV_INDEX_STRATEGY:-unsafe-best-match}
    "$uv" pip install --quiet --python .venv/bin/python --editable "$1"
)

# uv takes seconds where pip takes a minute; pip installs where uv cannot be had or fails.
install() { # PROJECT
    with_uv "$1" || pip install --quiet --editable "$1"
}

extras=$1
python=$(find_python)
# The mark is written last, so that an interrupted installation is repeated. It names the
# folder too: a virtual environment that was moved does not work.
mark=.venv/installed
wanted="$PWD $(cat setup.py setup.cfg | cksum)"
case "$(cat "$mark" 2> /dev/null)" in
    "$wanted $extras" | "$wanted test") ;;
    *)
        echo "Installing into .venv with $("$python" --version) ..."
        # Over what is there: an accelerator's packages stay installed.
        "$python" -m venv .venv
        install ".${extras:+[$extras]}"
        echo "$wanted $extras" > "$mark"
        ;;
esac
source .venv/bin/activate

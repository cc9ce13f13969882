#!/usr/bin/env bash
# Prints the path of a Python that can make sgjax's environment: 3.12 or newer, with venv and ensurepip.
# PYTHON=/path/to/python chooses one. Explains on stderr and exits 1 when there is none.
set -u

usable() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 12))' >/dev/null 2>&1; }
complete() { "$1" -c 'import ensurepip, venv' >/dev/null 2>&1; }

# Every match of a name on PATH, not just the first: a pyenv shim may fail where /usr/bin has the real thing.
candidates() {
    if [ -n "${PYTHON:-}" ]; then
        type -aP "$PYTHON"
        return
    fi
    for name in python3 python3.12 python3.13 python3.14 python3.15 python; do
        type -aP "$name"
    done
    for root in "${PYENV_ROOT:-$HOME/.pyenv}/versions" "${XDG_DATA_HOME:-$HOME/.local/share}/uv/python"; do
        ls -d "$root"/*3.1[2-9]*/bin/python3
    done 2>/dev/null
}

found="" incomplete=""
while IFS= read -r python; do
    if ! usable "$python"; then
        found="$found  $python ($("$python" -V 2>&1 | head -n 1))"$'\n'
    elif ! complete "$python"; then
        incomplete="$python"
    else
        echo "$python"
        exit 0
    fi
done < <(candidates | awk '!seen[$0]++')

{
    if [ -n "$incomplete" ]; then
        version=$("$incomplete" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
        echo "sgjax: $incomplete cannot make a virtual environment: its venv or ensurepip module is missing."
        echo "On Debian and Ubuntu: sudo apt install python$version-venv"
    elif [ -n "${PYTHON:-}" ]; then
        echo "sgjax: PYTHON=$PYTHON is not a Python 3.12 or newer."
    else
        echo "sgjax needs Python 3.12 or newer (jax does), and found none."
        [ -n "$found" ] && printf 'Found only:\n%s' "$found"
        echo "Install one, for instance with:"
        echo "  sudo apt install python3.12 python3.12-venv    (Ubuntu 24.04; Debian 13 has python3.13)"
        echo "  pyenv install 3.12    or    uv python install 3.12"
    fi
    echo "or name one: make PYTHON=/path/to/python3.12 ..."
} >&2
exit 1

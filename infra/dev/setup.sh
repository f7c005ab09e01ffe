#!/usr/bin/env bash
# Makes .venv from the pinned lock, alone, on a machine that has nothing but Python 3.11+ and the network.
#
#   infra/dev/setup.sh            make or refresh .venv; nothing to do takes milliseconds
#   infra/dev/setup.sh uv ARGS    run uv itself, installing it when it is missing (used by `make lock`)
#
# torch's CPU build is not on PyPI. It comes from the directory or page in PIP_FIND_LINKS when that holds a torch wheel,
# else from PyTorch's own CPU index. Needs no root; writes only .uv, .venv and uv's cache. Where it is root and apt-get
# is there, it also installs Chromium for the tests that look at pages (not with SHUNTSERVE_NO_APT=1).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

UV_VERSION=0.13.9
LOCK=infra/locks/dev.txt
VENV=.venv

say() { printf 'setup: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

find_python() { # the first interpreter that runs and is new enough; uv itself can live in any of them
    local name
    for name in python3.11 python3.12 python3.13 python3 python; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 8))' >/dev/null 2>&1; then
            printf '%s' "$name"
            return
        fi
    done
    return 1
}

find_uv() {
    local candidate python user_base
    for candidate in uv .uv/bin/uv "$HOME/.local/bin/uv"; do
        # An old uv does not know --torch-backend; a version manager's shim may exist and not run.
        if "$candidate" pip install --help 2>/dev/null | grep -q -- --torch-backend; then
            UV=$candidate
            return
        fi
    done
    python=$(find_python) || die "no working python3 on PATH: install Python 3.11 or newer"
    say "installing uv $UV_VERSION"
    # Debian keeps venv in a package of its own and forbids installing beside the system's packages: try both ways.
    if "$python" -m venv .uv >/dev/null 2>&1 && .uv/bin/python -m pip install --quiet "uv==$UV_VERSION" >&2; then
        UV=.uv/bin/uv
    elif "$python" -m pip install --quiet --user "uv==$UV_VERSION" >&2; then
        user_base=$("$python" -m site --user-base)
        UV=$user_base/bin/uv
    else
        die "could not install uv: see https://docs.astral.sh/uv/getting-started/installation/ and run again"
    fi
}

choose_python() { # 3.11 first: it is what the suite runs on and what a local torch wheel is most often built for
    local version path
    for version in 3.11 3.12 3.13; do
        if path=$("$UV" python find --no-project --system --no-python-downloads "$version" 2>/dev/null); then
            printf '%s' "$path"
            return
        fi
    done
    printf '3.11' # none here: uv fetches one
}

torch_source() { # arguments that tell uv where torch's CPU build comes from
    local place
    for place in ${PIP_FIND_LINKS:-}; do
        if [[ $place == *://* ]] || compgen -G "${place%/}/torch-*.whl" >/dev/null; then
            printf '%s\n' --find-links "$place"
            return
        fi
    done
    printf '%s\n' --torch-backend cpu
}

install_browser() { # without one, the tests that need it are skipped and say so
    local name log apt=(apt-get -qq -o Acquire::http::Timeout=20 -o Acquire::Retries=1 -o DPkg::Lock::Timeout=120)
    for name in chromium chromium-browser google-chrome-stable google-chrome; do
        command -v "$name" >/dev/null && return
    done
    [[ $(id -u) == 0 && -z ${SHUNTSERVE_NO_APT:-} ]] && command -v apt-get >/dev/null || return 0
    say "installing chromium (tests of pages)"
    log=$(mktemp)
    export DEBIAN_FRONTEND=noninteractive
    if ! { "${apt[@]}" update && "${apt[@]}" install -y --no-install-recommends chromium fonts-dejavu-core; } \
        >"$log" 2>&1 </dev/null; then
        say "chromium could not be installed; tests that need a browser will be skipped: $(tail -n 1 "$log")"
    fi
    rm -f "$log"
}

if [[ ${1:-} == uv ]]; then
    find_uv
    shift
    exec "$UV" "$@"
fi

stamp="$VENV/.made-from-$(cat "$LOCK" pyproject.toml infra/dev/setup.sh | cksum | tr " " -)"
[[ -e $stamp && -x $VENV/bin/python ]] && exit 0

find_uv
if ! "$VENV/bin/python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' >/dev/null 2>&1; then
    say "making $VENV"
    "$UV" venv --quiet --clear --no-project --python "$(choose_python)" "$VENV"
fi
mapfile -t torch_args < <(torch_source)
export VIRTUAL_ENV=$PWD/$VENV
say "installing $(grep -c == "$LOCK") pinned packages (torch: ${torch_args[*]})"
# Pinned and complete, so nothing is resolved; the lock was compiled without torchvision and its like.
"$UV" pip sync --quiet "${torch_args[@]}" "$LOCK"
"$UV" pip install --quiet --no-deps --no-build-isolation --editable .
install_browser
rm -f "$VENV"/.made-from-*
touch "$stamp"
say "done"

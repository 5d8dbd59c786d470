# What the three scripts share; sourced, with the arguments of the script that sources it.
#
#   SUREBOUND_PYTHON   the interpreter to use; default: the .venv that install_tool.sh makes
#   SUREBOUND_STATE    where the process that runs is noted down

set -u
VERSION=v1
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PYTHON=${SUREBOUND_PYTHON:-$ROOT/.venv/bin/python}
STATE=${SUREBOUND_STATE:-${TMPDIR:-/tmp}/surebound-vnncomp-$(id -u)}
RUNNING=$STATE/running
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"

die() { # message: say it and end
  echo "$(basename "$0"): $1" >&2
  exit 1
}

check_version() { # argument
  [ "$1" = "$VERSION" ] || die "the first argument is the version string '$VERSION', got '$1'"
}

exists() { # path: there, or there with .gz?
  [ -f "$1" ] || [ -f "$1.gz" ]
}

stop_group() { # number: kill a process group, also one whose first process is only about to make it
  kill -KILL -- "-$1" 2>/dev/null || kill -KILL "$1" 2>/dev/null || true
}

stop_leftovers() { # kill what an earlier run_instance.sh noted down, if it still runs and is ours
  [ -f "$RUNNING" ] || return 0
  local group
  read -r group <"$RUNNING" || group=
  case $group in
  '' | *[!0-9]*) ;;
  *)
    if pgrep -g "$group" -f "surebound verify" >/dev/null; then
      stop_group "$group"
    fi
    ;;
  esac
  rm -f "$RUNNING"
}

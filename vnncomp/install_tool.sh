#!/usr/bin/env bash
# install_tool.sh v1: make .venv with the versions of constraints.txt, or check the one that SUREBOUND_PYTHON names.
#   PYTHON3    the interpreter that makes .venv (default: python3)
#   PIP_ARGS   more arguments for pip, such as an index with CPU builds of torch
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
[ $# -ge 1 ] || die "usage: install_tool.sh v1"
check_version "$1"

if [ -z "${SUREBOUND_PYTHON:-}" ]; then
  "${PYTHON3:-python3}" -m venv "$ROOT/.venv" || die "cannot make $ROOT/.venv; is python3-venv installed?"
  install() {
    # shellcheck disable=SC2086  # PIP_ARGS are several words
    "$PYTHON" -m pip install --quiet --disable-pip-version-check --constraint "$ROOT/constraints.txt" \
      ${PIP_ARGS:-} "$@" || die "pip could not install $*; its message says why"
  }
  # torch comes first and by exact version: a plain request for it may pull gigabytes of CUDA libraries.
  install "torch==$(sed -n 's/^torch==//p' "$ROOT/constraints.txt")"
  install --editable "$ROOT"
fi
"$PYTHON" -c "import surebound, torch, onnx, onnxruntime, typer" ||
  die "$PYTHON cannot import Surebound and what it needs; install it there, or unset SUREBOUND_PYTHON"
echo "Surebound is installed for $PYTHON"

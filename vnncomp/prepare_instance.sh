#!/usr/bin/env bash
# prepare_instance.sh v1 CATEGORY ONNX VNNLIB: leave no process of an earlier instance, and say whether this one can run.
# Exit code 0: it can. Nothing is analysed or kept.
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
[ $# -ge 4 ] || die "usage: prepare_instance.sh v1 CATEGORY ONNX VNNLIB"
check_version "$1"
stop_leftovers
exists "$3" || die "$3: no such file, with or without .gz"
exists "$4" || die "$4: no such file, with or without .gz"
"$PYTHON" -c "import surebound.cli" || die "$PYTHON cannot run Surebound; run install_tool.sh, or set SUREBOUND_PYTHON"

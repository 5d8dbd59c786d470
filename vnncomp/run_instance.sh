#!/usr/bin/env bash
# run_instance.sh v1 CATEGORY ONNX VNNLIB RESULTS TIMEOUT: decide one instance within TIMEOUT seconds.
# RESULTS gets sat, unsat, unknown, timeout or error on its first line, and below sat the witness.
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
[ $# -ge 6 ] || die "usage: run_instance.sh v1 CATEGORY ONNX VNNLIB RESULTS TIMEOUT"
check_version "$1"
ONNX=$3 VNNLIB=$4 RESULTS=$5 TIMEOUT=$6

# Whatever happens from here on, RESULTS is complete: an answer takes its place at once.
echo timeout >"$RESULTS" || die "$RESULTS cannot be written"
ANSWER=$(mktemp "$RESULTS.XXXXXX") || die "the folder of $RESULTS cannot be written to"
mkdir -p "$STATE"
GROUP=

finish() {
  [ -z "$GROUP" ] || stop_group "$GROUP"
  rm -f "$ANSWER" "$RUNNING"
}
trap finish EXIT
trap 'exit 143' TERM
trap 'exit 130' INT

# The time to load the interpreter counts, too: the end comes TIMEOUT seconds from now. `timeout` makes itself and
# what it runs a process group of their own.
timeout --signal=KILL "$TIMEOUT" "$PYTHON" -m surebound verify "$ONNX" "$VNNLIB" --timeout "$TIMEOUT" --quiet \
  --results-file "$ANSWER" >/dev/null &
GROUP=$!
echo "$GROUP" >"$RUNNING"
wait "$GROUP" 2>/dev/null # Bash would report the kill.
CODE=$?
GROUP=

VERDICT=
read -r VERDICT <"$ANSWER" || true
case $CODE:$VERDICT in
137:*) echo timeout >"$ANSWER" ;; # Killed: what it may have written is not complete.
0:sat | 0:unsat | *:unknown | *:timeout | *:error) ;; # One that ended badly may have written half a witness.
*:memory | *:unsupported) echo unknown >"$ANSWER" ;; # The judge has no words for these.
*) echo error >"$ANSWER" ;;
esac
chmod 644 "$ANSWER"
mv -f "$ANSWER" "$RESULTS"
echo "$(head -n 1 "$RESULTS"): $ONNX $VNNLIB"

# shellcheck shell=bash
# Says what is going on: a line a phase, with a spinner where there is a terminal; what a phase
# prints goes to a log, whose end is shown when it fails. Sourced by lib.sh.

if [ -t 1 ] && [ "${TERM:-dumb}" != dumb ]; then TERMINAL=yes; else TERMINAL=; fi
if [ -n "$TERMINAL" ] && [ -z "${NO_COLOR:-}" ]; then
  BOLD=$'\e[1m' DIM=$'\e[2m' GREEN=$'\e[32m' RED=$'\e[31m' PLAIN=$'\e[0m'
else
  BOLD='' DIM='' GREEN='' RED='' PLAIN=''
fi

PHASE_PID=

# phase TITLE FUNCTION [ARGUMENT…]: runs a function in a process of its own. What it wants to
# hand on it must `remember`. Exits with its code if it fails.
phase() {
  local title=$1 started=$SECONDS code=0 log
  shift
  log=$STATE/logs/$1.log
  rm -f "$STATE/note" "$STATE/refusal"
  if [ -z "$TERMINAL" ]; then printf '  %-34s ' "$title"; fi
  # With job control the phase has a process group of its own, so that an interrupt ends all of it.
  set -m
  ("$@") >"$log" 2>&1 </dev/null &
  PHASE_PID=$!
  set +m
  if [ -n "$TERMINAL" ]; then spin "$title" "$log" "$started"; fi
  wait "$PHASE_PID" || code=$?
  PHASE_PID=
  if [ "$code" -ne 0 ]; then
    phase_failed "$title" "$code" "$log"
    exit "$code"
  fi
  phase_done "$title" "$started"
  recall
}

# note TEXT: what a phase has to show for itself, at the end of its line.
note() { printf '%s' "$*" >"${NOTE:-$STATE/note}"; }

# refuse REASON HINT…: ends the program, or the phase and with it the program, with code 2: it
# could not, and here is what to do about it.
refuse() {
  local reason=$1
  shift
  mkdir -p "$STATE"
  { printf 'error: %s\n' "$reason"; if [ $# -gt 0 ]; then printf 'hint: %s\n' "$@"; fi; } | tee "$STATE/refusal" >&2
  exit 2
}

# interrupted: for `trap … INT TERM`.
interrupted() {
  if [ -n "$PHASE_PID" ]; then kill -TERM -- "-$PHASE_PID" 2>/dev/null || true; fi
  printf '\ninterrupted; run the same command again to go on\n' >&2
  exit 130
}

spin() {
  local title=$1 log=$2 started=$3 glyphs=('|' '/' '-' "\\") turn=0 columns last
  read -r _ columns < <(stty size <&1 2>/dev/null || echo 24 80)
  while kill -0 "$PHASE_PID" 2>/dev/null; do
    last=$(tail -n 1 "$log" 2>/dev/null | tr -cd '[:print:]')
    last=$(printf '  %s %-34s %4d s  %s' "${glyphs[turn++ % 4]}" "$title" $((SECONDS - started)) "$last")
    printf '\r\e[K%s%s%s' "$DIM" "${last:0:columns-1}" "$PLAIN"
    sleep 0.2
  done
  printf '\r\e[K'
}

phase_done() {
  local title=$1 spent=$((SECONDS - $2)) text=
  if [ -f "$STATE/note" ]; then text=$(<"$STATE/note"); fi
  if [ "$spent" -gt 1 ]; then text="$text ($spent s)"; fi
  if [ -n "$TERMINAL" ]; then printf '  %s✓%s %-34s ' "$GREEN" "$PLAIN" "$title"; fi
  printf '%s\n' "${text:-done}"
}

phase_failed() {
  local title=$1 code=$2 log=$3
  if [ -n "$TERMINAL" ]; then printf '  %s✗%s %s\n' "$RED" "$PLAIN" "$title"; else printf 'failed\n'; fi
  if [ -s "$STATE/refusal" ]; then
    cat "$STATE/refusal" >&2
  else
    { printf '%serror: %s failed with code %d; the end of %s:%s\n' "$BOLD" "$title" "$code" "$log" "$PLAIN"
      tail -n 25 "$log" | sed 's/^/  | /'; } >&2
  fi
}

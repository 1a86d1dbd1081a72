#!/usr/bin/env bash
# A Docker engine of a program's own, at DOCKER_HOST, in the folder OWN_ENGINE: starts it, stops it
# as a service manager does, or kills it with signal 9. `./chaos` runs it in namespaces of its own.
set -euo pipefail

usage() {
  cat <<'USAGE'
usage: OWN_ENGINE=<folder> DOCKER_HOST=unix://<socket> deploy/own_engine.sh start | stop | kill

start   returns at once, whether or not it runs already; the caller waits until it answers
stop    returns when it has ended, and its containers with it
kill    returns when it is gone; its containers go on until it is started again
USAGE
}

pid() { cat "$OWN_ENGINE/dockerd.pid" 2>/dev/null; }

runs() { [ -n "$(pid)" ] && [ "$(cat "/proc/$(pid)/comm" 2>/dev/null)" = dockerd ]; }

start() {
  if runs; then return; fi
  # What a killed engine leaves: a file with its number, which may be another process by now.
  rm -f "$OWN_ENGINE/dockerd.pid"
  setsid dockerd --host "$DOCKER_HOST" --data-root "$OWN_ENGINE/data" --exec-root "$OWN_ENGINE/exec" \
    --pidfile "$OWN_ENGINE/dockerd.pid" >>"$OWN_ENGINE/dockerd.log" 2>&1 </dev/null &
}

# end SIGNAL SECONDS
end() {
  local waited=0
  if ! runs; then return; fi
  kill "-$1" "$(pid)"
  while runs; do
    if [ "$waited" -ge $(($2 * 5)) ]; then
      echo "the engine has not ended within $2 s" >&2
      return 1
    fi
    waited=$((waited + 1))
    sleep 0.2
  done
}

case ${1:-} in
  start) start ;;
  stop) end TERM 50 ;;
  kill) end KILL 10 ;;
  --help | -h) usage ;;
  *) usage >&2; exit 2 ;;
esac

# shellcheck shell=bash
# Runs the control plane in the background, as quickstart wants it. Sourced by quickstart.

# control_plane: the one that runs, if it is healthy and of this build and these settings; else a
# new one. It adopts the containers of the one before.
control_plane() {
  local pid fingerprint
  fingerprint=$({ control_settings; cd "$(binaries release)" && sha256sum towpath towpath-agent towpath-lines; } | sha256sum | cut -d ' ' -f 1)
  if [ "$fingerprint" = "$(cat "$STATE/serve.made-of" 2>/dev/null)" ] && control_plane_pid >/dev/null &&
    eventually 20 control_plane_ready; then
    note "runs already at http://127.0.0.1:$API_PORT"
    return
  fi
  control_plane_stop
  mkdir -p "$STATE/data"
  mapfile -t settings < <(control_settings)
  # A session of its own: it outlives the terminal.
  # shellcheck disable=SC2016
  setsid env "${settings[@]}" bash -c 'echo $$ >"$1/serve.pid" && exec "$2/towpath" serve' towpath "$STATE" "$(binaries release)" \
    >>"$STATE/logs/serve.log" 2>&1 </dev/null &
  if ! eventually 60 control_plane_ready; then
    tail -n 20 "$STATE/logs/serve.log"
    return 1
  fi
  printf %s "$fingerprint" >"$STATE/serve.made-of"
  note "http://127.0.0.1:$API_PORT"
}

control_settings() {
  printf '%s\n' "TOWPATH_INSTANCE=$INSTANCE" "TOWPATH_DATA=$STATE/data" "TOWPATH_LISTEN=127.0.0.1:$API_PORT" \
    "TOWPATH_BROKER__URL=$BROKER_URL" "TOWPATH_BROKER__AGENT_URL=$BROKER_AGENT_URL" "DOCKER_HOST=$ENGINE_HOST"
}

control_plane_ready() { control_plane_pid >/dev/null && request GET "http://127.0.0.1:$API_PORT/ready" >/dev/null; }

# control_plane_pid: prints the process that runs, if there is one and it is ours.
control_plane_pid() {
  local pid
  pid=$(cat "$STATE/serve.pid" 2>/dev/null) || return 1
  [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = towpath ] && printf %s "$pid"
}

control_plane_stop() {
  local pid
  pid=$(control_plane_pid) || return 0
  kill "$pid"
  eventually 30 process_gone "$pid" || kill -KILL "$pid"
  rm -f "$STATE/serve.pid" "$STATE/serve.made-of"
}

# towpath ARGUMENT…: the command line, of this control plane.
towpath() { "$STATE/bin/towpath" "$@"; }

# install_command: bin/towpath, which needs no settings to find this control plane.
install_command() {
  choose_port API_PORT 7700 control_plane_pid
  cat >"$STATE/bin/towpath.new" <<EOF
#!/bin/sh
# Made by quickstart: the command line of the control plane that it started.
export TOWPATH_SERVER="\${TOWPATH_SERVER:-http://127.0.0.1:$API_PORT}"
export TOWPATH_DATA="\${TOWPATH_DATA:-$STATE/data}"
exec "$(binaries release)/towpath" "\$@"
EOF
  chmod +x "$STATE/bin/towpath.new"
  mv "$STATE/bin/towpath.new" "$STATE/bin/towpath"
}

# shellcheck shell=bash
# RabbitMQ beside the engine: the distribution's package as a process of this machine, where no
# image of it can be had. Its own port, node, data and log; a RabbitMQ that runs here already is
# left alone. Sourced by lib.sh.

# beside NETWORK PORT: listens on loopback and at the gateway of the engine's network, where
# containers reach it, and nowhere else. Remembers the gateway as BROKER_GATEWAY.
beside() {
  local network=$1 port=$2 gateway version folder=/var/lib/towpath/$INSTANCE-rabbitmq
  if ! may_install; then
    refuse "RabbitMQ can be had as no image, and only root may install it beside the engine" \
      "sudo ./quickstart" \
      "or pass the URL of one that runs: TOWPATH_BROKER__URL=amqp://user:password@host:5672 ./quickstart"
  fi
  gateway=$(docker network inspect --format '{{(index .IPAM.Config 0).Gateway}}' "$network")
  remember BROKER_GATEWAY "$gateway"
  if beside_pid >/dev/null && amqp_greets 127.0.0.1 "$port"; then
    note "RabbitMQ beside the engine at 127.0.0.1:$port"
    return
  fi
  have rabbitmqctl || install_without_starting rabbitmq-server
  # shellcheck disable=SC2016
  version=$(dpkg-query --showformat '${Version}' --show rabbitmq-server)
  if dpkg --compare-versions "$version" lt 3.10; then
    refuse "RabbitMQ 3.10 or newer is needed; the package of this system is $version" \
      "pass the URL of one that runs: TOWPATH_BROKER__URL=amqp://user:password@host:5672 ./quickstart"
  fi
  secret "$STATE/$INSTANCE-rabbitmq.password"
  install -d "${folder%/*}"
  install -d -m 0700 -o rabbitmq -g rabbitmq "$folder"
  {
    broker_settings "$(<"$STATE/$INSTANCE-rabbitmq.password")"
    printf 'listeners.tcp.1 = 127.0.0.1:%d\nlisteners.tcp.2 = %s:%d\n' "$port" "$gateway" "$port"
  } >"$STATE/build/rabbitmq.conf"
  install -m 0600 -o rabbitmq -g rabbitmq "$STATE/build/rabbitmq.conf" "$folder/rabbitmq.conf"
  rm "$STATE/build/rabbitmq.conf"
  beside_run "$folder"
  if ! eventually 150 amqp_greets 127.0.0.1 "$port"; then
    tail -n 30 "$STATE/logs/rabbitmq.log"
    return 1
  fi
  note "RabbitMQ $version beside the engine at 127.0.0.1:$port"
}

beside_run() {
  local folder=$1
  # shellcheck disable=SC2016
  setsid bash -c 'echo $$ >"$1" && shift && ulimit -n 65536 2>/dev/null; exec "$@"' beside "$STATE/beside.pid" \
    runuser -u rabbitmq -- env HOME="$folder" \
    RABBITMQ_NODENAME="$INSTANCE@localhost" RABBITMQ_CONFIG_FILE="$folder/rabbitmq" \
    RABBITMQ_CONFIG_FILES="$folder/none" RABBITMQ_ADVANCED_CONFIG_FILE="$folder/none" \
    RABBITMQ_MNESIA_BASE="$folder/data" RABBITMQ_LOG_BASE="$folder/log" \
    RABBITMQ_ENABLED_PLUGINS_FILE="$folder/plugins" RABBITMQ_PID_FILE="$folder/pid" \
    RABBITMQ_DIST_PORT="$((BROKER_PORT + 20000))" ERL_EPMD_ADDRESS=127.0.0.1 \
    RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS='-kernel inet_dist_use_interface {127,0,0,1}' \
    /usr/lib/rabbitmq/bin/rabbitmq-server >"$STATE/logs/rabbitmq.log" 2>&1 </dev/null &
}

# beside_pid: prints the process, if it runs and is ours.
beside_pid() {
  local pid
  pid=$(cat "$STATE/beside.pid" 2>/dev/null) || return 1
  [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = runuser ] && printf %s "$pid"
}

# beside_remove: the process and its data; the package stays, as other installed packages do.
beside_remove() {
  local pid
  if pid=$(beside_pid); then
    kill "$pid"
    eventually 60 process_gone "$pid" || kill -KILL "$pid"
    # Erlang's register of nodes refuses to go while another node needs it.
    epmd -kill || true
  fi
  if [ -e "$STATE/beside.pid" ]; then rm -rf --one-file-system "/var/lib/towpath/$INSTANCE-rabbitmq"; fi
}

# install_without_starting PACKAGE: packages of services start them, on ports they share.
install_without_starting() {
  local policy=/usr/sbin/policy-rc.d code=0
  if [ -e "$policy" ]; then install_packages "$@"; return; fi
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod +x "$policy"
  install_packages "$@" || code=$?
  rm -f "$policy"
  return "$code"
}

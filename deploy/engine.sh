# shellcheck shell=bash
# Finds a Docker engine that answers, or installs and starts one. Sourced by lib.sh.

# engine: uses the one at DOCKER_HOST, or of the current context, or at the default socket; else,
# as root where there is apt, installs docker.io and starts it.
engine() {
  if engine_answers; then engine_found; return; fi
  if [ -n "${DOCKER_HOST:-}" ]; then
    refuse "the Docker engine at DOCKER_HOST=$DOCKER_HOST does not answer" \
      "start that engine, or unset DOCKER_HOST"
  fi
  if ! may_install; then engine_advice; fi
  if ! have dockerd || ! have docker; then install_engine; fi
  start_engine
  engine_found
}

engine_answers() { have docker && timeout 15 docker version --format '{{.Server.Version}}' >/dev/null 2>&1; }

# The control plane looks at DOCKER_HOST only, the client also at contexts: make them agree.
engine_found() {
  local host=${DOCKER_HOST:-}
  if [ -z "$host" ]; then
    host=$(docker context inspect --format '{{.Endpoints.docker.Host}}' 2>/dev/null || true)
  fi
  remember ENGINE_HOST "${host:-unix:///var/run/docker.sock}"
  note "Docker $(docker version --format '{{.Server.Version}}')"
}

engine_advice() {
  local again="then run this again"
  if have docker && [ -S /var/run/docker.sock ] && [ ! -w /var/run/docker.sock ]; then
    refuse "you may not use the Docker engine that runs here" \
      "sudo usermod -aG docker $(id -un) && newgrp docker" "$again"
  elif have dockerd; then
    refuse "Docker is installed and does not run" "sudo systemctl start docker" "$again"
  elif have apt-get; then
    refuse "there is no Docker engine here, and only root may install one" \
      "sudo apt-get update && sudo apt-get install -y docker.io && sudo usermod -aG docker $(id -un) && newgrp docker" \
      "$again"
  else
    refuse "there is no Docker engine here, and no apt to install one with" \
      "install and start Docker Engine 20.10 or newer" "$again"
  fi
}

install_engine() {
  local packages=(docker.io iptables)
  # Debian 13 has the client in a package of its own.
  if ! have apt-cache || ! apt-cache show docker.io >/dev/null 2>&1; then apt-get update -qq; fi
  if apt-cache show docker-cli >/dev/null 2>&1; then packages+=(docker-cli); fi
  install_packages "${packages[@]}"
}

start_engine() {
  if [ -d /run/systemd/system ]; then
    systemctl start docker
  else
    # A session of its own: it outlives the terminal. `--down` ends it, because its pid is here.
    # shellcheck disable=SC2016
    setsid bash -c 'echo $$ >"$1" && exec dockerd' dockerd "$STATE/dockerd.pid" \
      >"$STATE/logs/dockerd.log" 2>&1 </dev/null &
  fi
  if ! eventually 60 engine_answers; then
    tail -n 15 "$STATE/logs/dockerd.log" 2>/dev/null || true
    refuse "the Docker engine was started and does not answer" \
      "see $STATE/logs/dockerd.log (in a container, an engine needs --privileged)"
  fi
}

# stop_engine: ends the engine if, and only if, these scripts started it.
stop_engine() {
  local pid
  if [ ! -s "$STATE/dockerd.pid" ]; then return; fi
  pid=$(<"$STATE/dockerd.pid")
  if [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = dockerd ]; then
    kill "$pid"
    eventually 30 process_gone "$pid" || true
  fi
}

process_gone() { ! kill -0 "$1" 2>/dev/null; }

container_exists() { docker container inspect "$1" >/dev/null 2>&1; }

# network: the instance's own, where its containers find each other by name.
network() {
  docker network inspect "$INSTANCE" >/dev/null 2>&1 ||
    docker network create --label "$LABEL=$INSTANCE" "$INSTANCE"
  note "$INSTANCE"
}

# remove_labelled LABEL: containers, volumes and networks of this instance that carry it.
remove_labelled() {
  local filter=label=$1=$INSTANCE
  docker ps --all --quiet --filter "$filter" | xargs -r docker rm --force --volumes
  docker volume ls --quiet --filter "$filter" | xargs -r docker volume rm --force
  docker network ls --quiet --filter "$filter" | xargs -r docker network rm
}

# remove_all: what these scripts and the control plane made.
remove_all() {
  remove_labelled io.towpath.instance
  remove_labelled "$LABEL"
  remove_images .
}

# remove_but_bases: the same without what took minutes to make, for the next run.
remove_but_bases() {
  remove_labelled io.towpath.instance
  remove_labelled "$LABEL"
  remove_images -v '^rabbitmq:\|^python:\|^towpath/base:\|^towpath/rabbitmq:\|^towpath/python:\|^postgres:\|^towpath/postgresql:'
}

# remove_images PATTERN…: the images made here that `grep PATTERN…` lets through, the youngest
# first. One that something else uses stays.
remove_images() {
  local image
  if [ ! -f "$STATE/images" ]; then return; fi
  tac "$STATE/images" | { grep "$@" || true; } | while read -r image; do docker rmi "$image" || true; done
}

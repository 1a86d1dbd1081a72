# shellcheck shell=bash
# Gets RabbitMQ as a container: the official image if it can be pulled, else one made of Debian's
# or Ubuntu's own package. Sourced by lib.sh.

BROKER_USER=towpath

# broker NAME NETWORK PORT IMAGE [PORT]: a broker that keeps its data, published on loopback at the
# port, and its management API at the second port, if there is one. Returns when it takes
# connections. The password is in $STATE/NAME.password.
broker() {
  local name=$1 network=$2 port=$3 image=$4 management=${5:-} orphan=
  # A container of a lost state folder has ports that nobody remembers; its volume has the data.
  if [ ! -s "$STATE/$name.password" ] && container_exists "$name"; then docker rm --force "$name"; fi
  if [ "$(docker container inspect --format '{{.State.Running}}' "$name" 2>/dev/null)" = true ]; then
    broker_ready "$name" "$port"
    return
  fi
  if ! container_exists "$name"; then
    # A volume without its password is what a lost state folder leaves.
    if [ ! -s "$STATE/$name.password" ] && docker volume inspect "$name" >/dev/null 2>&1; then orphan=yes; fi
    secret "$STATE/$name.password"
    broker_create "$name" "$network" "$port" "$image" "$management"
  fi
  if ! docker start "$name"; then
    # Its port may have been taken since it was made: the next run chooses another.
    docker rm --force "$name"
    return 1
  fi
  broker_ready "$name" "$port"
  if [ -n "$orphan" ]; then
    docker exec "$name" rabbitmqctl await_startup
    docker exec -i "$name" rabbitmqctl change_password "$BROKER_USER" <"$STATE/$name.password"
  fi
}

broker_create() {
  local name=$1 network=$2 port=$3 image=$4 management=$5 folder server=/usr/lib/rabbitmq/bin/rabbitmq-server
  local ports=(--publish "127.0.0.1:$port:5672") plugins=
  if [ -n "$management" ]; then
    ports+=(--publish "127.0.0.1:$management:15672")
    plugins=rabbitmq_management
  fi
  case $image in rabbitmq:*) server='docker-entrypoint.sh rabbitmq-server' ;; esac
  docker volume create --label "$LABEL=$INSTANCE" "$name"
  # Erlang sizes tables by the limit on open files, which some engines leave without bound;
  # others do not let it be raised. So the container takes what it is given, up to 65536.
  # The node is named after localhost: it finds itself whatever networks come and go.
  docker create --name "$name" --hostname "$name" --network "$network" --label "$LABEL=$INSTANCE" \
    --env RABBITMQ_NODENAME=rabbit@localhost --env ERL_EPMD_ADDRESS=127.0.0.1 \
    --volume "$name:/var/lib/rabbitmq" "${ports[@]}" \
    --restart unless-stopped --stop-timeout 60 --log-opt max-size=10m --log-driver json-file \
    --entrypoint sh "$image" -c "ulimit -n 65536 2>/dev/null || ulimit -Sn \$(ulimit -Hn); exec $server"
  # Copied in, not passed in the environment: `docker inspect` does not show it.
  folder=$(mktemp -d "$STATE/build/settings.XXXXXX")
  mkdir "$folder/conf.d"
  broker_settings "$(<"$STATE/$name.password")" >"$folder/conf.d/90-towpath.conf"
  printf '[%s].\n' "$plugins" >"$folder/enabled_plugins"
  tar -C "$folder" --mode=0644 --owner=0 --group=0 -c conf.d/90-towpath.conf enabled_plugins |
    docker cp - "$name:/etc/rabbitmq/"
  rm -r "$folder"
}

# The memory alarm is 40 % of the machine, 2 GiB at most; the disk alarm leaves 1 GB free: a full
# disk is the one thing a queue does not survive.
broker_settings() {
  local kilobytes megabytes
  kilobytes=$(awk '/^MemTotal/ {print $2}' /proc/meminfo)
  megabytes=$((kilobytes * 4 / 10 / 1024))
  if [ "$megabytes" -gt 2048 ]; then megabytes=2048; fi
  cat <<EOF
loopback_users = none
default_user = $BROKER_USER
default_pass = $1
default_permissions.configure = .*
default_permissions.read = .*
default_permissions.write = .*
default_user_tags.administrator = true
vm_memory_high_watermark.absolute = ${megabytes}MB
disk_free_limit.absolute = 1GB
log.console = true
log.console.level = warning
EOF
}

broker_ready() {
  local name=$1 port=$2
  if ! eventually 150 broker_greets "$name" "$port"; then
    docker logs --tail 30 "$name" 2>&1 || true
    return 1
  fi
  note "RabbitMQ $(docker exec "$name" rabbitmqctl version) at 127.0.0.1:$port"
}

broker_greets() {
  [ "$(docker container inspect --format '{{.State.Running}}' "$1")" = true ] && amqp_greets 127.0.0.1 "$2"
}

# amqp_greets HOST PORT: whether AMQP is spoken there. The engine's proxy accepts connections long
# before the broker does, so the answer to the protocol header is what counts.
amqp_greets() {
  local first
  first=$(
    exec 2>/dev/null 3<>"/dev/tcp/$1/$2" || exit 1
    printf 'AMQP\0\0\011\001' >&3
    timeout 3 head -c 1 <&3 | od -An -tu1 | tr -d ' '
  )
  [ "$first" = 1 ]
}

# service_image SERVICE OFFICIAL SUITE…: prints the image to use: the official one if it can be had,
# else the package of the first suite that can be built, from deploy/SERVICE. Nothing and 1 if neither.
service_image() {
  local service=$1 official=$2 suite
  shift 2
  if pull "$official" >&2; then
    printf %s "$official"
    return
  fi
  for suite in "$@"; do
    if packaged_image "$service" "$suite" >&2; then
      printf %s "towpath/$service:$suite"
      return
    fi
  done
  echo "$service can be had neither as the image $official nor as a package of: $*" >&2
  return 1
}

# pull IMAGE: whether it is here, or could be pulled. Asks for the manifest first, because an
# engine without a way to a registry may take minutes to say so.
pull() {
  docker image inspect "$1" >/dev/null 2>&1 ||
    { timeout 10 docker manifest inspect "$1" >/dev/null 2>&1 && timeout 600 docker pull -q "$1" && made_image "$1"; }
}

packaged_image() {
  local service=$1 suite=$2 image=towpath/$1:$2
  if docker image inspect "$image" >/dev/null 2>&1; then return; fi
  base_image "$suite" && build_from_base "$image" "towpath/base:$suite" "$ROOT/deploy/$service"
}

# packaged_suites: the suites whose RabbitMQ is 3.10 or newer, those of this system first.
packaged_suites() {
  local codename='' all=(trixie bookworm noble) suites=()
  # shellcheck disable=SC1091
  codename=$(. /etc/os-release 2>/dev/null && printf %s "${VERSION_CODENAME:-} ${ID:-}")
  case $codename in
    *ubuntu) suites=(noble "${all[@]}") ;;
    bookworm*) suites=(bookworm "${all[@]}") ;;
    *) suites=("${all[@]}") ;;
  esac
  printf '%s\n' "${suites[@]}" | awk '!seen[$0]++'
}

# base_image SUITE: a small system of that suite, made with debootstrap, as towpath/base:SUITE.
base_image() {
  local suite=$1 image=towpath/base:$1 folder=$STATE/build/$1 mirror components=main
  if docker image inspect "$image" >/dev/null 2>&1; then return; fi
  if ! have debootstrap; then
    if ! may_install; then
      echo "debootstrap is missing and only root may install and use it" >&2
      return 1
    fi
    install_packages debootstrap || return 1
  fi
  case $suite in noble) components=main,universe ;; esac
  trust "$suite"
  mirror=$(mirror_of "$suite")
  rm -rf --one-file-system "$folder"
  # shellcheck disable=SC2086
  debootstrap --variant=minbase --components="$components" "$suite" "$folder" $mirror &&
    tar -C "$folder" --exclude='./var/cache/apt/archives/*.deb' --exclude='./proc/*' --exclude='./sys/*' -c . |
    docker import --change "LABEL $LABEL=base" - "$image" || return 1
  made_image "$image"
  rm -rf --one-file-system "$folder"
}

# trust SUITE: the keys of the other distribution are a package away.
trust() {
  local keys=debian-archive-keyring
  case $1 in noble) keys=ubuntu-keyring ;; esac
  if ! dpkg -s "$keys" >/dev/null 2>&1 && may_install; then install_packages "$keys" || true; fi
}

# mirror_of SUITE: where this machine gets that suite's distribution from; nothing if it does not
# say, then debootstrap knows one.
mirror_of() {
  local origin=Debian
  case $1 in noble) origin=Ubuntu ;; esac
  have apt-get || return 0
  # shellcheck disable=SC2016
  apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' "Origin: $origin" "Label: $origin" 2>/dev/null |
    head -n 1
}

# build_from_base IMAGE BASE FOLDER: builds a folder's Dockerfile on a base image. On the host's
# network and with the host's proxy, because what apt can reach there it must reach here.
build_from_base() {
  local proxy=${http_proxy:-} arguments=()
  if [ -z "$proxy" ] && have apt-config; then
    eval "$(apt-config shell proxy Acquire::http::Proxy)"
  fi
  if [ -n "$proxy" ]; then arguments+=(--build-arg "http_proxy=$proxy"); fi
  docker build --network host --build-arg "BASE=$2" --label "$LABEL=base" "${arguments[@]}" --tag "$1" "$3" || return 1
  made_image "$1"
}

# shellcheck shell=bash
# What `quickstart` and `test` share: where things are, what is remembered between runs, and how
# to say what is going on. Sourced, never run. Needs bash and coreutils, nothing else.
#
# A caller sets INSTANCE and STATE before it calls anything here; `settle_in` does the rest.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# Everything these scripts make on an engine carries this label, with the instance as its value.
# It is not one of the control plane's labels: it removes replicas it does not know.
# shellcheck disable=SC2034
LABEL=io.towpath.deploy

# shellcheck source=deploy/progress.sh
. "$ROOT/deploy/progress.sh"
# shellcheck source=deploy/engine.sh
. "$ROOT/deploy/engine.sh"
# shellcheck source=deploy/broker.sh
. "$ROOT/deploy/broker.sh"
# shellcheck source=deploy/postgres.sh
. "$ROOT/deploy/postgres.sh"
# shellcheck source=deploy/beside.sh
. "$ROOT/deploy/beside.sh"
# shellcheck source=deploy/images.sh
. "$ROOT/deploy/images.sh"

# Makes the state folder, readable by its owner only, and recalls what was remembered in it.
settle_in() {
  mkdir -p "$STATE/logs" "$STATE/bin" "$STATE/build"
  chmod 700 "$STATE"
  recall
}

have() { command -v "$1" >/dev/null 2>&1; }

# remember KEY VALUE: keeps a choice for the next run.
remember() {
  local file=$STATE/env
  { grep -v "^$1=" "$file" 2>/dev/null || true; printf '%s=%q\n' "$1" "$2"; } >"$file.new"
  chmod 600 "$file.new"
  mv "$file.new" "$file"
  printf -v "$1" '%s' "$2"
}

recall() {
  if [ -f "$STATE/env" ]; then
    # shellcheck disable=SC1091
    . "$STATE/env"
  fi
}

# choose_port KEY WANTED [COMMAND…]: a free port on loopback, the same one on every run. COMMAND
# says whether it is ours if something listens at the one that was chosen before.
choose_port() {
  local key=$1 port=$2
  shift 2
  if [ -n "${!key:-}" ]; then
    if ! listens 127.0.0.1 "${!key}" || { [ $# -gt 0 ] && "$@" >/dev/null 2>&1; }; then return; fi
  fi
  while listens 127.0.0.1 "$port"; do port=$((port + 1)); done
  remember "$key" "$port"
}

# listens HOST PORT: whether something accepts connections there.
listens() { (exec 3<>"/dev/tcp/$1/$2") 2>/dev/null; }

# eventually SECONDS COMMAND…: runs the command until it succeeds, or the time is over.
eventually() {
  local deadline=$((SECONDS + $1))
  shift
  until "$@"; do
    if [ "$SECONDS" -ge "$deadline" ]; then return 1; fi
    sleep 0.2
  done
}

# secret FILE: makes a random secret in a file that only its owner can read, if there is none.
secret() {
  if [ -s "$1" ]; then return; fi
  (umask 077 && od -An -N24 -tx1 /dev/urandom | tr -d ' \n' >"$1")
}

# request METHOD URL [BODY [HEADER]]: prints the body of the answer; fails unless the status is 2xx.
# A fresh machine has no curl, and loopback HTTP/1.0 needs none.
request() (
  [[ $2 =~ ^http://([^/:]+):([0-9]+)(/.*)?$ ]] || exit 1
  exec 3<>"/dev/tcp/${BASH_REMATCH[1]}/${BASH_REMATCH[2]}" || exit 1
  body=${3:-}
  printf '%s %s HTTP/1.0\r\nHost: %s:%s\r\n%s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s' \
    "$1" "${BASH_REMATCH[3]:-/}" "${BASH_REMATCH[1]}" "${BASH_REMATCH[2]}" "${4:-Accept: */*}" \
    "$(printf %s "$body" | wc -c)" "$body" >&3
  IFS=' ' read -r -t 30 _ status _ <&3 || exit 1
  while IFS= read -r -t 30 line <&3 && [ "${line%$'\r'}" != "" ]; do :; done
  timeout 30 cat <&3
  [[ $status == 2* ]]
) 2>/dev/null

# number KEY JSON: the number at a key of a flat JSON object.
number() { [[ $2 =~ \"$1\":\ *([0-9]+) ]] && printf %s "${BASH_REMATCH[1]}"; }

# install_packages NAME…: by apt, as root. The caller has seen to both.
install_packages() {
  export DEBIAN_FRONTEND=noninteractive
  local options=(-y -qq --no-install-recommends -o DPkg::Lock::Timeout=300)
  if ! apt-get install "${options[@]}" "$@"; then
    apt-get update -qq
    apt-get install "${options[@]}" "$@"
  fi
}

may_install() { [ "$EUID" -eq 0 ] && have apt-get; }

# toolchain: a cargo that works, and the C compiler that two dependencies need.
toolchain() {
  export PATH="$PATH:$HOME/.cargo/bin"
  if ! have cargo; then
    refuse "there is no Rust here" "install it from https://rustup.rs, then run this again"
  fi
  if ! have cc; then
    if ! may_install; then
      refuse "there is no C compiler here, and it may not be installed from here" \
        "sudo apt-get install -y gcc libc6-dev"
    fi
    install_packages gcc libc6-dev
  fi
  note "$(cargo --version)"
}

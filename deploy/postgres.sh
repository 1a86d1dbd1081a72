# shellcheck shell=bash
# Gets PostgreSQL as a container, for tests of the steps that read and write it: the official image
# if it can be pulled, else one made of Debian's or Ubuntu's own package. Sourced by lib.sh.

POSTGRES_USER=towpath
POSTGRES_FOLDER=/var/lib/postgresql/towpath

# postgres NAME NETWORK PORT IMAGE: a server published on loopback at the port, with the database
# `towpath`. Returns when it takes connections. The password is in $STATE/NAME.password. Its data
# are in the container, and not safe from a crash of the machine: they are made up by tests.
postgres() {
  local name=$1 network=$2 port=$3 image=$4
  # A container of a lost state folder has a port and a password that nobody remembers.
  if [ ! -s "$STATE/$name.password" ] && container_exists "$name"; then docker rm --force --volumes "$name"; fi
  if ! container_exists "$name"; then
    secret "$STATE/$name.password"
    postgres_create "$name" "$network" "$port" "$image"
  fi
  if [ "$(docker container inspect --format '{{.State.Running}}' "$name")" != true ] && ! docker start "$name"; then
    # Its port may have been taken since it was made: the next run chooses another.
    docker rm --force --volumes "$name"
    return 1
  fi
  if ! eventually 120 postgres_answers "$name"; then
    docker logs --tail 30 "$name" 2>&1 || true
    return 1
  fi
  note "$(docker exec "$name" postgres --version | cut -d' ' -f 2-3) at 127.0.0.1:$port"
}

postgres_create() {
  local name=$1 network=$2 port=$3 image=$4
  # The socket is in /tmp: not every image has the usual folder for it.
  docker create --name "$name" --hostname "$name" --network "$network" --label "$LABEL=$INSTANCE" \
    --publish "127.0.0.1:$port:5432" --shm-size 256m --user postgres \
    --restart unless-stopped --log-opt max-size=10m --log-driver json-file \
    --entrypoint sh "$image" -c "
      if [ ! -s $POSTGRES_FOLDER/PG_VERSION ]; then
        initdb --pgdata=$POSTGRES_FOLDER --username=$POSTGRES_USER --pwfile=/tmp/password \
          --encoding=UTF8 --locale=C.UTF-8 --auth-local=trust --auth-host=scram-sha-256 || exit 1
        echo 'host all all all scram-sha-256' >>$POSTGRES_FOLDER/pg_hba.conf
        echo 'CREATE DATABASE towpath' | postgres --single -D $POSTGRES_FOLDER postgres
      fi
      exec postgres -D $POSTGRES_FOLDER -c listen_addresses='*' -c unix_socket_directories=/tmp \
        -c fsync=off -c max_connections=200"
  # Copied in, not passed in the environment: `docker inspect` does not show it.
  local folder
  folder=$(mktemp -d "$STATE/build/settings.XXXXXX")
  cp "$STATE/$name.password" "$folder/password"
  tar -C "$folder" --mode=0644 --owner=0 --group=0 -c password | docker cp - "$name:/tmp/"
  rm -r "$folder"
}

postgres_answers() {
  [ "$(docker exec "$1" psql --host=/tmp --username="$POSTGRES_USER" --no-align --tuples-only \
    --command 'SELECT 1' towpath 2>/dev/null)" = 1 ]
}

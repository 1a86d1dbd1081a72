# shellcheck shell=bash
# The demonstration: a shop and a CRM as containers, and the flows between them. Sourced by
# quickstart.

# demo_start: both on the instance's network, as `shop` and `crm`, and on loopback for the curious.
demo_start() {
  choose_port SHOP_PORT 7701
  choose_port CRM_PORT 7702
  secret "$STATE/crm_token"
  demo_container shop "$SHOP_PORT"
  demo_container crm "$CRM_PORT" --env "DEMO_TOKEN=$(<"$STATE/crm_token")"
  if ! eventually 30 demo_answers; then
    docker logs --tail 20 "$INSTANCE-demo-shop" 2>&1 || true
    docker logs --tail 20 "$INSTANCE-demo-crm" 2>&1 || true
    return 1
  fi
  note "http://127.0.0.1:$SHOP_PORT and http://127.0.0.1:$CRM_PORT"
}

# demo_container NAME PORT [OPTION…]: the one that is there, unless its image has changed.
demo_container() {
  local name=$1 port=$2 container=$INSTANCE-demo-$1 image=towpath/demo-$1:1
  shift 2
  if [ "$(docker container inspect --format '{{.Image}}' "$container" 2>/dev/null)" = \
    "$(docker image inspect --format '{{.Id}}' "$image")" ]; then
    docker start "$container"
    return
  fi
  docker rm --force --volumes "$container" 2>/dev/null || true
  docker run --detach --name "$container" --network "$INSTANCE" --network-alias "$name" \
    --label "$LABEL=$INSTANCE" --publish "127.0.0.1:$port:8080" --restart unless-stopped \
    --log-opt max-size=10m --log-driver json-file --read-only --cap-drop ALL "$@" "$image"
}

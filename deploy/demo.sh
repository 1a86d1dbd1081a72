# shellcheck shell=bash
# The demonstration: a shop and a CRM as containers, and the flows between them. Sourced by
# quickstart.

# demo_start: both on the network of the instance, where the flows know them by name whatever the
# instance is called, and on loopback for the curious.
demo_start() {
  choose_port SHOP_PORT 7701 container_exists "$INSTANCE-demo-shop"
  choose_port CRM_PORT 7702 container_exists "$INSTANCE-demo-crm"
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

demo_answers() { demo_stats shop >/dev/null && demo_stats crm >/dev/null; }

# demo_stats shop|crm: what it counts, as JSON.
demo_stats() {
  case $1 in
    shop) request GET "http://127.0.0.1:$SHOP_PORT/stats" ;;
    crm) request GET "http://127.0.0.1:$CRM_PORT/stats" ;;
  esac
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
  docker run --detach --name "$container" --network "$INSTANCE" --network-alias "$name" --network-alias "towpath-demo-$name" \
    --label "$LABEL=$INSTANCE" --publish "127.0.0.1:$port:8080" --restart unless-stopped \
    --log-opt max-size=10m --log-driver json-file --read-only --cap-drop ALL "$@" "$image"
}

# demo_flows: both flows, and the secret they need.
demo_flows() {
  towpath secret set crm_token <"$STATE/crm_token"
  towpath apply flows/demo/orders-to-crm.yaml
  towpath apply flows/demo/orders-by-webhook.yaml
  # A CRM that was started anew has forgotten what the flow has brought it: the shop changes every
  # order, so that every order comes again.
  if [ "${DEMO_APPLIED:-}" = yes ] && [ "$(number deals "$(demo_stats crm)")" = 0 ]; then
    request POST "http://127.0.0.1:$SHOP_PORT/change?n=1000000" >/dev/null
    towpath run orders-to-crm
  fi
  remember DEMO_APPLIED yes
  note "orders-to-crm, orders-by-webhook"
}

# demo_push: new orders of the till, which the shop lists nowhere, posted to the flow's URL as a shop would: again, until they are accepted.
demo_push() {
  local ids id order count=20 shop
  shop=$(docker container inspect --format '{{.Id}}' "$INSTANCE-demo-shop")
  remember HOOK "$(towpath status orders-by-webhook --output json | sed -n 's/.*"webhook_url": *"\([^"]*\)".*/\1/p' | head -n 1)"
  if [ "${DEMO_PUSHED:-}" = "$shop" ]; then
    note "pushed before"
    return
  fi
  ids=$(request POST "http://127.0.0.1:$SHOP_PORT/orders?n=$count&listed=false" | tr -cd '0-9,' | tr ',' ' ')
  for id in $ids; do
    order=$(request GET "http://127.0.0.1:$SHOP_PORT/orders/$id")
    eventually 60 request POST "$HOOK" "$order" "Idempotency-Key: order-$id"
  done
  remember DEMO_PUSHED "$shop"
  note "$count accepted at ${HOOK%/*}/…"
}

# demo_arrive: waits until the CRM holds every order of the shop.
demo_arrive() {
  local orders
  if ! eventually 300 demo_complete; then
    orders=$(number orders "$(demo_stats shop)")
    refuse "the CRM holds $(number deals "$(demo_stats crm)") of $orders orders after five minutes" \
      "${STATE#"$PWD"/}/bin/towpath status" "${STATE#"$PWD"/}/bin/towpath dead list"
  fi
  note "all $(number orders "$(demo_stats shop)")"
}

demo_complete() {
  local orders deals
  orders=$(number orders "$(demo_stats shop)") && deals=$(number deals "$(demo_stats crm)") || return 1
  echo "$deals of $orders"
  [ "$deals" = "$orders" ]
}

# demo_count: what the CRM says it holds, by key and by idempotency key.
demo_count() {
  local shop crm
  shop=$(demo_stats shop)
  crm=$(demo_stats crm)
  cat <<EOF

${BOLD}The shop has $(number orders "$shop") orders, and the CRM holds $(number deals "$crm") deals.${PLAIN}
  idempotency keys          $(number idempotency_keys "$crm")   one a message: an order that changed has several
  deals written again       $(number updates "$crm")   by those further messages
  deliveries recognised     $(number repeated "$crm")   the same message again, after an answer that was lost: nothing was done twice
  keys used for two things  $(number conflicting "$crm")
EOF
}

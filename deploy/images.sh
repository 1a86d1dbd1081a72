# shellcheck shell=bash
# Makes the images of steps and of the demonstration from static binaries: `FROM scratch`, so that
# nothing is pulled. Sourced by lib.sh.

# binaries PROFILE: the folder cargo puts them in; PROFILE is debug or release.
binaries() {
  printf '%s/%s/%s' "${CARGO_TARGET_DIR:-$ROOT/target}" "$(rustc --print host-tuple)" "$1"
}

# step_images PROFILE TAG: an image towpath/<step>:TAG of every step that comes with Towpath, and
# towpath/demo-shop and towpath/demo-crm.
step_images() {
  local profile=$1 tag=$2 folder manifest step program count=0
  folder=$(binaries "$profile")
  for manifest in "$ROOT"/steps/*/Cargo.toml; do
    step=$(basename "$(dirname "$manifest")")
    program=$folder/$step
    if [ ! -x "$program" ]; then program=$folder/towpath-$step; fi
    pack_step "$program" "towpath/$step:$tag"
    count=$((count + 1))
  done
  for step in demo-shop demo-crm; do
    scratch_image "$(stripped "$folder/$step")" "towpath/$step:$tag"
    count=$((count + 1))
  done
  note "$count, tag $tag"
}

# pack_step PROGRAM IMAGE: packs a step as its author would, its manifest in a label.
pack_step() {
  echo "packing $2"
  "$(dirname "$1")/towpath" step pack "$1" --tag "$2"
  made_image "$2"
}

# python_step TAG: towpath/demo-enrich:TAG, the step without an SDK, on the official image of Python
# or on one made of the distribution's package.
python_step() {
  local folder=$ROOT/flows/demo/enrich image=towpath/demo-enrich:$1 base
  base=$(python_base)
  docker build --build-arg "BASE=$base" --label "io.towpath.manifest=$(<"$folder/manifest.json")" \
    --tag "$image" "$folder"
  made_image "$image"
  remember PYTHON_BASE "$base"
  note "$image on $base"
}

python_base() {
  local suite image=towpath/python:3
  if docker image inspect "$image" >/dev/null 2>&1; then printf %s "$image"; return; fi
  if pull python:3-slim >&2; then printf 'python:3-slim'; return; fi
  for suite in $(packaged_suites); do
    if base_image "$suite" >&2 && build_from_base "$image" "towpath/base:$suite" "$ROOT/deploy/python" >&2; then
      printf %s "$image"
      return
    fi
  done
  return 1
}

# test_python_step: its own tests, in the image's Python, so that none is needed here.
test_python_step() {
  tar -C "$ROOT/flows/demo/enrich" -c step.py test_step.py |
    docker run --rm --interactive --entrypoint sh "$PYTHON_BASE" -c \
      'mkdir /tmp/step && cd /tmp/step && tar -x && exec python3 -m unittest'
}

# stripped PROGRAM: prints the path of a copy without symbols; of the program itself if it has none.
stripped() {
  local copy
  copy=$STATE/build/$(basename "$1")
  if [[ $1 == */release/* ]]; then
    printf %s "$1"
    return
  fi
  strip -o "$copy" "$1"
  printf %s "$copy"
}

# scratch_image PROGRAM IMAGE: an image of a static program and nothing else.
scratch_image() {
  local context
  context=$(mktemp -d "$STATE/build/context.XXXXXX")
  install -m 0755 "$1" "$context/program"
  printf 'FROM scratch\nCOPY program /program\nUSER 65534:65534\nENTRYPOINT ["/program"]\n' >"$context/Dockerfile"
  docker build --quiet --tag "$2" "$context"
  rm -r "$context"
  made_image "$2"
}

# made_image IMAGE: notes down what is to go when all goes.
made_image() {
  if ! grep -qxF "$1" "$STATE/images" 2>/dev/null; then printf '%s\n' "$1" >>"$STATE/images"; fi
}

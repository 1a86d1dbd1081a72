# shellcheck shell=bash
# Makes the images of steps and of the demonstration from static binaries: `FROM scratch`, so that
# nothing is pulled. Sourced by lib.sh.

# binaries PROFILE: the folder cargo puts them in; PROFILE is debug or release.
binaries() {
  printf '%s/%s/%s' "${CARGO_TARGET_DIR:-$ROOT/target}" "$(rustc --print host-tuple)" "$1"
}

# step_images PROFILE TAG: an image towpath/<step>:TAG of every step that comes with Towpath, with
# its manifest, and towpath/demo-shop and towpath/demo-crm.
step_images() {
  local profile=$1 tag=$2 folder manifest step count=0
  folder=$(binaries "$profile")
  for manifest in "$ROOT"/steps/*/Cargo.toml; do
    step=$(basename "$(dirname "$manifest")")
    echo "packing $step"
    "$folder/towpath" step pack "$(stripped "$folder/$(binary_of "$manifest")")" --tag "towpath/$step:$tag"
    made_image "towpath/$step:$tag"
    count=$((count + 1))
  done
  for step in demo-shop demo-crm; do
    echo "packing $step"
    scratch_image "$(stripped "$folder/$step")" "towpath/$step:$tag"
    count=$((count + 1))
  done
  note "$count images, tag $tag"
}

# binary_of CARGO_TOML: the name of the package, which is that of its program.
binary_of() { sed -n 's/^name = "\(.*\)"/\1/p' "$1" | head -n 1; }

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

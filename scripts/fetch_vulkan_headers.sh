#!/usr/bin/env bash
# Fetch the Vulkan and SPIR-V headers of Debian 13 into a folder: those of Debian 12 are too old for llama.cpp.
# Nothing is installed and root is not needed: apt downloads two packages from the mirror that this machine
# uses anyway, checks Debian's signature, and their headers are unpacked. `--help` says how.
set -euo pipefail

RELEASE=trixie
KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg
PACKAGES=(libvulkan-dev spirv-headers)
folder=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/lswap/build/vulkan-headers}

fail() { # fail MESSAGE REMEDY
    printf 'error: %s\n  what to do: %s\n' "$1" "$2" >&2
    exit 1
}

case $folder in -*)
    echo 'Usage: fetch_vulkan_headers.sh [FOLDER]   (default: where build_llama_cpp.sh looks by itself)'
    [ "$folder" = --help ] || [ "$folder" = -h ] || exit 1
    exit 0
    ;;
esac
[ ! -e "$folder/include/vulkan/vulkan_core.h" ] || { echo "already here: $folder" && exit 0; }
other="get LunarG's Vulkan SDK, and name its folder to build_llama_cpp.sh with --vulkan-headers"
mirror=''
! command -v apt-get >/dev/null || mirror=$(
    # Without the information of releases, it also tells what `apt-get update` has not read yet.
    apt-get --no-release-info indextargets --format '$(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
        awk '$1 == "main" && $2 !~ /security/ && !seen { print $2; seen = 1 }'
)
[ -n "$mirror" ] || fail 'apt knows no mirror of Debian here' "$other"
[ -r $KEYRING ] || fail "$KEYRING is missing" "where this is Debian, apt-get install debian-archive-keyring; else $other"

mkdir -p "$(dirname "$folder")"
scratch=$(mktemp -d "$(dirname "$folder")/.unfinished.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
mkdir -p "$scratch/lists/partial" "$scratch/cache/archives/partial" "$scratch/tree/include" "$scratch/tree/share/cmake"
echo "deb [signed-by=$KEYRING] $mirror $RELEASE main" >"$scratch/sources.list"
options=(-o "Dir::Etc::SourceList=$scratch/sources.list" -o Dir::Etc::SourceParts=/dev/null
    -o "Dir::State::Lists=$scratch/lists" -o "Dir::Cache=$scratch/cache"
    -o "APT::Sandbox::User=$(id -un)" -o Acquire::Languages=none -qq)
apt-get "${options[@]}" update || fail "apt cannot read Debian $RELEASE from this machine's mirror" "$other"
(cd "$scratch" && apt-get "${options[@]}" download "${PACKAGES[@]}") ||
    fail "apt cannot download ${PACKAGES[*]} of Debian $RELEASE" "$other"
for package in "$scratch"/*.deb; do
    dpkg -x "$package" "$scratch/root"
done
mv "$scratch/root/usr/include/"* "$scratch/tree/include/"
mv "$scratch/root/usr/share/cmake/SPIRV-Headers" "$scratch/tree/share/cmake/"
chmod 755 "$scratch/tree" && rm -rf "$folder" && mv "$scratch/tree" "$folder"
echo "fetched: $folder"

# For the scripts beside it, and the drills. What cannot be had on this machine is said by its name, and then the script ends with 77, as
# Automake has it: it has found nothing wrong, and has not looked.
# shellcheck shell=bash
skip() {
    echo "$(basename "$0"): SKIPPED: $*" >&2
    exit 77
}

# needs TOOL...: what a script cannot do without.
needs() {
    local tool missing=()
    for tool; do
        case $tool in
            cargo-*) cargo "${tool#cargo-}" --version >/dev/null 2>&1 || missing+=("$tool") ;;
            */*) [[ -x $tool ]] || missing+=("$tool") ;;
            *) PATH=$PATH:/usr/sbin command -v "$tool" >/dev/null || missing+=("$tool") ;;
        esac
    done
    ((${#missing[@]} == 0)) || skip "not installed here: ${missing[*]} (deploy/setup-operate)"
}

# needs_containers OPTION...: podman runs a container here with these options. Inside a container it often may not.
needs_containers() {
    local root said why
    needs podman runc
    root=$(mktemp -d)
    mkdir "$root"/{dev,etc,proc,run,sys,tmp,usr}
    ln -s usr/bin usr/lib usr/lib64 usr/sbin "$root"
    said=$(podman --runtime runc --cgroup-manager cgroupfs run --rm --ulimit nofile=20000:20000 \
        --ulimit nproc=1000:1000 -v /usr:/usr:ro "$@" --rootfs "$root" /usr/bin/true 2>&1) && { rm -rf "$root"; return; }
    rm -rf "$root"
    why=$(tail -n 1 <<<"$said")
    skip "podman runs no container here: $why"
}

# For the scripts beside it. needs TOOL...: what a script cannot do without. Where one cannot be had the script says so by its name, and ends
# well: it has found nothing wrong.
# shellcheck shell=bash
needs() {
    local tool missing=()
    for tool; do
        case $tool in
            cargo-*) cargo "${tool#cargo-}" --version >/dev/null 2>&1 || missing+=("$tool") ;;
            */*) [[ -x $tool ]] || missing+=("$tool") ;;
            *) PATH=$PATH:/usr/sbin command -v "$tool" >/dev/null || missing+=("$tool") ;;
        esac
    done
    ((${#missing[@]})) || return 0
    echo "$(basename "$0"): SKIPPED: not installed here: ${missing[*]} (deploy/setup-operate)" >&2
    exit 0
}

# What the drills share; each sources it. A drill has a Redis of its own, with deploy/redis.conf, and workers and receivers of its own, on this
# machine. It ends with one line: 0 if what its page in docs/operations.md promises held, 99 if not; 77 where it cannot be done. HERALD names the program,
# by default the release build, or else the debug build.
# shellcheck shell=bash
set -euo pipefail
drill=$(basename "$0")
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

if [[ ! ${HERALD:-} ]]; then
    HERALD=target/release/herald
    [[ -x $HERALD ]] || HERALD=target/debug/herald
fi
HERALD=$(realpath "$HERALD")

scratch=$(mktemp -d)
declare -A process=() port=()
end() {
    local pid
    # The last line is the drill's, not the shell's about what it ends.
    exec 2>/dev/null
    for pid in "${process[@]}"; do kill -9 "$pid" 2>/dev/null || true; done
    wait 2>/dev/null || true
    mountpoint -q "$scratch/disk" && umount "$scratch/disk"
    rm -rf "$scratch"
}
trap end EXIT
trap 'echo "$drill: ended at line $LINENO: $BASH_COMMAND" >&2' ERR

step() { echo "$drill: $*" >&2; }
skipped() { echo "$drill: SKIPPED: $*" >&2; exit 77; }
held() { echo "$drill: held: $*"; exit 0; }
broke() {
    local log
    for log in "$scratch"/*.log; do echo "--- $log" && tail -n 12 "$log"; done >&2
    echo "$drill: BROKEN: $*"
    exit 99
}

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
# Within two minutes, or it is broken.
until_true() {
    local what=$1 left=1200
    shift
    until "$@" >/dev/null 2>&1; do
        ((left-- > 0)) || broke "not within two minutes: $what"
        sleep 0.1
    done
}

port[redis]=$(free_port)
export HERALD_REDIS_URL=redis://127.0.0.1:${port[redis]}
# Its receivers are on this machine.
export HERALD_ALLOW_HTTP=true HERALD_ALLOW_NETWORKS=127.0.0.0/8 HERALD_HISTORY_URL=
herald() { "$HERALD" --quiet --no-input "$@"; }
asks_redis() { redis-cli -e -p "${port[redis]}" "$@"; }

# start_redis FOLDER [SETTING...]
start_redis() {
    local folder=$1
    shift
    mkdir -p "$folder"
    redis-server deploy/redis.conf --port "${port[redis]}" --dir "$folder" "$@" >>"$scratch/redis.log" 2>&1 &
    process[redis]=$!
    until_true "Redis answers" asks_redis ping
}
# As a machine that dies: nothing is written any more.
kill_9() {
    kill -9 "${process[$1]}" && wait "${process[$1]}" 2>/dev/null || true
    unset "process[$1]"
}

# start_worker NAME [PROGRAM]
start_worker() {
    port[$1]=${port[$1]:-$(free_port)}
    HERALD_LISTEN=127.0.0.1:${port[$1]} HERALD_LOG_FORMAT=json "${2:-$HERALD}" serve >>"$scratch/$1.log" 2>&1 &
    process[$1]=$!
}
is_ready() { curl -fsS "http://127.0.0.1:${port[$1]}/readyz"; }
until_ready() { until_true "$1 is ready" is_ready "$1"; }
# As systemd and Kubernetes stop it: its exit status is the answer.
stop() {
    local status=0
    kill -TERM "${process[$1]}"
    wait "${process[$1]}" || status=$?
    unset "process[$1]"
    ((status == 0)) || broke "$1 stopped with $status"
}

# An endpoint of acc_1 for a receiver: register ENDPOINT NAME OPTION..., as of `herald endpoint create`.
echo "whsec_$(head -c 32 /dev/urandom | base64)" >"$scratch/secret"
register() {
    local endpoint=$1 name=$2
    port[$name]=${port[$name]:-$(free_port)}
    shift 2
    herald endpoint create --account acc_1 --id "$endpoint" --url "http://127.0.0.1:${port[$name]}/" --secret-file "$scratch/secret" \
        "$@" >/dev/null
}
# A receiver that writes a line for each callback: start_receiver NAME OPTION..., as of `herald listen`.
start_receiver() {
    local name=$1
    port[$name]=${port[$name]:-$(free_port)}
    shift
    [[ " $* " == *" --secret-file "* ]] || set -- --secret-file "$scratch/secret" "$@"
    "$HERALD" listen --listen "127.0.0.1:${port[$name]}" --format json "$@" >>"$scratch/$name.jsonl" 2>>"$scratch/$name.log" &
    process[$name]=$!
    until_true "$name listens" eval "exec 3<>/dev/tcp/127.0.0.1/${port[$name]}"
}
# The ids that a receiver said yes to, in the order of their arrival: taken NAME
taken() { jq -r 'select(.answered == 200) | .id' "$scratch/$1.jsonl"; }
# How many events of a list a receiver has: taken_of NAME LIST
taken_of() { taken "$1" | sort -u | comm -12 - <(sort -u "$2") | wc -l; }
has_all() { (($(taken_of "$1" "$2") == $(sort -u "$2" | wc -l))); }

# Makes events of one account, two for each intent: events NAME FIRST LAST
events() {
    local number at
    at=$(date -u +%Y-%m-%dT%H:%M:%S.0000000Z)
    for ((number = $2; number <= $3; number++)); do
        printf '{"id":"evt_drill_%d","event":"payment_intent.status_updated","accountId":"acc_1","createdAt":"%s",' "$number" "$at"
        printf '"data":{"paymentIntentId":"pi_drill_%d","paymentStatus":"Captured","captureMode":"Auto"}}\n' $((number / 2))
    done >"$scratch/$1.json"
    jq -r .id "$scratch/$1.json" >"$scratch/$1.ids"
}
publish() { herald event publish "$scratch/$1.json" >/dev/null; }
# What a receiver has in the order that it was sent in: in_order NAME
in_order() {
    # By intent, the first arrivals.
    taken "$1" | awk -F_ '!seen[$0]++ { intent = int($3 / 2); if ($3 < last[intent]) exit 1; last[intent] = $3 }'
}

# Puts load on the workers from now on, for SECONDS at RATE, and judges what arrived: start_load SECONDS RATE
start_load() {
    herald loadtest --redis "$HERALD_REDIS_URL" steady --for "$1s" --rate "$2" --without-thresholds --plain \
        --json "$scratch/load.json" >"$scratch/load.log" 2>&1 &
    process[load]=$!
}
load_is_on() { (($(asks_redis xlen payment-intents) > 0)); }
# The load test's verdict. Whether this machine was quick enough to make the load is not asked. How long an event waited is, less
# what the load test itself was late: both are told.
judge_load() {
    local broken
    wait "${process[load]}" || true
    unset "process[load]"
    [[ -s $scratch/load.json ]] || broke "the load test has no result"
    broken=$(jq -r '[.promises[] | select(.broken > 0 and .name != "generator") | .name] | join(" ")' "$scratch/load.json")
    [[ ! $broken ]] || broke "$broken"
    owed=$(jq .deliveries.owed "$scratch/load.json")
    local waited_ms late_ms
    waited_ms=$(jq '.latency.max_us / 1000 | floor' "$scratch/load.json")
    late_ms=$(jq '.generator.lateness.max_us / 1000 | floor' "$scratch/load.json")
    waited="the longest wait was $waited_ms ms, of which the load test itself was late by at most $late_ms ms"
    ((waited_ms - late_ms < 1000)) || broke "$waited"
}

# A program of an older version: OLDER names it, or a commit of this repository that is built here, in target/drills. Without a word it is
# what was built there before, or else of the last tag, or else 25 commits old.
older_program() {
    older=${OLDER:-$(compgen -G 'target/drills/herald-*' | tail -n 1 || git describe --tags --abbrev=0 2>/dev/null || echo HEAD~25)}
    [[ -x $older ]] && return
    local commit
    commit=$(git rev-parse --short --verify --quiet "$older^{commit}") || skipped "$older is not in this copy of the repository"
    older=target/drills/herald-$commit
    [[ -x $older ]] && return
    step "building Herald of $commit, which takes some minutes"
    [[ -e target/drills/$commit ]] || git worktree add --quiet --detach "target/drills/$commit" "$commit"
    (cd "target/drills/$commit" && CARGO_TARGET_DIR=../build cargo build --quiet --locked --bin herald)
    mv target/drills/build/debug/herald "$older"
    git worktree remove --force "target/drills/$commit"
    rm -r target/drills/build
}

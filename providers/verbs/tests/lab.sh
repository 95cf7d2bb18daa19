#!/bin/sh
# All tests of the verbs provider in the lab, where there are cards: conformance, what it does not ask, and the reasons that are
# given where verbs cannot be used. One argument: the kernel (6.1, default, or 6.12). From any folder; builds first; about
# three minutes on two busy cores. The status is 0 only if everything ran and passed: no card in the lab is a failure.
set -eu
kernel=${1:-6.1}
cd "$(dirname "$0")/../../.."

programs=$(cargo test -p kfab-verbs --no-run --message-format=json |
    sed -n 's/.*"name":"\(conformance\|cards\)".*"executable":"\([^"]*\)".*/\1=\2/p')
conformance=$(echo "$programs" | sed -n 's/^conformance=//p')
cards=$(echo "$programs" | sed -n 's/^cards=//p')
test -x "$conformance" && test -x "$cards"

export KFAB_LAB_RDMA=1
echo "== conformance and cards, kernel $kernel"
cargo xtask lab --kernel "$kernel" --limit 900 -- sh -c "
    $cards && $conformance --test-threads 1"

# Where verbs cannot be used the test programs end with status 1 and the reason.
refused() {
    want=$1
    shift
    if said=$(cargo xtask lab --kernel "$kernel" --limit 120 "$@" 2>&1); then
        echo "== it ran, where '$want' was expected: $said"
        exit 1
    fi
    case $said in
    *"$want"*) echo "== says why: $want" ;;
    *)
        echo "== '$want' was expected, it said: $said"
        exit 1
        ;;
    esac
}
refused "no RDMA card" --cards 0 -- "$cards"
refused "the limit on locked memory is 64 KiB" --user nobody --memlock 64 -- "$cards"
refused "is DOWN" -- sh -c "lab link 0 down; ip link set a0 down; $cards"
refused "no permission to open" -- sh -c "chmod 600 /dev/infiniband/uverbs*; setpriv --reuid 65534 --clear-groups $cards"
refused "no libibverbs.so.1" -- sh -c "mount --bind /dev/null /usr/lib/x86_64-linux-gnu/libibverbs.so.1; $cards"
echo "== all passed"

#!/bin/sh
# kfab beside perftest and libfabric over the same two cards, in one guest and one run, in turn. Prints medians and ratios; only the
# ratios mean anything.
#
#   cargo build --release -p kfab-cli
#   cargo xtask lab --memory 2048 --limit 900 -- lab/compare.sh target/release/kfab [ROUNDS [LINE...]]
#
# Lines, each with a size: send-lat, beside perftest, medians in us; pingpong and rdm, beside fi_pingpong, means in us one way, so that
# 65536 divided by the figure is a ping-pong's bandwidth in MB/s; write-bw and read-bw, beside perftest, MiB/s. Without any: all that
# stand below. In pingpong fi_pingpong has a bare connection (-e msg), each message one send into a receive of its size; in rdm it has
# what kfab always has, endpoints that talk to any peer (verbs;ofi_rxm -e rdm).
# Programs are pinned: servers to CPU 1, clients to CPU 0. What fails is said and left out of its median.
set -u
kfab=$1
rounds=${2:-5}
[ $# -ge 2 ] && shift 2 || shift
all="send-lat-8 pingpong-8 rdm-8 write-bw-65536 read-bw-65536 pingpong-65536 rdm-65536"
chosen=${*:-$all write-bw-1048576 read-bw-1048576 pingpong-1048576 rdm-1048576}
there=10.8.0.2
results=$(mktemp)
on0="taskset -c 0 timeout 60"
on1="taskset -c 1 timeout 60"

# took LINE PROGRAM FIGURE: keeps one figure.
took() {
	case $3 in
	[0-9]*) echo "$1 $2 $3" >>"$results" ;;
	*) echo "$2 of $1 failed: $3" >&2 ;;
	esac
}

# perftest LINE PROGRAM COLUMN WORDS...: a server at end b, a client at end a, the figure in a column of the last line.
perftest() {
	line=$1 program=$2 column=$3
	shift 3
	$on1 "$program" -d rxe_b0 -x 1 "$@" >/dev/null 2>&1 &
	waits=$!
	lab wait-port 18515 20
	said=$($on0 "$program" -d rxe_a0 -x 1 "$@" $there 2>&1)
	wait $waits
	took "$line" "$program" "$(echo "$said" | awk -v c="$column" '$1 ~ /^[0-9]+$/ { v = $c } END { print v }')"
}

# pingpong LINE PROVIDER ENDPOINT SIZE COUNT: usec/xfer, which is one way.
pingpong() {
	# Without this the receive queues of rdm endpoints are larger than soft-RoCE allows.
	export FI_UNIVERSE_SIZE=16
	$on1 fi_pingpong -p "$2" -e "$3" -S "$4" -I "$5" >/dev/null 2>&1 &
	waits=$!
	lab wait-port 47592 20
	said=$($on0 fi_pingpong -p "$2" -e "$3" -S "$4" -I "$5" $there 2>&1)
	wait $waits
	took "$1" fi_pingpong "$(echo "$said" | awk 'NF >= 8 { v = $7 } END { sub(/[^0-9.].*/, "", v); print v }')"
}

# ours LINE WAIT FIELD FACTOR WORDS...: the field of `kfab perf --json` times the factor. The server waits as perftest's does: it spins where
# it has to answer, and where it only lends its memory it leaves its processor to the card.
ours() {
	line=$1 wait=$2 field=$3 factor=$4
	shift 4
	taskset -c 1 "$kfab" serve --provider verbs --listen verbs:$there:7000 --wait "$wait" >/dev/null 2>&1 &
	server=$!
	lab wait-port 7000 60
	said=$($on0 "$kfab" perf "$@" --provider verbs --device verbs:rxe_a0 --pin none --json verbs:$there:7000 2>&1)
	kill -INT $server
	wait $server
	took "$line" kfab "$(echo "$said" | sed -n "s/.*\"$field\": *\([0-9.e+]*\).*/\1/p" | awk -v f="$factor" 'NR == 1 { print $1 * f }')"
}

one_line() {
	size=${1##*-}
	case $size in 8) count=${COUNT:-1000} ;; 65536) count=200 ;; *) count=48 ;; esac
	same="--size $size --iterations $count"
	case $1 in
	send-lat-*)
		perftest "$1" ib_send_lat 5 -s $size -n $count
		ours "$1" spin p50_ns 0.001 lat $same
		;;
	pingpong-*)
		ours "$1" spin mean_ns 0.001 lat $same
		pingpong "$1" verbs msg $size $count
		;;
	rdm-*)
		ours "$1" spin mean_ns 0.001 lat $same
		pingpong "$1" "verbs;ofi_rxm" rdm $size $count
		;;
	write-bw-*)
		perftest "$1" ib_write_bw 4 --perform_warm_up -s $size -n $count
		ours "$1" adaptive bytes_per_s $mib write $same
		;;
	read-bw-*)
		perftest "$1" ib_read_bw 4 --perform_warm_up -s $size -n $count
		ours "$1" adaptive bytes_per_s $mib read $same
		;;
	*) echo "no line $1" >&2 ;;
	esac
}

mib=9.5367431640625e-7
round=0
while [ $round -lt "$rounds" ]; do
	round=$((round + 1))
	for line_of_table in $chosen; do one_line "$line_of_table"; done
done

# Medians; ours over the others', and our best over theirs, which a busy host disturbs less. A latency is better when the ratio is low, a
# bandwidth when it is high.
sort -k1,1 -k2,2 -k3,3g "$results" | awk '
	function close_group() {
		if (n == 0) return
		m = n % 2 ? v[(n + 1) / 2] : (v[n / 2] + v[n / 2 + 1]) / 2
		median[key] = m; runs[key] = n; low[key] = v[1]; high[key] = v[n]; n = 0
	}
	{ if ($1 " " $2 != key) close_group(); key = $1 " " $2; v[++n] = $3; lines[$1] = 1 }
	END {
		close_group()
		printf "%-20s %-12s %10s %10s %10s %5s %s %s\n", "line", "program", "median", "least", "most", "runs", "kfab over it", "by bests"
		for (k in median) {
			split(k, part, " ")
			own = part[1] " kfab"
			ratio = ""
			if (k != own && median[own] > 0) {
				best = part[1] ~ /-lat-|pingpong-|rdm-/ ? low[own] / low[k] : high[own] / high[k]
				ratio = sprintf("%12.2f %8.2f", median[own] / median[k], best)
			}
			printf "%-20s %-12s %10.2f %10.2f %10.2f %5d %s\n", part[1], part[2], median[k], low[k], high[k], runs[k], ratio | "sort"
		}
	}'
rm -f "$results"

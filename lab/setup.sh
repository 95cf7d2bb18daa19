# Runs as process 1 on top of the host's files: sets up the cards, tells the host "up", waits for "go",
# runs the command and reports its status. Sourced: env (what was asked for), wire.sh (cables and cards).
#
# OUT and ERR are the bytes written to the two output ports: each port has a queue of its own, so that "exit"
# may overtake them on their way.
#
# Three ports lead to the host. `out` and `err` carry the command's output. `ctl` carries lines:
#   to the host:  up | exit N [OUT ERR] | link RAIL STATE | mark NAME | kill | fail TEXT
#   to the guest: go | link RAIL STATE | mark NAME
B=/run/lab/busybox
export PATH=/run/lab:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
. /run/lab/env
. /run/lab/wire.sh

port() {
	for entry in /sys/class/virtio-ports/*; do
		read -r name <"$entry/name"
		[ "$name" = "$1" ] && echo "/dev/${entry##*/}" && return
	done
}

fail() {
	echo "fail $*" >&3
	$B sleep 5
	$B poweroff -f
}

# Carries out what the host says, for as long as the guest lives.
obey() {
	while read -r word first second; do
		case $word in
		mark) : >"/run/lab/marks/$first" ;;
		link) set_rail "$first" "$second" 2>>/run/lab/log; echo "$second" >"/run/lab/rails/$first" ;;
		esac
	done
}

# pump NAME: carries output from a pipe to a port, and leaves a count of the bytes (busybox' dd would not).
pump() {
	dd bs=65536 <"/run/lab/$1" >"$(port "lab.$1")" 2>"/run/lab/$1.count"
}

# Whether a daemon that outlives the command holds the pipes open; the pumps read them as descriptor 0.
held() {
	$B ls -l /proc/[0-9]*/fd 2>/dev/null | $B grep -q ' [1-9][0-9]* -> /run/lab/\(out\|err\)$'
}

# Waits for the pumps to hand over the last output and sets `written` to how much it was. Whoever reads it on the host may take his
# time, which only the host limits. Where a daemon holds the pipes there is no telling. Not in a subshell, which could not see
# the pumps end.
drain() {
	tries=0
	while kill -0 "$pump_out" 2>/dev/null || kill -0 "$pump_err" 2>/dev/null; do
		tries=$((tries + 1))
		[ $((tries % 100)) -eq 0 ] && held && return
		$B usleep 10000
	done
	written=$($B awk '/ copied/ { printf " %s", $1 }' /run/lab/out.count /run/lab/err.count)
}

exec 3<>"$(port lab.ctl)"
$B chmod 755 /run/lab /run/lab/lab
$B mkdir -m 777 /run/lab/marks /run/lab/rails
$B mkfifo -m 666 /run/lab/ctl /run/lab/out /run/lab/err
$B cat <>/run/lab/ctl >&3 &
$B hostname "$LAB_HOSTNAME"
$B ip link set lo up
[ "$LAB_CARDS" -eq 0 ] || lay_wires 2>/run/lab/log || fail "setting up cards: $($B tail -n 3 /run/lab/log | $B tr '\n' ' ')"

echo up >&3
while read -r word <&3 && [ "$word" != go ]; do :; done
obey <&3 &

pump out 3>&- &
pump_out=$!
pump err 3>&- &
pump_err=$!
(
	exec 3>&-
	ulimit -l "$LAB_MEMLOCK"
	ulimit -n 65536
	if [ -n "$LAB_USER" ]; then
		HOME=$(getent passwd "$LAB_USER" | cut -d: -f6)
		set -- setpriv --reuid="$LAB_USER" --regid="$(id -g "$LAB_USER")" --init-groups --
	fi
	exec "$@" /bin/sh /run/lab/command
) >/run/lab/out 2>/run/lab/err </dev/null
status=$?
written=
drain
[ -s /run/lab/shares ] && $B sync
echo "exit $status$written" >&3
# The host ends this machine when the output has been read.
while :; do $B sleep 3600; done

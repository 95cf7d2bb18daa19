#!/bin/sh
# The guest's `lab` command: what a test in the guest may ask of its surroundings. No rights needed.
B=/run/lab/busybox
usage() {
	cat >&2 <<-END
	lab link RAIL down|up          pull the cable of a rail out, or put it back
	lab link RAIL drop[/N]|pass    lose all packets of a rail (or one in N), or none
	lab kill                       with --two: end the second guest at once, as a power cut does
	lab mark NAME                  tell every guest that NAME has come to pass
	lab await NAME [SECS]          wait for a mark (default 60 s; status 1 when it does not come)
	lab wait-port PORT [SECS]      wait until something in this guest listens on a TCP port (default 60 s)
	END
	exit 2
}

# until_true SECS COMMAND...
until_true() {
	tries=$(($1 * 50))
	shift
	until "$@"; do
		tries=$((tries - 1))
		[ $tries -le 0 ] && return 1
		$B usleep 20000
	done
}

listens() { [ -n "$(ss -Hltn "sport = :$1")" ]; }

# The host writes the rail's new state there, or that it has none such.
answered() {
	answer=$($B cat "/run/lab/rails/$1" 2>/dev/null)
	[ "$answer" = "$2" ] || [ "$answer" = refused ]
}

case $1:$# in
link:3)
	$B rm -f "/run/lab/rails/$2"
	echo "link $2 $3" >/run/lab/ctl
	until_true 120 answered "$2" "$3" && [ "$answer" = "$3" ]
	;;
kill:1)
	[ "$LAB_SIDE" != one ] || usage
	echo kill >/run/lab/ctl
	until_true 60 test -e /run/lab/marks/killed
	;;
mark:2) echo "mark $2" >/run/lab/ctl ;;
await:[23]) until_true "${3:-60}" test -e "/run/lab/marks/$2" ;;
wait-port:[23]) until_true "${3:-60}" listens "$2" ;;
*) usage ;;
esac

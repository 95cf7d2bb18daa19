# Cables and cards of the guest. Sourced by setup.sh.
#
# Cable N joins the network interfaces aN (10.8.N.1) and bN (10.8.N.2); the cards on them are rxe_aN and
# rxe_bN (siw_aN and siw_bN where LAB_CARD is siw). Three kinds (LAB_WIRE):
#   veth    aN and bN are the two ends of one veth pair
#   switch  aN--pN and qN--bN are veth pairs, pN and qN ports of bridge sN: a cable that can be pulled out in
#           the middle, so that both ends lose their carrier and neither is switched off
#   pci     aN and bN are PCI cards of the machine, joined outside of it
# LAB_SIDE says which ends are in this guest: "one" has both, "a" and "b" have one each.

net=/proc/sys/net/ipv4/conf

sides() {
	case $LAB_SIDE in
	one) echo a b ;;
	*) echo "$LAB_SIDE" ;;
	esac
}

rails() {
	$B seq 0 $((LAB_RAILS - 1))
}

# Lines for `ip -batch` that make cable $1 (all kinds but pci).
new_cable() {
	if [ "$LAB_WIRE" = veth ]; then
		echo "link add a$1 mtu $LAB_MTU type veth peer name b$1 mtu $LAB_MTU"
		return
	fi
	echo "link add s$1 type bridge mcast_snooping 0"
	echo "link add a$1 mtu $LAB_MTU type veth peer name p$1 mtu $LAB_MTU"
	echo "link add b$1 mtu $LAB_MTU type veth peer name q$1 mtu $LAB_MTU"
	for middle in "p$1" "q$1" "s$1"; do
		echo "link set $middle addrgenmode none"
	done
	echo "link set p$1 master s$1 up"
	echo "link set q$1 master s$1 up"
	echo "link set s$1 mtu $LAB_MTU up"
}

# Lines for `ip -batch` that name the PCI card of cable $1, side $2, after its hardware address.
name_card() {
	case $2 in a) number=1 ;; b) number=2 ;; esac
	address=$($B printf '52:54:00:8a:%02x:%02x' "$1" $number)
	for entry in /sys/class/net/*; do
		read -r found <"$entry/address"
		[ "$found" = "$address" ] && echo "link set ${entry##*/} name $2$1 mtu $LAB_MTU"
	done
}

# Routes of side $2 of cable $1. With both ends in one guest a route through table 100 sends packets out of
# the card, where the kernel would otherwise deliver them at once; "iif" lets the other end accept them.
address_of() {
	case $2 in a) echo "10.8.$1.1" ;; b) echo "10.8.$1.2" ;; esac
}

route() {
	case $2 in a) other=b ;; b) other=a ;; esac
	echo "route replace $(address_of "$1" $other) dev $2$1 src $(address_of "$1" "$2") table 100"
}

new_end() {
	echo "link set $2$1 up"
	if [ "$LAB_SIDE" = one ]; then
		echo "rule add pref 10 iif $2$1 lookup local"
		echo "addr add $(address_of "$1" "$2")/24 dev $2$1 noprefixroute"
		route "$1" "$2"
	else
		echo "addr add $(address_of "$1" "$2")/24 dev $2$1"
	fi
}

# Where the filters that lose packets sit: where packets come in, since a change at the sending end disturbs
# the queue pairs of newer kernels by itself.
filter_points() {
	if [ "$LAB_WIRE" = switch ]; then
		echo "p$1 q$1"
		return
	fi
	for side in $(sides); do echo "$side$1"; done
}

lay_wires() {
	echo 0 >$net/all/rp_filter
	echo 0 >$net/default/rp_filter
	echo 1 >$net/all/accept_local
	echo 1 >$net/all/arp_ignore
	[ "$LAB_WIRE" = pci ] && driver=virtio_net || driver=veth
	[ "$LAB_CARD" = siw ] && card=siw || card=rdma_rxe
	modprobe -a $driver $card rdma_ucm sch_ingress cls_matchall act_gact || return 1
	{
		[ "$LAB_SIDE" = one ] && printf '%s\n' "rule add pref 1000 lookup local" "rule del pref 0" "rule add pref 20 lookup 100"
		for rail in $(rails); do
			[ "$LAB_WIRE" = pci ] || new_cable "$rail"
			for side in $(sides); do
				[ "$LAB_WIRE" = pci ] && name_card "$rail" "$side"
				new_end "$rail" "$side"
			done
		done
	} >/run/lab/wires
	ip -batch /run/lab/wires || return 1
	for rail in $(rails); do
		for point in $(filter_points "$rail"); do echo "qdisc add dev $point clsact"; done
	done | tc -batch - || return 1
	cards=0
	for rail in $(rails); do
		for side in $(sides); do
			[ $cards -lt "$LAB_CARDS" ] && echo "link add ${LAB_CARD}_$side$rail type $LAB_CARD netdev $side$rail"
			cards=$((cards + 1))
		done
	done | rdma -b - || return 1
	wait_active
}

# The kernel tells of a new carrier up to a second late. Two minutes for all of them: the run's limit would not say which is missing.
wait_active() {
	tries=0
	for state in /sys/class/infiniband/*/ports/1/state; do
		until $B grep -q ACTIVE "$state"; do
			tries=$((tries + 1))
			[ $tries -gt 6000 ] && echo "$state: $($B cat "$state")" >&2 && return 1
			$B usleep 20000
		done
	done
}

# set_rail RAIL down|up|drop|drop/N|pass
set_rail() {
	case $2 in
	down | up) carrier "$1" "$2" ;;
	drop*) lose "$1" "${2#drop}" ;;
	pass) for point in $(filter_points "$1"); do tc filter del dev "$point" ingress; done ;;
	esac
}

carrier() {
	case $LAB_WIRE in
	veth)
		ip link set "b$1" "$2"
		# Switching an interface off took its routes.
		[ "$2" = up ] && route "$1" b | ip -batch -
		;;
	switch)
		ip link set "p$1" "$2"
		ip link set "q$1" "$2"
		;;
	pci)
		# The host pulls these; here it only shows.
		case $2 in up) want=1 ;; down) want=0 ;; esac
		for side in $(sides); do await_carrier "$side$1" $want; done
		;;
	esac
}

await_carrier() {
	tries=0
	while read -r now <"/sys/class/net/$1/carrier" && [ "$now" != "$2" ]; do
		tries=$((tries + 1))
		[ $tries -gt 3000 ] && return
		$B usleep 20000
	done
}

# lose RAIL "" | /N: all packets, or one in N.
lose() {
	for point in $(filter_points "$1"); do
		tc filter del dev "$point" ingress 2>/dev/null
		case $2 in
		"") tc filter add dev "$point" ingress matchall action drop ;;
		*) tc filter add dev "$point" ingress matchall action pass random netrand drop "${2#/}" ;;
		esac
	done
}

#!/bin/busybox sh
# The guest's first process, in the initial file system: loads what it takes to see the host, puts a
# writable layer over it and hands over to setup.sh in there. All of /job is written by `cargo xtask lab`.
B=/bin/busybox
export PATH=/bin

give_up() {
	echo "lab: guest start: $*" >/dev/console
	$B poweroff -f
}

for dir in proc sys dev lower upper new; do $B mkdir -p /$dir; done
$B mount -t proc proc /proc
$B mount -t sysfs sysfs /sys
$B mount -t devtmpfs devtmpfs /dev
. /job/env
while read -r module; do
	$B insmod "/modules/$module" || give_up "module $module does not load"
done </modules/order

options=trans=virtio,version=9p2000.L,msize=512000
$B mount -t 9p -o "ro,$options,cache=loose" host /lower || give_up "no host file system"
$B mount -t tmpfs -o size=75% tmpfs /upper
$B mkdir /upper/files /upper/work
$B mount -t overlay -o lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work overlay /new ||
	give_up "no writable layer"
for dir in proc sys dev; do
	$B mkdir -p /new/$dir
	$B mount -o move /$dir /new/$dir
done
$B mkdir -p /new/dev/shm /new/dev/pts /new/run
$B mount -t tmpfs -o mode=1777,size=75% tmpfs /new/dev/shm
$B mount -t devpts devpts /new/dev/pts
$B mount -t tmpfs -o mode=755 tmpfs /new/run
$B ln -s /proc/self/fd /new/dev/fd
for n in 0:stdin 1:stdout 2:stderr; do $B ln -s "/proc/self/fd/${n%%:*}" "/new/dev/${n#*:}"; done
$B mkdir -p /new/lib/modules
$B mount -o bind "/new$LAB_KERNEL_ROOT/lib/modules" /new/lib/modules || give_up "no kernel modules"

index=0
while read -r folder; do
	$B mount -t 9p -o "rw,$options,cache=mmap" "share$index" "/new$folder" || give_up "cannot share $folder"
	index=$((index + 1))
done </job/shares

$B cp -r /job /new/run/lab
$B cp $B /new/run/lab/busybox
exec $B chroot /new /bin/sh /run/lab/setup.sh

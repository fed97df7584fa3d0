#!/bin/busybox sh
# shellcheck shell=dash
# layout.sh NAME confined|unconfined ARG...: qbackup-shell where node and its libraries lie as they do
# in another distribution. Called in a mount namespace of its own.
set -eu
name=$1 how=$2
shift 2
case $name in
fedora) lib=/usr/lib64 ;;
elsewhere) lib=/opt/node/lib ;;
*) lib=/usr/lib/x86_64-linux-gnu ;;
esac
mkdir -p "$lib" /tmp/empty
echo "$lib" >/tmp/ld.so.conf
busybox mount --make-rprivate /
if [ "$name" = fedora ]; then
	# The loader itself, which the kernel looks for here, comes with the folder.
	busybox mount --bind /layouts/fedora/lib /usr/lib64
	busybox mount --bind /tmp/empty /usr/lib/x86_64-linux-gnu
elif [ "$name" = elsewhere ]; then
	busybox mount --bind /layouts/elsewhere/lib "$lib"
	# Only what it takes to start at all.
	mkdir -p /tmp/loader
	cp /usr/lib/x86_64-linux-gnu/ld-linux-* /tmp/loader/
	busybox mount --bind /tmp/loader /usr/lib/x86_64-linux-gnu
else
	busybox mount --bind "/layouts/$name/lib" "$lib"
fi
busybox mount --bind "/layouts/$name/bin" /usr/bin
ldconfig -f /tmp/ld.so.conf -C /tmp/ld.so.cache
touch /etc/ld.so.cache
busybox mount --bind /tmp/ld.so.cache /etc/ld.so.cache

export HOME=/root
LD_PRELOAD=$(echo "$lib"/libnode.so.*)
export LD_PRELOAD
if [ "$how" = confined ]; then
	exec /usr/bin/qbackup-shell "$@"
else
	exec /usr/bin/node /usr/bin/qbackup-shell "$@"
fi

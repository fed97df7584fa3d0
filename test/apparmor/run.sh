#!/bin/sh
# The profile of qbackup-shell in force: a Debian kernel in QEMU (few build machines run AppArmor
# themselves), a guest made of this machine's own node, sshd and apparmor_parser, and in it real ssh
# sessions with the built program, then with a hostile one in its place. See guest.ts. Device mapper is in
# that kernel, too: nights of a thin volume, from the stand-in for Qubes to this server, are in thin.ts.
#
# Exit codes: 0 as it should be; 1 not so; 77 it could not be tried here (with CI=true that is 1).
set -eu
export PATH="$PATH:/usr/sbin:/sbin"
cd "$(dirname "$0")/../.."
cache=$PWD/tmp/apparmor
# In seconds; PHASES and LIMIT are for whoever works on it, on a machine that is busy.
guest_limit=${LIMIT:-1500}

skip() {
	printf 'test-apparmor: skipped: %s\n' "$*" >&2
	if [ "${CI:-}" = true ]; then exit 1; else exit 77; fi
}

as_root() {
	if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}
can_install() {
	[ "${YES:-}" = 1 ] && command -v apt-get >/dev/null && { [ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null; }
}

# What the guest is made of -------------------------------------------------------------------------

missing=
need() { command -v "$1" >/dev/null || missing="$missing $2"; }
need qemu-system-x86_64 qemu-system-x86
need apparmor_parser apparmor
need cpio cpio
need sshd openssh-server
need ssh openssh-client
need perl perl-base
need make make
need dmsetup dmsetup
# The one that qbackup's tap names.
[ -x /usr/bin/python3 ] || missing="$missing python3"
# A busybox with libraries would need them in every layout of the guest.
if ! command -v busybox >/dev/null || ldd "$(command -v busybox)" >/dev/null 2>&1; then
	missing="$missing busybox-static"
fi

[ "$(uname -m)" = x86_64 ] || skip "the guest is x86_64 only"
node=$(readlink -f "$(command -v /usr/bin/node || command -v node || echo /nonexistent)")
[ -x "$node" ] || skip "there is no node"

updated=
update() {
	[ -n "$updated" ] || ! can_install || as_root timeout 60 apt-get update -q >/dev/null 2>&1 || :
	updated=yes
}
if [ -n "$missing" ]; then
	can_install || skip "install these first, or say YES=1:$missing"
	update
	# The packages' names are words of ours.
	# shellcheck disable=SC2086
	as_root env DEBIAN_FRONTEND=noninteractive timeout 300 \
		apt-get install -q -y --no-install-recommends $missing >/dev/null 2>&1 ||
		skip "apt-get cannot install$missing"
fi

mkdir -p "$cache"
kernel=$cache/vmlinuz
# module NAME: what it depends on, and it, a line each, as long as it is a file; decompressed into modules/.
module() (
	file=$(find "$cache/kernel/lib/modules" -name "$(echo "$1" | sed 's/[-_]/[-_]/g').ko*")
	[ -f "$file" ] || exit 0
	to=$cache/modules/$(basename "${file%.ko*}").ko
	case $file in
	*.xz) busybox unxz -c "$file" >"$to" ;;
	*.zst) zstd -q -d -c "$file" >"$to" ;;
	*) cp "$file" "$to" ;;
	esac
	for other in $(tr '\0' '\n' <"$to" | sed -n 's/^depends=//p' | tr ',' ' '); do module "$other"; done
	echo "$(basename "$to")${2:+ $2}"
)
if [ ! -s "$kernel" ] || [ ! -s "$cache/modules/order" ]; then
	command -v apt-get >/dev/null || skip "there is no apt-get to fetch a kernel with"
	update
	# Debian's name for it, and Ubuntu's.
	for meta in linux-image-cloud-amd64 linux-image-virtual; do
		package=$(apt-cache depends "$meta" 2>/dev/null |
			sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)
		[ -z "$package" ] || break
	done
	[ -n "${package:-}" ] || skip "apt knows no kernel package"
	rm -rf "$cache/kernel"
	mkdir "$cache/kernel"
	# Ubuntu has the modules in another package.
	apart=$(apt-cache depends "$package" | sed -n 's/^ *Depends: \(linux-modules-[0-9].*\)/\1/p')
	# shellcheck disable=SC2086
	(cd "$cache/kernel" && timeout 120 apt-get download -q "$package" $apart >/dev/null 2>&1 &&
		for each in ./*.deb; do dpkg -x "$each" . || exit 1; done) || skip "apt-get cannot download $package"
	[ -z "$(find "$cache/kernel" -name 'dm-thin-pool.ko.zst')" ] || command -v zstd >/dev/null ||
		skip "install zstd first: this kernel's modules are packed with it"
	rm -rf "$cache/modules"
	mkdir "$cache/modules"
	{
		module crc32c_generic
		module dm-thin-pool
		# In KiB; what is written takes memory. The pool's metadata, and its data.
		module brd 'rd_nr=2 rd_size=65536'
	} | awk '!seen[$0]++' >"$cache/modules.order"
	mv "$cache/modules.order" "$cache/modules/order"
	mv "$cache"/kernel/boot/vmlinuz-* "$kernel"
	rm -rf "$cache/kernel"
fi

[ -x dist/qbackup-shell ] && [ -x dist/test/standin ] || npm run --silent build

# The guest's files ---------------------------------------------------------------------------------

work=$(mktemp -d "$cache/guest.XXXXXX")
qemu=
# QEMU is below timeout, which passes the signal on.
trap '[ -z "$qemu" ] || kill "$qemu" 2>/dev/null || :; rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
root=$work/root

# merged as Debian 12 and later are, so that paths resolve in the guest as they do there
mkdir -p "$root/usr/bin" "$root/usr/sbin" "$root/usr/lib64" "$root/usr/lib/x86_64-linux-gnu"
for dir in bin sbin lib lib64; do ln -s "usr/$dir" "$root/$dir"; done
for dir in dev proc sys run/sshd tmp mnt root home srv test var/log etc/ssh/keys layouts; do
	mkdir -p "$root/$dir"
done

libraries() { ldd "$1" 2>/dev/null | sed -n 's/.*=> \(\/[^ ]*\) .*/\1/p; s/^[[:space:]]*\(\/[^ ]*ld-[^ ]*\) .*/\1/p'; }
# put PROGRAM [PATH-IN-GUEST]: with the libraries that it needs, all in one folder.
put() {
	install -D -m 755 "$1" "$root${2:-$1}"
	for library in $(libraries "$1"); do
		cp -L "$library" "$root/usr/lib/x86_64-linux-gnu/"
	done
}
put "$(command -v busybox)" /usr/bin/busybox
ln -s busybox "$root/usr/bin/sh"
put "$node" /usr/bin/node
put "$(command -v sshd)" /usr/sbin/sshd
put "$(command -v ssh)" /usr/bin/ssh
put "$(command -v apparmor_parser)" /usr/sbin/apparmor_parser
# sshd of OpenSSH 9.8 and later consists of several programs.
for program in /usr/lib/openssh/sshd-*; do [ ! -x "$program" ] || put "$program"; done
# Ubuntu's ldconfig is a script around the program.
ldconfig=$(command -v ldconfig)
[ ! -x "$ldconfig.real" ] || ldconfig=$ldconfig.real
put "$ldconfig" /usr/sbin/ldconfig
# perl makes any system call; under this name the profile lets a process that was given the profile
# by hand map it, so it stands for machine code that was brought into the confined process.
put "$(command -v perl)" /usr/lib/perl.so
ln -s ../lib/x86_64-linux-gnu/ld-linux-x86-64.so.2 "$root/usr/lib64/ld-linux-x86-64.so.2"
# Modules that a distribution keeps outside of its node.
"$node" -p '(process.config.variables.node_builtin_shareable_builtins || []).join("\n")' |
	while read -r module; do
		[ ! -e "$module" ] || install -D -m 644 "$module" "$root$module"
	done
mkdir -p "$root/etc/ssl" "$root/etc/apparmor.d"
[ ! -e /etc/ssl/openssl.cnf ] || cp -L /etc/ssl/openssl.cnf "$root/etc/ssl/"
for part in abi abstractions tunables; do cp -R "/etc/apparmor.d/$part" "$root/etc/apparmor.d/"; done

# What the other two programs need besides node, and their stand-in for Qubes.
for program in bash dmsetup setpriv prlimit; do put "$(command -v "$program")" "/usr/bin/$program"; done
put /usr/bin/python3
# No more of Python than the tap loads, and as it is compiled already: with its times.
/usr/bin/python3 -ISs -c 'import fcntl, os, socket, sys
for module in list(sys.modules.values()):
	for name in ("__file__", "__cached__"):
		print(getattr(module, name, None) or "")' |
	while read -r file; do [ ! -f "$file" ] || install -D -p -m 644 "$file" "$root$file"; done
cp dist/qbackup dist/qubes.BackupCarrier dist/test/standin "$root/test/"
cp -R "$cache/modules" "$root/"

# Installed as on a server, by the Makefile. Without the sources beside it, it builds nothing.
mkdir -p "$work/tree/dist"
cp -R Makefile install apparmor "$work/tree/"
cp dist/qbackup-shell "$work/tree/dist/"
for target in 'server user=carol' server-aa; do
	# shellcheck disable=SC2086
	make --silent -C "$work/tree" DESTDIR="$root" $target
done

# Other distributions' layouts: folders to be mounted over the guest's own.
layout() {
	dir=$root/layouts/$1
	mkdir -p "$dir/bin" "$dir/lib"
	ln "$root/usr/bin/node" "$dir/bin/$2"
	ln "$root/usr/bin/busybox" "$dir/bin/busybox"
	ln -s busybox "$dir/bin/sh"
	cp "$root/usr/bin/qbackup-shell" "$dir/bin/"
	for library in $(libraries "$node"); do cp -L "$library" "$dir/lib/"; done
	# Stands for the library that distributions put most of node into.
	cp -L "$dir/lib/libm.so.6" "$dir/lib/$3"
}
layout debian13 node libnode.so.115
ln -s node "$root/layouts/debian13/bin/nodejs"
layout debian-nodejs nodejs libnode.so.108
ln -s nodejs "$root/layouts/debian-nodejs/bin/node"
layout fedora node-22 libnode.so.127
ln -s node-22 "$root/layouts/fedora/bin/node"
layout elsewhere node libnode.so.127

cat >"$root/etc/passwd" <<'END'
root:x:0:0:root:/root:/bin/sh
sshd:x:74:74:sshd:/run/sshd:/bin/false
alice:x:1001:1001::/home/alice:/usr/bin/qbackup-shell
bob:x:1002:1002::/home/bob:/bin/sh
carol:x:1003:1003::/home/carol:/usr/bin/qbackup-shell
dave:x:1004:1004::/home/dave:/usr/bin/qbackup-shell
nobody:x:65534:65534::/:/bin/false
END
printf '%s\n' root:x:0: sshd:x:74: alice:x:1001: bob:x:1002: carol:x:1003: dave:x:1004: nogroup:x:65534: >"$root/etc/group"
sed 's/^\([^:]*\):.*/\1:*:19000:0:99999:7:::/' "$root/etc/passwd" >"$root/etc/shadow"
printf 'passwd: files\ngroup: files\nshadow: files\nhosts: files\n' >"$root/etc/nsswitch.conf"
echo '127.0.0.1 localhost' >"$root/etc/hosts"

ssh-keygen -q -t ed25519 -N '' -C '' -f "$root/etc/ssh/host_key"
ssh-keygen -q -t ed25519 -N '' -C '' -f "$root/test/key"
echo "127.0.0.1 $(cat "$root/etc/ssh/host_key.pub")" >"$root/test/known_hosts"
echo "restrict,command=\"/usr/bin/qbackup-shell\" $(cat "$root/test/key.pub")" >"$root/etc/ssh/keys/alice"
cp "$root/etc/ssh/keys/alice" "$root/etc/ssh/keys/dave"
cp "$root/test/key.pub" "$root/etc/ssh/keys/carol"
echo "restrict,command=\"/usr/bin/qbackup-shell --root /home/bob --quota 1G\" $(cat "$root/test/key.pub")" \
	>"$root/etc/ssh/keys/bob"
cat >"$root/etc/ssh/sshd_config" <<'END'
Include /etc/ssh/sshd_config.d/*.conf
ListenAddress 127.0.0.1
ListenAddress ::1
HostKey /etc/ssh/host_key
PidFile none
UsePAM no
# The homes are made writable for everybody later on, so that permissions hide nothing.
StrictModes no
AuthorizedKeysFile /etc/ssh/keys/%u
PasswordAuthentication no
KbdInteractiveAuthentication no
END

for program in guest hostile; do
	node_modules/.bin/rolldown "test/apparmor/$program.ts" --platform node --format cjs \
		--banner '#!/usr/bin/node' --file "$root/test/$program" --log-level warn >/dev/null
	chmod 755 "$root/test/$program"
done
install -m 755 test/apparmor/init.sh "$root/init"
install -m 755 test/apparmor/layout.sh "$root/test/layout.sh"
chmod -R go+rX "$root"
chmod 600 "$root/test/key" "$root/etc/ssh/host_key"
(cd "$root" && find . -print0 | cpio --quiet -0 -o -H newc -R +0:+0) >"$work/initrd"
rm -rf "$root"

# The run -------------------------------------------------------------------------------------------

bare='-display none -no-reboot -nodefaults -monitor none -net none'
# A /dev/kvm that opens need not work: does a kernel get to its panic for want of a root?
cpu='-machine q35,accel=tcg -cpu max'
if [ -w /dev/kvm ]; then
	kvm='-machine q35,accel=kvm -cpu host'
	# shellcheck disable=SC2086
	timeout -k 1 10 qemu-system-x86_64 $bare $kvm -m 256 -kernel "$kernel" -serial "file:$work/probe" \
		-append 'console=ttyS0 panic=-1' </dev/null >/dev/null 2>&1 || :
	! grep -aq 'Kernel panic' "$work/probe" 2>/dev/null || cpu=$kvm
fi

# Guards against flaws of processors make an emulated one slow.
append='console=ttyS0 quiet panic=-1 mitigations=off apparmor=1 security=apparmor audit_backlog_limit=8192'
# Unknown words of the form a=b become the environment of init.
append="$append limit=$((guest_limit - 15))${PHASES:+ phases=$PHASES}"
# shellcheck disable=SC2086
timeout -k 5 "$guest_limit" qemu-system-x86_64 $bare $cpu -smp 2 -m 1024 \
	-kernel "$kernel" -initrd "$work/initrd" -append "$append" \
	-serial "file:$work/console" -serial "file:$work/report" </dev/null >"$work/qemu" 2>&1 &
qemu=$!
wait "$qemu" || :
qemu=

tr -d '\r' <"$work/report" 2>/dev/null | grep -v '^EXIT ' || :
code=$(tr -d '\r' <"$work/report" 2>/dev/null | sed -n 's/^EXIT //p')
if [ "$code" != 0 ]; then
	if [ "$code" = 143 ]; then
		echo "test-apparmor: error: not done within $guest_limit s; LIMIT=1800 allows a busy machine more" >&2
	elif [ -z "$code" ]; then
		echo "test-apparmor: error: the guest did not get to its end (within $guest_limit s)" >&2
		tail -n 30 "$work/qemu" "$work/console" >&2 || :
	fi
	exit 1
fi

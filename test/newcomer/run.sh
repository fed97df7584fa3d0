#!/bin/sh
# The newcomer's two commands, "make test" and "make demo", in fresh roots of Debian 12 and 13: by a
# user with sudo who answers on a terminal, by one without, and by root, in the last two with Qubes'
# own tools in /usr/bin (they write down that they were called, which no test may do). And the README's
# steps to a first scheduled backup. "make test-newcomer"; RELEASES says which, TMP where the roots lie.
# Half an hour for each.
#
# Exit codes: 0 as it should be; 1 not so; 77 it could not be tried here.
set -eu
export PATH="$PATH:/usr/sbin:/sbin"
cd "$(dirname "$0")/../.."
tmp=${TMP:-$PWD/tmp/newcomer}
mkdir -p "$tmp"

skip() {
	printf 'test-newcomer: skipped: %s\n' "$*" >&2
	exit 77
}
[ "$(id -u)" = 0 ] || skip 'only root can make such roots'
command -v debootstrap >/dev/null || skip 'install debootstrap first'
command -v npm >/dev/null || skip 'there is no npm'
unshare --mount --pid --fork true 2>/dev/null || skip 'no namespaces can be made here'

# What npm needs to reach its registry from here, it needs in there.
pass="npm_config_registry=$(npm config get registry)"
for name in http_proxy https_proxy no_proxy; do
	eval "value=\${$name:-}"
	[ -z "$value" ] || pass="$pass $name=$value"
done
# Not among the root's own, which its packages write anew.
authorities=${NODE_EXTRA_CA_CERTS:-}
[ -z "$authorities" ] || pass="$pass NODE_EXTRA_CA_CERTS=/etc/authorities.pem"

# Roots ----------------------------------------------------------------------------------------------

# enter ROOT USER COMMAND: in namespaces of its own, so that mounts and processes end with it. The
# first process waits for the others, as an init would.
enter() {
	root=$1 user=$2
	shift 2
	# shellcheck disable=SC2016 # It is the inner shell that expands.
	unshare --mount --pid --fork --kill-child sh -c '
		root=$0 user=$1 pass=$2; shift 2
		mount -t proc proc "$root/proc"
		mount -t sysfs -o ro sys "$root/sys"
		mount -t devpts -o newinstance,ptmxmode=666,mode=620,gid=5 devpts "$root/dev/pts"
		mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
		home=$(chroot "$root" getent passwd "$user" | cut -d: -f6)
		path=/usr/local/bin:/usr/bin:/bin:/usr/games
		[ "$user" != root ] || path=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
		chroot "$root" runuser -u "$user" -- env -i HOME="$home" USER="$user" LOGNAME="$user" \
			PATH="$path" TERM=dumb $pass sh -c "cd; $1" & wait $!
	' "$root" "$user" "$pass" "$@"
}

# A release with what the README asks for: node 20 or later at /usr/bin/node, npm and make.
base() {
	[ ! -d "$tmp/$1.base" ] || return 0
	rm -rf --one-file-system "$tmp/$1.new"
	debootstrap --variant=minbase "$1" "$tmp/$1.new"
	cp /etc/resolv.conf /etc/hosts "$tmp/$1.new/etc/"
	[ -z "$authorities" ] || cp "$authorities" "$tmp/$1.new/etc/authorities.pem"
	packages=make
	case $(chroot "$tmp/$1.new" apt-cache show nodejs | sed -n 's/^Version: //p') in
	1[0-9].*)
		cp /usr/bin/node "$tmp/$1.new/usr/bin/node"
		mkdir -p "$tmp/$1.new/usr/lib/node_modules"
		cp -a "$(npm root -g)/npm" "$tmp/$1.new/usr/lib/node_modules/"
		for name in npm npx; do
			ln -s "../lib/node_modules/npm/bin/$name-cli.js" "$tmp/$1.new/usr/bin/$name"
		done
		;;
	*) packages="$packages nodejs npm" ;;
	esac
	enter "$tmp/$1.new" root "apt-get install -q -y --no-install-recommends $packages"
	mv "$tmp/$1.new" "$tmp/$1.base"
}

# fresh RELEASE: a root in $root, with the user newcomer, and this project as it lies here.
fresh() {
	root=$tmp/$1.root
	rm -rf --one-file-system "$root"
	cp -a "$tmp/$1.base" "$root"
	chroot "$root" useradd -m -s /bin/bash newcomer
	for home in root home/newcomer; do
		mkdir "$root/$home/qbackup"
		git ls-files -z --cached --others --exclude-standard | tar --null -T - -c |
			tar -C "$root/$home/qbackup" -x --no-same-owner
	done
	chroot "$root" chown -R newcomer: /home/newcomer/qbackup
}

sudoers() {
	enter "$root" root 'apt-get install -q -y --no-install-recommends sudo'
	echo 'newcomer ALL=(ALL) NOPASSWD: ALL' >"$root/etc/sudoers.d/newcomer"
}

# As in a dom0, and as loud as can be.
qubes_tools() {
	: >"$root/called"
	chmod 666 "$root/called"
	for tool in qvm-ls qvm-run qvm-backup qvm-check qvm-start qvm-shutdown qvm-prefs qvm-volume \
		qvm-backup-restore qrexec-client qubesd-query notify-send; do
		printf '#!/bin/sh\necho "$0 $*" >>/called\necho "the real $0 was called" >&2\nexit 99\n' \
			>"$root/usr/bin/$tool"
		chmod 755 "$root/usr/bin/$tool"
	done
}

# Trials ---------------------------------------------------------------------------------------------

failed=0
# trial NAME CODE PATTERN USER COMMAND: ends with that code, and prints what the pattern matches.
trial() {
	name=$release-$1 code=$2 pattern=$3 began=$(date +%s) ended=0
	enter "$root" "$4" "cd qbackup; $5" >"$tmp/$name.log" 2>&1 </dev/null || ended=$?
	if [ "$ended" = "$code" ] && grep -Eq "$pattern" "$tmp/$name.log"; then
		echo "ok      $name ($(($(date +%s) - began)) s)"
	else
		echo "NOT OK  $name: exit $ended, see $tmp/$name.log"
		failed=1
	fi
}
# holds NAME COMMAND...: that command succeeds.
holds() {
	name=$release-$1
	shift
	if "$@"; then echo "ok      $name"; else
		echo "NOT OK  $name"
		failed=1
	fi
}
# Not for the next boot either, and what kept it off is gone.
no_sshd() {
	[ ! -e "$root/usr/sbin/policy-rc.d" ] &&
		! ls "$root/etc/systemd/system" "$root"/etc/systemd/system/*.target.wants | grep -Eq "^sshd?\\.(service|socket)\$"
}

# The README's commands, on a root that has the packages that it names, and is left as it is.
readme() {
	npm run --silent build >"$tmp/$name.log" 2>&1 &&
		NO_COLOR=1 QBACKUP_ROOT=$root sh test/node.sh node_modules/.bin/vitest run --project e2e readme \
			>>"$tmp/$name.log" 2>&1 && grep -q 'Tests *1 passed' "$tmp/$name.log"
}

for release in ${RELEASES:-bookworm trixie}; do
	base "$release" >"$tmp/$release.log" 2>&1 || {
		cat "$tmp/$release.log" >&2
		skip "no root of $release could be made"
	}
	fresh "$release"
	echo "$release: $(chroot "$root" /usr/bin/node --version), $(chroot "$root" tar --version | head -n 1)"
	trial 'refusal-without-sudo' 2 'error: install these first: openssh-client .*scrypt' newcomer 'make test'
	sudoers >>"$tmp/$release.log" 2>&1
	trial 'refusal-without-yes' 2 'hint: make test YES=1 installs them, with sudo' newcomer 'make test'
	holds 'nothing-installed' [ ! -e "$root/usr/sbin/sshd" ]
	trial 'no' 2 'Install them.*\[y/N\]' newcomer 'printf "n\n" | script -qec "make test" /dev/null'
	holds 'nothing-installed-after-no' [ ! -e "$root/usr/sbin/sshd" ]
	trial 'yes-by-word' 0 'Setting up openssh-server' newcomer 'YES=1 sh test/need.sh demo'
	trial 'yes-test' 0 'Skipped' newcomer 'printf "y\n" | script -qec "make test" /dev/null'
	holds 'sshd-off' no_sshd
	trial 'yes-demo' 0 'proven: the .* bytes' newcomer 'make demo'

	rm "$root/etc/sudoers.d/newcomer"
	qubes_tools
	trial 'plain-test' 0 'Skipped' newcomer 'make test'
	trial 'plain-demo' 0 'proven: the .* bytes' newcomer 'make demo'
	holds 'plain-tools-untouched' [ ! -s "$root/called" ]

	fresh "$release"
	qubes_tools
	trial 'root-test' 0 'Skipped' root 'make test YES=1'
	holds 'root-sshd-off' no_sshd
	trial 'root-demo' 0 'proven: the .* bytes' root 'make demo'
	holds 'root-tools-untouched' [ ! -s "$root/called" ]

	fresh "$release"
	enter "$root" root 'apt-get install -q -y --no-install-recommends make openssh-server systemd' \
		>>"$tmp/$release.log" 2>&1
	holds 'readme' readme
	rm -rf --one-file-system "$root"
done
exit $failed

#!/bin/sh
# What a suite needs besides node and npm: found, or installed from Debian's packages once its user
# has said yes, on the terminal or with YES=1. "sh test/need.sh SUITE": test, demo, bench, or proof
# for the long suites. Says first what the suite is, how long it takes, and what would be installed.
set -eu
PATH=$PATH:/usr/sbin:/sbin

suite=${1:-}
case $suite in
test) about='all parts, each by itself and against the real thing, and a few whole runs; about 4 minutes on two cores' ;;
demo) about='a backup from end to end on this machine alone; less than a minute' ;;
bench) about='what is measured, as root; minutes with BENCH=--quick, hours without' ;;
proof) about='kills, cut links, full disks, hostile clients, simulations; most of an hour' ;;
*)
	echo 'usage: sh test/need.sh test | demo | bench | proof' >&2
	exit 2
	;;
esac
echo "qbackup $suite: $about"

fail() {
	printf 'qbackup: error: %s\n' "$1" >&2
	[ $# = 1 ] || printf 'qbackup: hint: %s\n' "$2" >&2
	exit 1
}
# The programs start with #!/usr/bin/node, so another node, wherever it lies, does not help.
/usr/bin/node -e 'process.exit(parseInt(process.versions.node) < 20 ? 1 : 0)' 2>/dev/null ||
	fail 'there is no node of version 20 or later at /usr/bin/node' \
		'Debian 13: apt install nodejs npm; others: see docs/installation.md'
command -v npm >/dev/null || fail 'npm is not installed' 'Debian 13: apt install npm'

# Suites, program, package, what it is for. A suite with ? can do without: some tests are skipped then.
packages= needed= lines=
while read -r suites program package what; do
	case ,$suites, in
	*,"$suite",*) word=needed ;;
	*,"$suite"\?,*) word=optional ;;
	*) continue ;;
	esac
	! command -v "$program" >/dev/null || continue
	packages="$packages $package"
	lines="$lines
  $package ($word): $what"
	[ $word = optional ] || needed="$needed $package"
done <<'END'
test,demo,bench,proof ssh openssh-client the ssh that the backups go through
test,demo,bench,proof sshd openssh-server an sshd, which only the tests start, on loopback; the package's own stays off
test?,demo,bench,proof python3 python3 hands over what qubesd reads, as in dom0, which has it
test,bench?,proof scrypt scrypt opens archives as a person without Qubes would
test? zstd zstd opens archives that were compressed with it
test? apparmor_parser apparmor reads the profile of qbackup-shell
bench?,proof? ip iproute2 makes networks that can be cut or slowed down
bench? mkfs.ext4 e2fsprogs makes the volume that is backed up
bench? restic restic another program, to be compared with
bench? borg borgbackup another program, to be compared with
proof? strace strace stops a program at each of its system calls
proof? git git one of the clients that must get nothing
END
[ -n "$packages" ] || exit 0

echo "Not here, of Debian's packages:$lines"
# What would come with them, where apt knows already. The packages' names are words of ours.
# shellcheck disable=SC2086
all=$(apt-get -s -q --no-install-recommends install $packages 2>/dev/null |
	sed -n 's/^Inst \([^ ]*\).*/\1/p' | sort | tr '\n' ' ') || :
[ -z "$all" ] || echo "  all that would be installed: $all"
if [ "$(id -u)" = 0 ]; then
	sudo=
elif [ -t 0 ]; then
	sudo=sudo
else
	# Nobody is there to type a password.
	sudo='sudo -n'
fi
# With "able" this machine could install them; ends here with what is to be done, or goes on without.
without() {
	if [ -z "$needed" ]; then
		echo 'Going on without them. What is skipped for it is named at the end.'
		exit 0
	fi
	case $1-$suite in
	able-*) hint="make $suite YES=1 installs them${sudo:+, with sudo}" ;;
	*-test) hint='npm test goes on without them, and names at the end what it skipped' ;;
	*) hint='they are names of Debian; elsewhere take what has these programs' ;;
	esac
	fail "install these first:$needed" "$hint"
}
if ! command -v apt-get >/dev/null || { [ -n "$sudo" ] && ! command -v sudo >/dev/null; }; then
	without unable
fi
if [ "${YES:-}" != 1 ]; then
	{ [ -t 0 ] && [ -n "$needed" ]; } || without able
	printf 'Install them with %sapt-get? No service of theirs is started. [y/N] ' \
		"${sudo:+sudo }"
	read -r answer || answer=
	case $answer in
	[yY] | [yY][eE][sS]) ;;
	*) without able ;;
	esac
fi

# Of what is new here nothing is started, now or at the next boot: /usr/sbin/policy-rc.d is where
# Debian's packages ask whether they may. One that exists is somebody's own and stays.
# shellcheck disable=SC2016 # It is the inner shell that expands.
install='set -eu
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
	trap "rm -f $policy" EXIT
	trap "exit 1" HUP INT TERM
	printf "#!/bin/sh\nexit 101\n" >"$policy"
	chmod 755 "$policy"
fi
new=; [ -e /usr/sbin/sshd ] || new=yes
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
apt-get install -q -y --no-install-recommends "$@"
# It wants to be called by a package, and is what their scripts call.
[ -z "$new" ] || DPKG_MAINTSCRIPT_PACKAGE=openssh-server deb-systemd-helper disable ssh.service ssh.socket'
# shellcheck disable=SC2086
if ! $sudo sh -c "$install" - $packages; then
	[ -z "$needed" ] || fail "could not install$packages"
	without unable
fi

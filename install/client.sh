#!/bin/sh
# What "make appvm to=ACCOUNT@HOST" and "make dom0 to=QUBE" do besides: the settings, and the carrier's
# ssh key, for whoever called sudo. Nothing that is there is changed.
set -eu
export LC_ALL=C

say() { printf '%s\n' "$*"; }
fail() { printf 'qbackup: error: %s\n' "$*" >&2; exit 1; }
hint() { printf 'qbackup: hint: %s\n' "$*" >&2; }

owner=${SUDO_USER:-$(id -un)}
home=$(getent passwd "$owner" | cut -d: -f6)
[ -n "$home" ] || fail "the account $owner has no home"
bashrc=$home/.bashrc
# As the owner, whose home it is.
as_owner() {
	if [ "$(id -un)" = "$owner" ]; then "$@"; else runuser -u "$owner" -- "$@"; fi
}

# Before anything is installed.
words() {
	[ -z "$DESTDIR" ] || fail 'to= is about this machine, so it does not go with DESTDIR'
	case $1-$to in
	*[!A-Za-z0-9._@:/-]*) fail "to=$to: plain characters only" ;;
	appvm-[A-Za-z0-9_]*@?* | appvm-ssh://?*) ;;
	appvm-*) fail 'to=ACCOUNT@HOST: where the carrier connects to' ;;
	dom0-*[!A-Za-z0-9_-]* | dom0-[!A-Za-z]*) fail 'to=QUBE: the qube that carries the backups' ;;
	esac
	shift
	for setting in "$@"; do
		there=$(set_to "$setting")
		[ -z "$there" ] || [ "$there" = "$to" ] || [ "$setting" = QBKP_PASS_FILE ] ||
			fail "$bashrc sets $setting to something else already: $there"
	done
}

# What ~/.bashrc says of a setting, as it is written there.
set_to() {
	[ ! -f "$bashrc" ] || sed -n "s/^[[:space:]]*\(export[[:space:]]\{1,\}\)\{0,1\}$1=//p" "$bashrc" | tail -n 1
}

# setting NAME VALUE: a line of ~/.bashrc, unless it has one.
setting() {
	if [ -n "$(set_to "$1")" ]; then
		say "$bashrc: $1=$(set_to "$1"), as it was"
		return
	fi
	# shellcheck disable=SC2016 # It is the inner shell that expands.
	as_owner sh -c '[ ! -s "$1" ] || [ -z "$(tail -c 1 "$1")" ] || echo >>"$1"; printf "%s\n" "$2" >>"$1"' \
		- "$bashrc" "$1=$2"
	say "$bashrc: $1=$2"
}

appvm() {
	setting SSH_CONN "$to"
	key=$home/.ssh/id_ed25519
	[ -d "$home/.ssh" ] || as_owner mkdir -m 700 "$home/.ssh"
	# Without a passphrase: nobody is there to type it.
	[ -e "$key" ] || as_owner ssh-keygen -q -t ed25519 -N '' -C "qbackup" -f "$key"
	say "This qube's public key, for key='...' of make server:"
	say "  $(as_owner cat "$key.pub")"
}

dom0() {
	setting QBKP_DEST_VM "$to"
	# shellcheck disable=SC2088 # qbackup expands it.
	setting QBKP_PASS_FILE '~/.qbackup-passphrase'
	[ -e "$home/.qbackup-passphrase" ] ||
		say 'Next: the passphrase, one line and then Ctrl-D: install -m 600 /dev/stdin ~/.qbackup-passphrase'
}

case $1 in
check_appvm) words appvm SSH_CONN ;;
check_dom0) words dom0 QBKP_DEST_VM QBKP_PASS_FILE ;;
*) "$1" ;;
esac

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
		there=$(meant "$(set_to "$setting")")
		[ -z "$there" ] || [ "$there" = "$to" ] || [ "$setting" = QBKP_PASS_FILE ] ||
			fail "$(set_in "$setting") sets $setting to something else already: $there"
	done
}

# What is said of a setting, as it is written, in the first file that says something: as the programs look for it.
set_to() {
	file=$(set_in "$1")
	[ -z "$file" ] || sed -n "s/^[[:space:]]*\(export[[:space:]]\{1,\}\)\{0,1\}$1=//p" "$file" | tail -n 1
}
set_in() {
	for file in "$home/.bash_profile" "$bashrc" "$home/.profile"; do
		! grep -Eqs "^[[:space:]]*(export[[:space:]]+)?$1=" "$file" || { say "$file"; return; }
	done
}
# What that means: without its quotes, and with this home for ~ and $HOME where they stand for it.
meant() {
	case $1 in
	\'*) it=${1#?} it=${it%%\'*} && say "$it" && return ;;
	\"*) it=${1#?} it=${it%%\"*} ;;
	*) it=${1%%[[:space:];]*} && case $it in '~'/*) it=$home/${it#*/} ;; esac ;;
	esac
	# shellcheck disable=SC2016 # As it is written.
	case $it in '$HOME'/* | '${HOME}'/*) it=$home/${it#*/} ;; esac
	say "$it"
}

# setting NAME VALUE: a line of ~/.bashrc, unless it is set.
setting() {
	if [ -n "$(set_to "$1")" ]; then
		say "$(set_in "$1"): $1=$(set_to "$1"), as it was"
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
	passphrase=$(meant "$(set_to QBKP_PASS_FILE)")
	if [ "$passphrase" != "$home/.qbackup-passphrase" ]; then
		if [ -e "$passphrase" ]; then
			say "The passphrase is in $passphrase: leave it there"
		else
			say "The passphrase belongs into $passphrase, which is not there yet"
		fi
	elif [ ! -e "$passphrase" ]; then
		say 'Next: the passphrase, one line and then Ctrl-D: install -m 600 /dev/stdin ~/.qbackup-passphrase'
	fi
}

case $1 in
check_appvm) words appvm SSH_CONN ;;
check_dom0) words dom0 QBKP_DEST_VM QBKP_PASS_FILE ;;
*) "$1" ;;
esac

#!/bin/sh
# The part of "make server" and "make server-sshd" that changes a running machine.
set -eu
PATH=$PATH:/usr/sbin:/sbin

say() { printf '%s\n' "$*"; }
fail() { printf 'qbackup: error: %s\n' "$*" >&2; exit 1; }

# account NAME SHELL [STORE]: makes the account if there is none, and never changes one that there is.
account() {
	user=$1 shell=$2 store=${3:-}
	if ! getent passwd "$user" >/dev/null; then
		# '*' allows keys and no password; useradd's own '!' would make an sshd without PAM refuse both.
		useradd --create-home --user-group --shell "$shell" --password '*' "$user"
		chmod 700 "$(home_of "$user")"
		say "made the account $user"
	elif [ "$(getent passwd "$user" | cut -d: -f7)" != "$shell" ]; then
		say "the account $user was there before, and was left as it is. To give it the special shell:"
		say "  usermod --shell $shell $user"
	fi
	home=$(home_of "$user")
	if [ -n "$store" ] && [ ! -e "$store" ]; then
		install -d -m 700 -o "$user" -g "$(id -gn "$user")" "$store"
		say "made the store $store"
	fi
	cd /
	say "The server's identity, to compare with what qbackup shows in dom0:"
	runuser -u "$user" -- "$shell" identity --root "${store:-$home}"
	say "Next: put the carrier's public key into $home/.ssh/authorized_keys (owner $user, mode 600),"
	say "and run: make server-sshd user=$user${store:+ store=$store}"
}

home_of() { getent passwd "$1" | cut -d: -f6; }

# sshd_check DROP-IN: takes it away again if sshd would not start with it.
sshd_check() {
	main=/etc/ssh/sshd_config
	mkdir -p /run/sshd
	if ! sshd -t; then
		rm -f "$1"
		fail "sshd does not accept its configuration with $1, which was removed again"
	fi
	if ! grep -Eiq '^[[:space:]]*Include[[:space:]].*sshd_config\.d/' "$main"; then
		say "warning: $main does not include ${1%/*}; add this as its first line:"
		say "  Include ${1%/*}/*.conf"
	fi
	say "sshd accepts it. To bring it into force: systemctl reload ssh || systemctl reload sshd"
}

"$@"

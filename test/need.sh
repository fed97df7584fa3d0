#!/bin/sh
# What the tests and the demonstration need besides node and npm: found, or installed from Debian's
# packages where that can be done without a question.
set -eu
PATH=$PATH:/usr/sbin:/sbin

missing=
need() { command -v "$1" >/dev/null || missing="$missing $2"; }
need ssh openssh-client
need sshd openssh-server
need scrypt scrypt
need apparmor_parser apparmor
need setpriv util-linux
need bash bash
need strace strace
need ip iproute2
need git git

node -e 'process.exit(parseInt(process.versions.node) < 20 ? 1 : 0)' 2>/dev/null || {
	echo 'qbackup: error: node 20 or later is needed' >&2
	echo 'qbackup: hint: Debian 13: apt install nodejs npm; Debian 12: see "Node" in README.md' >&2
	exit 1
}
[ -n "$missing" ] || exit 0

if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
	as_root=
elif command -v apt-get >/dev/null && sudo -n true 2>/dev/null; then
	as_root='sudo -n'
else
	echo "qbackup: error: install these first:$missing" >&2
	exit 1
fi
# The packages' names are words of ours. An sshd that is only there for the tests need not be started.
# shellcheck disable=SC2086
$as_root env DEBIAN_FRONTEND=noninteractive sh -c 'apt-get update -q && apt-get install -q -y --no-install-recommends "$@"' - $missing

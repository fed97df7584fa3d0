#!/bin/sh
# What "make server", "make server-sshd", "make server-aa" and their uninstall targets do. All that they are
# given comes in the environment: DESTDIR, PREFIX, user, store, quota, options, key, signer, reloaded, and
# sshd_config, the file that sshd starts from.
#
# The order is the point: first the sshd drop-in, tried against what sshd really makes of it; then sshd
# reads it; then the account. So there is no moment at which the account can log in without it.
set -eu
PATH=$PATH:/usr/sbin:/sbin
export LC_ALL=C

say() { printf '%s\n' "$*"; }
fail() { printf 'qbackup: error: %s\n' "$*" >&2; exit 1; }
hint() { printf 'qbackup: hint: %s\n' "$*" >&2; }
warn() { printf 'qbackup: warning: %s\n' "$*" >&2; }

# An absolute path that means the same in a Makefile, a shell, sshd_config and an AppArmor profile.
plain() {
	case $1 in
	*[!A-Za-z0-9._+@/-]* | */../* | */.. | */./* | */. | *//*) return 1 ;;
	/*) return 0 ;;
	*) return 1 ;;
	esac
}
# A directory that others need, or that holds everybody's: no account's own.
shared() {
	case $1 in
	/ | /home | /media | /mnt | /opt | /run | /run/media | /srv | /tmp | /var | /var/lib | /var/tmp) return 0 ;;
	/bin | /boot | /dev | /etc | /lib | /lib32 | /lib64 | /proc | /root | /sbin | /sys | /usr) return 0 ;;
	/bin/* | /boot/* | /dev/* | /etc/* | /lib/* | /lib32/* | /lib64/* | /proc/* | /root/* | /sbin/* | /sys/* | /usr/*) return 0 ;;
	*) return 1 ;;
	esac
}

# prefix: PREFIX alone; words: what the server's targets take.
prefix() {
	plain "$PREFIX" || fail 'PREFIX must be an absolute path of plain characters'
}
words() {
	prefix
	case $user in
	'' | [!a-z_]* | *[!a-z0-9_-]* | ?????????????????????????????????*) fail 'say which account: user=NAME' ;;
	root) fail 'user=root: what sshd lets the account do is limited to backups, so it must be one of its own' ;;
	esac
	plain "$sshd_config" || fail 'sshd_config must be an absolute path of plain characters'
	case $quota in
	'') ;;
	[!1-9]* | *[!0-9KMGT]* | *[KMGT]?* | ????????????????*) fail 'quota=SIZE: a number, with K, M, G or T for powers of 1024' ;;
	esac
	further_options || fail "options='WORDS': --allow VERB,VERB..., --floor SIZE, --allow-unsigned; or none"
	case $signer in
	'') ;;
	*[!A-Za-z0-9_-]* | ????????????????????????????????????????????*) fail "signer=KEY: the public key that \"qbackup key show\" prints in dom0" ;;
	???????????????????????????????????????????) ;;
	*) fail "signer=KEY: the public key that \"qbackup key show\" prints in dom0" ;;
	esac
	[ -z "$key" ] || public_key || fail "key='LINE': one line of an id_ed25519.pub, without options"
	[ -n "$store" ] || return 0
	plain "$store" || fail 'store must be an absolute path of plain characters, without ..'
	! shared "${store%/}" && ! shared "$store" || fail "store=$store: that directory is not for backups alone"
}
# What is left of qbackup-shell's options: the others have variables of their own.
further_options() {
	[ "$(printf '%s' "$options" | wc -l)" = 0 ] || return 1
	set -f
	# shellcheck disable=SC2086 # They are words.
	set -- $options
	set +f
	[ "$*" = "$options" ] || return 1
	while [ $# -gt 0 ]; do
		case $1 in
		none) [ "$options" = none ] || return 1 ;;
		--allow-unsigned) ;;
		--allow | --floor)
			case ${2-} in '' | -* | *[!A-Za-z0-9,]*) return 1 ;; esac
			shift
			;;
		*) return 1 ;;
		esac
		shift
	done
}
# One key and a comment; anything else would be options, or another line of authorized_keys.
public_key() {
	[ "$(printf '%s' "$key" | wc -l)" = 0 ] &&
		printf '%s\n' "$key" | grep -Eq '^(ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp(256|384|521)|sk-[a-z0-9-]+@openssh\.com) AAAA[A-Za-z0-9+/]+=*( [ -~]*)?$'
}
# A list of stores for the profile, * for a part of a path.
stores() {
	case $1 in
	*[!A-Za-z0-9._+@/*\ -]*) fail 'store must be absolute paths of plain characters, with * for a part of one' ;;
	esac
	for each in $1; do
		plain "$(printf %s "$each" | tr '*' x)" || fail 'store must be absolute paths of plain characters, without ..'
		case $each in
		/ | /\** | /*\*\**) fail "store=$each: too much of the file system for backups alone" ;;
		/home/\* | /srv/\* | /mnt/\* | /media/\* | /opt/\*) ;;
		*) ! shared "${each%/}" || fail "store=$each: that directory is not for backups alone" ;;
		esac
	done
}
# Whether a list of stores has this one; a * is no / there.
has() {
	for each in $1; do
		# shellcheck disable=SC2254 # It is a pattern.
		case $2 in
		$each) [ "$(printf %s "$each" | tr -cd /)" != "$(printf %s "$2" | tr -cd /)" ] || return 0 ;;
		esac
	done
	return 1
}
# The store of each account that was set up.
set_up() {
	for file in "$DESTDIR${sshd_config%/*}"/sshd_config.d/*qbackup-*.conf; do
		[ ! -f "$file" ] || sed -n 's/^[[:space:]]*ForceCommand .* --root \([^ ]*\).*/\1/p' "$file" | head -n 1
	done
}
# The profile covers what is given, or else what it covered before, or else all homes; and in any case the stores
# that were set up: an account whose store was forgotten here could store nothing any more.
profile() {
	prefix
	plain "$sshd_config" || fail 'sshd_config must be an absolute path of plain characters'
	file=$DESTDIR/etc/apparmor.d/qbackup-shell
	roots=$(set_up | tr '\n' ' ')
	set -f
	stores "$store"
	if [ -z "$store" ] && [ -f "$file" ]; then
		store=$(sed -n 's/^@{QBACKUP_STORES} *= *//p' "$file" | head -n 1)
		if ! (stores "$store") 2>/dev/null; then
			printf 'qbackup: error: %s covers %s, of which not all can be kept\n' "$file" "$store" >&2
			hint "say what it is to cover: make server-aa store='DIR...'; the stores of all accounts are added"
			exit 1
		fi
	fi
	store=${store:-/home/*}
	stores "$roots"
	for root in $roots; do
		has "$store" "$root" || store="$store $root"
	done
	[ -d "${file%/*}" ] || install -d -m 755 "${file%/*}"
	sed -e "s|@PREFIX@|$PREFIX|g" -e "s|@STORES@|$store|g" "${0%/*}/../apparmor/qbackup-shell" >"$file"
	chmod 644 "$file"
	say "The profile covers: $store"
}

field() { getent passwd "$user" | cut -d: -f"$1"; }

paths() {
	here=${0%/*}
	bin=$PREFIX/bin
	shell=$bin/qbackup-shell
	folder=${sshd_config%/*}/sshd_config.d
	dropin=$folder/00-qbackup-$user.conf
	# As it was called before its name made it the first.
	former=$folder/qbackup-$user.conf
	store=${store%/}
	# What the drop-in that is there says stays, unless another value is given: a store that is moved by
	# forgetting a word, or a quota that is lost by it, would be noticed late.
	before=
	for file in "$former" "$dropin"; do
		[ ! -f "$DESTDIR$file" ] || before=$DESTDIR$file
	done
	if [ -n "$before" ]; then
		forced=$(sed -n 's/^[[:space:]]*ForceCommand[[:space:]]*//p' "$before" | head -n 1)
		[ -n "$store" ] || store=$(printf '%s\n' "$forced" | sed -n 's/.* --root \([^ ]*\).*/\1/p')
		[ -n "$quota" ] || quota=$(printf '%s\n' "$forced" | sed -n 's/.* --quota \([^ ]*\).*/\1/p')
		[ -n "$options" ] || options=$(printf '%s\n' "$forced" | sed 's/^[^ ]* *//; s/ *--no-init//; s/ *--root [^ ]*//; s/ *--quota [^ ]*//; s/^ *//')
	fi
	[ "$options" != none ] || options=
	# The account's home where it exists, else where useradd will put it.
	home=$(field 6)
	home=${home:-/home/$user}
	root=${store:-$home}
	# What a link leads to counts, where there is one.
	real=$(readlink -f "$root") || real=$root
	plain "$root" && ! shared "$root" && ! shared "$real" || fail "the home of $user, $root, is not for backups alone: store=DIR"
}

write_dropin() {
	[ -d "$DESTDIR$folder" ] || install -d -m 755 "$DESTDIR$folder"
	sed -e "s|@PREFIX@|$PREFIX|g" -e "s|@USER@|$user|g" -e "s|@STORE@|$root|g" \
		-e "s|@OPTIONS@|${quota:+ --quota $quota}${options:+ $options}|g" "$here/sshd.conf" >"$DESTDIR$dropin.new"
	chmod 644 "$DESTDIR$dropin.new"
	mv -f "$DESTDIR$dropin.new" "$DESTDIR$dropin"
}

# The files that sshd reads, each with what it includes behind it. Relative names are below /etc/ssh.
config_files() (
	say "$1"
	[ "$2" -lt 8 ] || return 0
	cd /etc/ssh 2>/dev/null || :
	sed -n 's/^[[:space:]]*[Ii][Nn][Cc][Ll][Uu][Dd][Ee][[:space:]=]\{1,\}//p' "$1" | tr -d '"' |
		while read -r patterns; do
			for file in $patterns; do
				case $file in /*) ;; *) file=/etc/ssh/$file ;; esac
				[ ! -f "$file" ] || config_files "$file" $(($2 + 1))
			done
		done
)

# The connections to ask sshd about: from anywhere to anywhere, and one for each Match that looks at
# where a client comes from or arrives, since such a block may hold for a part of them only.
connections() {
	# shellcheck disable=SC2046 # names with blanks are not looked for
	awk -v user="$user" '
		function one(pattern) {
			sub(/^!/, "", pattern); sub(/\/[0-9]+$/, "", pattern); gsub(/[*?]/, "1", pattern)
			return pattern
		}
		function spec() {
			print "user=" user ",host=" host ",addr=" address ",laddr=" place ",lport=" port ",rdomain=none"
		}
		function usual() { host = "client.invalid"; address = "192.0.2.1"; place = "192.0.2.2"; port = 22 }
		BEGIN {
			host = "other.example"; address = "2001:db8::1"; place = "2001:db8::2"; port = 2222; spec()
			host = "198.51.100.1"; address = "198.51.100.1"; place = "198.51.100.2"; port = 443; spec()
			usual(); spec()
		}
		tolower($1) == "match" {
			gsub(/[="]/, " ")
			usual()
			for (i = 2; i < NF; i += 2) {
				n = split($(i + 1), items, ",")
				for (k = 1; k <= n; k++) {
					what = tolower($i)
					if (items[k] == "*") continue
					else if (what == "address") address = one(items[k])
					else if (what == "host") host = one(items[k])
					else if (what == "localaddress") place = one(items[k])
					else if (what == "localport") port = one(items[k]) + 0
					else continue
					spec()
				}
			}
		}' $(config_files "$sshd_config" 0) | sort -u | head -n 200
}

# What sshd would do to such a connection, against all that the drop-in says: a line for each keyword
# that differs, KEYWORD and what sshd has in its place.
differences() {
	asked=$1
	sshd -T -f "$sshd_config" -C "$asked" >"$work/effective" 2>"$work/said" ||
		{ cat "$work/said" >&2; fail "sshd does not accept its configuration"; }
	awk '
		function value(line) { sub(/^[^ \t]+[ \t]+/, "", line); sub(/[ \t]+$/, "", line); return line }
		FILENAME != dropin {
			key = tolower($1)
			if (key == "setenv") { set[value($0)] = 1; sets = sets " " value($0) }
			else have[key] = value($0)
			next
		}
		/^[ \t]*(#|$)/ || tolower($1) == "match" { next }
		{ sub(/^[ \t]+/, "") }
		tolower($1) == "setenv" {
			for (i = 2; i <= NF; i++) if (!($i in set)) { print $1, "it has" (sets == "" ? " none" : sets); next }
			next
		}
		have[tolower($1)] != value($0) { print $1, "it has " (tolower($1) in have ? have[tolower($1)] : "none") ", not " value($0) }
		END {
			if (have["permituserenvironment"] != "no")
				print "PermitUserEnvironment", "it has " have["permituserenvironment"] ", not no"
			if (have["chrootdirectory"] != "none")
				print "ChrootDirectory", "it has " have["chrootdirectory"] ", where there is no qbackup-shell"
			if (have["pubkeyauthentication"] != "yes")
				print "PubkeyAuthentication", "it has " have["pubkeyauthentication"] ", so no key can log in"
		}
	' dropin="$dropin" "$work/effective" "$dropin"
}

# Where a keyword stands besides the drop-in.
rivals() {
	config_files "$sshd_config" 0 | sort -u | while read -r file; do
		[ "$file" = "$dropin" ] || grep -niE "^[[:space:]]*$1([[:space:]=]|\$)" "$file" /dev/null | sed 's/^/    /'
	done
}

# Why the drop-in as a whole may not be in force.
unread() {
	if ! config_files "$sshd_config" 0 | grep -Fqx "$dropin"; then
		hint "$sshd_config does not include $dropin; add this as its first line: Include $folder/*.conf"
		return
	fi
	config_files "$sshd_config" 0 | sort -u | while read -r file; do
		awk -v file="$file" '
			tolower($1) == "match" { inside = tolower($2) == "all" ? "" : FNR ": " $0 }
			tolower($1) == "include" && inside != "" {
				print "qbackup: hint: the Include in line " FNR " of " file " holds only inside of the block that begins in line " inside }
		' "$file" >&2
	done
}

# Fails, and says why, unless all of the drop-in is in force for every connection.
in_force() {
	connections >"$work/connections"
	while read -r each; do
		differences "$each" >"$work/differences"
		[ -s "$work/differences" ] || continue
		printf 'qbackup: error: sshd would not do what %s says, for a connection with %s:\n' "$dropin" "$each" >&2
		while read -r keyword rest; do
			printf '  %s: %s\n' "$keyword" "$rest" >&2
			rivals "$keyword" >&2
		done <"$work/differences"
		unread
		return 1
	done <"$work/connections"
}

# Names of variables that the drop-in does not know may still be dangerous to a later node.
wide_acceptenv() {
	patterns=$(awk 'tolower($1) == "acceptenv" { for (i = 2; i <= NF; i++) {
		pattern = $i; gsub(/[.+^$(){}|]/, "\\\\&", pattern); gsub(/\*/, ".*", pattern); gsub(/\?/, ".", pattern)
		if ("NODE_X" ~ "^" pattern "$" || "LD_X" ~ "^" pattern "$" || "SSH_ORIGINAL_COMMAND" ~ "^" pattern "$") print $i } }' "$work/effective")
	[ -z "$patterns" ] || {
		warn "sshd takes variables of any name from its clients (AcceptEnv $patterns). The drop-in clears those that are known to be dangerous; better narrow it:"
		rivals AcceptEnv >&2
	}
}

# An sshd that lets only some accounts in has to know this one.
named_accounts() {
	awk -v user="$user" '
		function like(pattern) {
			sub(/@.*/, "", pattern); gsub(/[.+]/, "\\\\&", pattern); gsub(/\*/, ".*", pattern); gsub(/\?/, ".", pattern)
			return user ~ "^" pattern "$"
		}
		$1 == "allowusers" { some = 1; for (i = 2; i <= NF; i++) if (like($i)) found = 1 }
		$1 == "denyusers" { for (i = 2; i <= NF; i++) if (like($i)) print "DenyUsers" }
		$1 == "allowgroups" { print "AllowGroups" }
		END { if (some && !found) print "AllowUsers" }' "$work/effective" | sort -u | while read -r keyword; do
		warn "look whether $keyword lets $user in:"
		rivals "$keyword" >&2
	done
}

# Writes the drop-in, and puts back what was there if sshd does not do what it says.
sshd_part() {
	[ ! -f "$dropin" ] || cp -p "$dropin" "$work/before"
	write_dropin
	# Where an sshd of root confines what it does before a login; at boot systemd makes it.
	[ -d /run/sshd ] || install -d -m 755 /run/sshd 2>/dev/null || :
	if ! sshd -t -f "$sshd_config" || ! in_force; then
		if [ -f "$work/before" ]; then
			mv -f "$work/before" "$dropin"
			fail "$dropin was put back as it was, and nothing else was changed"
		fi
		rm -f "$dropin"
		fail "$dropin was removed again, and nothing else was changed"
	fi
	wide_acceptenv
	named_accounts
	rm -f "$former"
	say "sshd accepts $dropin, and all of it is in force"
}

# Makes a running sshd read its configuration, which was tried before. Which of those that are running
# it is may be impossible to tell: then no key is let in until somebody says so.
reload() {
	untold=
	if [ "$sshd_config" = /etc/ssh/sshd_config ]; then
		for unit in ssh sshd; do
			if systemctl is-active --quiet "$unit.service" 2>/dev/null; then
				systemctl reload "$unit.service" || fail "systemctl reload $unit failed: the drop-in is not in force yet"
				say "sshd has read it (systemctl reload $unit)"
				return
			fi
		done
	fi
	pidfile=$(sshd -T -f "$sshd_config" -C "user=$user,host=h,addr=192.0.2.1,laddr=192.0.2.2,lport=22,rdomain=none" 2>/dev/null | sed -n 's/^pidfile //p')
	pid=$(cat "$pidfile" 2>/dev/null) || pid=
	case $pid in
	'' | *[!0-9]*) ;;
	*) case $(cat "/proc/$pid/comm" 2>/dev/null) in
		sshd*)
			kill -HUP "$pid"
			say "sshd has been told to read it (kill -HUP $pid)"
			return
			;;
		esac ;;
	esac
	for process in /proc/[0-9]*; do
		case $(tr '\0' ' ' 2>/dev/null <"$process/cmdline") in
		/*/sshd\ * | sshd:*\[listener\]*) [ ! "$process/root" -ef / ] || untold="$untold ${process#/proc/}" ;;
		esac
	done
	say 'If an sshd is running, make it read its configuration now: systemctl reload ssh || systemctl reload sshd'
}

# An account that there is, is never changed; one that is not for backups is not limited to them either.
usable_account() {
	getent passwd "$user" >/dev/null || return 0
	[ "$(field 3)" != 0 ] || fail "the account $user is root by another name"
	[ "$(field 7)" != "$shell" ] || return 0
	hint "if ssh is to let it do nothing but backups from now on: usermod --shell $shell $user"
	fail "there is an account $user already, with the shell $(field 7): it was left as it is"
}

account() {
	made=
	if ! getent passwd "$user" >/dev/null; then
		# '*' allows keys and no password; useradd's own '!' would make an sshd without PAM refuse both.
		useradd --create-home --user-group --shell "$shell" --password '*' "$user"
		chmod 700 "$(field 6)"
		made=1
		say "made the account $user"
		# A Match for a group says something of an account only once it is there.
		in_force || fail "the account $user was made; give it no key before that is mended: then make server again"
	fi
	if [ ! -e "$root" ]; then
		install -d -m 700 -o "$user" -g "$(id -gn "$user")" "$root"
		say "made the store $root"
	fi
}

# A store that was set up before has an identity. Where it is not there, its disk may not be either.
identity() {
	cd /
	command="runuser -u $user -- $shell"
	if shown=$($command identity --root "$root" 2>/dev/null); then
		say "The server's identity, to compare with what qbackup shows in dom0:"
	elif [ -n "$before" ] && [ -z "$made" ]; then
		hint "is its disk mounted? If this is a new store: $command init --root $root"
		fail "the store $root has no identity, though it was set up before"
	else
		shown=$($command init --root "$root")
		say "Made the server's identity, to compare with what qbackup shows in dom0:"
	fi
	say "$shown"
	say "To see it again, as root: $command identity --root $root"
}

# Whose uploads the store takes. Where it is not said, the first dom0 that comes reserves the store.
admit() {
	if [ -n "$signer" ]; then
		say "The store takes uploads that these keys sign (fingerprint, key):"
		$command signers add "$signer" --root "$root"
	fi
}

# Lets the carrier in, as the account, whose home it is.
let_in() {
	file=$home/.ssh/authorized_keys
	if [ -z "$key" ]; then
		[ -s "$file" ] || say "Next: the carrier's public key, one line: make server user=$user key='ssh-ed25519 ...'"
		return
	fi
	if [ -n "$untold" ] && [ "$reloaded" != yes ] && ! grep -Fqsx -e "$key" "$file"; then
		hint "kill -HUP the one of these that it is:$untold; then the same command with reloaded=yes"
		fail "the key was not let in: an sshd is running, and whether it has read $dropin cannot be told"
	fi
	# shellcheck disable=SC2016 # It is the inner shell that expands.
	runuser -u "$user" -- sh -c 'umask 077; mkdir -p "${1%/*}"; touch "$1"
		grep -Fqx -e "$2" "$1" || printf "%s\n" "$2" >>"$1"' - "$file" "$key"
	say "$file lets the key in"
}

# What the carrier's ssh asks about at its first contact.
host_keys() {
	say "This server's ssh host keys; paste the one of the kind that ssh asks about as the answer:"
	sshd -T -f "$sshd_config" -C "user=$user,host=h,addr=192.0.2.1,laddr=192.0.2.2,lport=22,rdomain=none" |
		sed -n 's/^hostkey //p' | while read -r file; do
		shown=$(ssh-keygen -lf "$file.pub" 2>/dev/null) || continue
		say "$shown" | sed 's/^[0-9]* \([^ ]*\) .*(\([^ ]*\))$/  \2  \1/'
	done
}

server() {
	paths
	[ -n "$DESTDIR" ] || usable_account
	if [ -n "$DESTDIR" ]; then
		programs
		write_dropin
		return
	fi
	sshd_part
	programs
	reload
	account
	identity
	admit
	let_in
	host_keys
}
programs() {
	install -D -m 755 "$here/../dist/qbackup-shell" "$DESTDIR$shell"
	install -D -m 755 "$here/qbackup-recover" "$DESTDIR$bin/qbackup-recover"
}

sshd_only() {
	paths
	if [ -n "$DESTDIR" ]; then
		write_dropin
		return
	fi
	[ "$(field 3)" != 0 ] || fail "the account $user is root by another name"
	sshd_part
	reload
}

uninstall_sshd() {
	paths
	rm -f "$DESTDIR$dropin" "$DESTDIR$former"
	[ -z "$DESTDIR" ] || return 0
	say "Removed $dropin. To bring that into force: systemctl reload ssh || systemctl reload sshd"
	getent passwd "$user" >/dev/null || return 0
	warn "the account $user can still log in with its keys, and sftp is open to it then"
	hint "remove $home/.ssh/authorized_keys, or the account: userdel $user"
}

uninstall() {
	bin=$PREFIX/bin
	rm -f "$DESTDIR$bin/qbackup-shell" "$DESTDIR$bin/qbackup-recover"
	[ -z "$DESTDIR" ] || return 0
	say 'Left as they are:'
	for file in "${sshd_config%/*}"/sshd_config.d/*qbackup-*.conf; do
		[ ! -f "$file" ] || say "  $file (make uninstall-server-sshd user=NAME)"
	done
	getent passwd | awk -F: -v shell="$bin/qbackup-shell" '$7 == shell {
		print "  the account " $1 ", its keys in " $6 "/.ssh, and its store (userdel " $1 " leaves the files)" }'
	say '  the archives, and the identity that signed their receipts, in .qbackup of each store'
	[ ! -e /etc/apparmor.d/qbackup-shell ] || say '  /etc/apparmor.d/qbackup-shell (make uninstall-server-aa)'
}

case $1 in
server | sshd_only)
	words
	work=$(mktemp -d)
	trap 'rm -rf "$work"' EXIT
	"$1"
	;;
uninstall_sshd) words && uninstall_sshd ;;
uninstall) prefix && uninstall ;;
*) "$1" ;;
esac

# qbackup: three programs for three machines. "make" alone says what there is.
#
# DESTDIR stages: files are put below it, and nothing else is done. PREFIX is /usr, because that is
# where cron of dom0 looks for programs, and /usr/local of a TemplateVM does not reach its AppVMs.

DESTDIR =
PREFIX = /usr
user =
store =
quota =
options =
key =
signer =
to =
reloaded =
sshd_config = /etc/ssh/sshd_config
# Recipes take them from the environment, where a blank, a quote or a newline in them does no harm.
export DESTDIR PREFIX user store quota options key signer to reloaded sshd_config

bindir = "$$DESTDIR$$PREFIX/bin"
unitdir = "$$DESTDIR$$PREFIX/lib/systemd/system"
policy = "$$DESTDIR"/etc/qubes/policy.d/30-qbackup.policy
template_rpc = "$$DESTDIR"/etc/qubes-rpc
appvm_rpc = "$$DESTDIR"/usr/local/etc/qubes-rpc
mandir = "$$DESTDIR$$PREFIX/share/man/man1"
completions = "$$DESTDIR$$PREFIX/share/bash-completion/completions"
profile = "$$DESTDIR"/etc/apparmor.d/qbackup-shell
server = @sh install/server.sh
client = @[ -z "$$to" ] || sh install/client.sh

programs = dist/qbackup dist/qubes.BackupCarrier dist/qbackup-shell
# None where only dist/ was copied to: then there is nothing to build, and no npm is asked for.
sources = $(wildcard package.json rolldown.config.mjs) \
	$(shell find src services layers test/standin -name '*.ts' 2>/dev/null)
tools = node_modules/.bin/rolldown

# What is filled in has been looked at by then (prefix).
fill = sed -e "s|@PREFIX@|$$PREFIX|g"

.PHONY: help install build bundle check test test-apparmor test-newcomer bench demo clean dom0 templatevm appvm server server-aa server-sshd \
	uninstall-dom0 uninstall-templatevm uninstall-appvm uninstall-server uninstall-server-aa \
	uninstall-server-sshd node prefix
.NOTPARALLEL:

help:
	@echo 'On the machine that you build on:'
	@echo '  make build                     the three programs, in dist/'
	@echo '  make bundle                    dist/qbackup.tar: what the three machines need; its checksum'
	@echo '  make test | check | demo       the tests | all checks | a backup from end to end, here'
	@echo '  make test-apparmor | bench     the profile in a virtual machine | measurements'
	@echo 'As root, on the machine that it is for (see README.md):'
	@echo '  make server user=NAME          what sshd lets the account do, its shell, the account, its'
	@echo '                                 identity; store=DIR if not its home, quota=SIZE for a limit,'
	@echo "                                 key='LINE' for the carrier's public key, signer=KEY for dom0's,"
	@echo "                                 options='WORDS' for more of qbackup-shell's"
	@echo '  make server-sshd user=NAME     the part of it that is for sshd, alone'
	@echo '  make server-aa                 the AppArmor profile of the shell, for the stores of all accounts;'
	@echo '                                 store="DIR..." instead of /home/* besides'
	@echo '  make templatevm                the carrier, for all AppVMs of this TemplateVM'
	@echo '  make appvm                     the carrier, in this AppVM alone; to=ACCOUNT@HOST for its'
	@echo '                                 ssh key and its setting'
	@echo '  make dom0                      qbackup itself; to=QUBE for its settings'
	@echo 'Each of them has an uninstall-... of the same name. DESTDIR and PREFIX are honoured.'

# Which part is for this machine only its owner can say.
install: help

build: $(programs)

$(programs): $(sources)
	@[ -x $(tools) ] || $(MAKE) --no-print-directory $(tools)
	npm run build
	@touch $(programs)

# One file for the three machines, the same bytes wherever it is made from the same sources.
bundle: dist/qbackup.tar
	@sha256sum dist/qbackup.tar

carried = $(sort Makefile $(wildcard install/* apparmor/*) $(programs))
dist/qbackup.tar: $(programs) $(carried) bundle.mjs
	/usr/bin/node bundle.mjs $@ $(carried)

# Not "npm ci": npm 11 refuses a lock file that lacks the packages of other platforms. Its warnings are
# of the node that npm itself runs on; the tools bring one of their own.
$(tools):
	@command -v npm >/dev/null || { echo 'qbackup: error: npm is needed to build dist/' >&2; \
	  echo 'qbackup: hint: run "make build" elsewhere, and copy dist/ here' >&2; exit 1; }
	npm install --no-save --no-audit --no-fund --loglevel=error

# What is missing is named, and installed after a yes: on the terminal, or YES=1.
needs-%:
	@sh test/need.sh $*

# npm test builds first.
test: needs-test | $(tools)
	npm test

# "make test" and "make demo" in fresh Debian roots; exit 77 where that cannot be tried.
test-newcomer:
	@sh test/newcomer/run.sh

# The profile in force, and nights of a thin volume, in a virtual machine; exit 77 where that cannot be tried.
test-apparmor: dist/qbackup-shell | $(tools)
	@sh test/apparmor/run.sh

check: | $(tools)
	npm run check

demo: needs-demo build
	@npm run --silent demo

# As root, for accounts and a shaped link. BENCH=--quick only shows that it runs; BENCH=FILE keeps the table.
bench: needs-bench build
	@npm run --silent bench -- $(BENCH)

clean:
	rm -rf dist

# The programs start with #!/usr/bin/node, so another node, wherever it lies, does not help.
node:
	@[ -n "$$DESTDIR" ] || /usr/bin/node -e 'process.exit(parseInt(process.versions.node) < 20 ? 1 : 0)' 2>/dev/null || { \
	  echo 'qbackup: error: there is no node of version 20 or later at /usr/bin/node' >&2; \
	  echo 'qbackup: hint: dom0: qubes-dom0-update nodejs; Fedora: dnf install nodejs; Debian 13: apt install nodejs; Debian 12: see docs/installation.md' >&2; exit 1; }

# What is filled into configuration files must mean there what it says.
prefix:
	$(server) prefix

dom0: prefix node dist/qbackup
	$(client) check_dom0
	install -D -m 755 dist/qbackup $(bindir)/qbackup
	install -D -m 755 install/qbackup-recover $(bindir)/qbackup-recover
	install -D -m 644 install/30-qbackup.policy $(policy)
	install -D -m 644 install/qbackup.1 $(mandir)/qbackup.1
	install -D -m 644 install/qbackup.bash $(completions)/qbackup
	[ -d $(unitdir) ] || install -d -m 755 $(unitdir)
	for unit in qbackup qbackup-audit qbackup-verify; do \
	  $(fill) "install/$$unit@.service" > $(unitdir)/"$$unit@.service" && \
	  install -m 644 "install/$$unit@.timer" $(unitdir)/"$$unit@.timer" && \
	  chmod 644 $(unitdir)/"$$unit@.service" || exit; \
	done
	$(client) dom0

uninstall-dom0: prefix
	@[ -n "$$DESTDIR" ] || systemctl list-unit-files --no-legend --state=enabled 'qbackup@*.timer' 'qbackup-*@*.timer' 2>/dev/null | \
	  sed 's/^\([^ ]*\).*/first: systemctl disable --now \1/'
	rm -f $(bindir)/qbackup $(bindir)/qbackup-recover $(policy) $(mandir)/qbackup.1 $(completions)/qbackup \
	  $(unitdir)/'qbackup@.service' $(unitdir)/'qbackup@.timer' \
	  $(unitdir)/'qbackup-audit@.service' $(unitdir)/'qbackup-audit@.timer' \
	  $(unitdir)/'qbackup-verify@.service' $(unitdir)/'qbackup-verify@.timer'
	@[ -n "$$DESTDIR" ] || { \
	  echo 'To bring that into force: systemctl daemon-reload'; \
	  echo 'Left as they are: timers that were enabled (/etc/systemd/system/timers.target.wants/qbackup*),'; \
	  echo '  lines in crontab -e and /etc/cron.d, the ledger and the keys in ~/.local/state/qbackup,'; \
	  echo '  ~/.qbackup-passphrase, and the settings in ~/.bashrc'; }

templatevm: node dist/qubes.BackupCarrier
	install -D -m 755 dist/qubes.BackupCarrier $(template_rpc)/qubes.BackupCarrier

uninstall-templatevm:
	rm -f $(template_rpc)/qubes.BackupCarrier
	@[ -n "$$DESTDIR" ] || echo 'Gone from its AppVMs once this TemplateVM is shut down and they start again; SSH_CONN and the ssh key are left there.'

appvm: node dist/qubes.BackupCarrier
	$(client) check_appvm
	install -D -m 755 dist/qubes.BackupCarrier $(appvm_rpc)/qubes.BackupCarrier
	$(client) appvm

uninstall-appvm:
	rm -f $(appvm_rpc)/qubes.BackupCarrier
	@[ -n "$$DESTDIR" ] || echo 'Left as they are: SSH_CONN in ~/.bashrc, and the ssh key.'

server: node dist/qbackup-shell
	$(server) server

uninstall-server:
	$(server) uninstall

server-sshd:
	$(server) sshd_only

uninstall-server-sshd:
	$(server) uninstall_sshd

server-aa:
	$(server) profile
	@[ -n "$$DESTDIR" ] || if [ -d /sys/kernel/security/apparmor ]; then apparmor_parser -r $(profile); \
	  else echo 'warning: this kernel runs without AppArmor; the profile is not in force' >&2; fi

uninstall-server-aa:
	@[ -n "$$DESTDIR" ] || [ ! -d /sys/kernel/security/apparmor ] || [ ! -e $(profile) ] || apparmor_parser -R $(profile)
	rm -f $(profile)

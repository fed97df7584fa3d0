# bash completion of qbackup; made from its commands by "npm run docs".
_qbackup_nothing() { COMPREPLY=(); }
_qbackup_words() { local list=$*; mapfile -t COMPREPLY < <(compgen -W '$list' -- "$word"); }
_qbackup_qubes() { _qbackup_words "$@" "$(qvm-ls --raw-list 2>/dev/null)"; }
_qbackup_files() { compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$word"); }
_qbackup() {
  local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} command=" "
  [ "$COMP_CWORD" -eq 1 ] || command=${COMP_WORDS[1]}
  [ "$word" != = ] || word=
  [ "$before" != = ] || before=${COMP_WORDS[COMP_CWORD - 2]}
  case "$before" in
    -f|--prefix|--window|--start-timeout|--link-timeout|--floor|--expect-server|--expect-every|--qubes-timeout|--compress-filter|--format|--no-compress|--alarm-after|--wait-for|-Z|--compression-filter|--budget|--blocks) _qbackup_nothing; return ;;
    -t|--to|--exclude) _qbackup_qubes; return ;;
    -p|--passphrase-file) _qbackup_files; return ;;
  esac
  case "$command:$word" in
    list:-*) _qbackup_words -t --to -x --keep-running --json --alarm-after --receipts -h --help --version ;;
    verify:-*) _qbackup_words -t --to -p --passphrase-file -x --keep-running --json --on-server --decrypt -Z --compression-filter --newest --force --qubes-timeout --wait-for -h --help --version ;;
    audit:-*) _qbackup_words -t --to -x --keep-running --json --alarm-after --budget --blocks -h --help --version ;;
    restore:-*) _qbackup_words -t --to -p --passphrase-file -x --keep-running --verify-only --exclude --skip-dom0-home --rename-conflicting --skip-conflicting --ignore-missing --skip-broken --ignore-username-mismatch --ignore-size-limit -Z --compression-filter --force --paranoid --qubes-timeout -h --help --version ;;
    ledger:-*) _qbackup_words -t --to -x --keep-running --expect-server -h --help --version ;;
    key:-*) _qbackup_words -h --help --version ;;
    passphrase:-*) _qbackup_words -h --help --version ;;
    recovery-sheet:-*) _qbackup_words -t --to -h --help --version ;;
    selftest:-*) _qbackup_words -t --to -p --passphrase-file --yes -h --help --version ;;
    *:-*) _qbackup_words -f --prefix -t --to -p --passphrase-file -x --keep-running -o --terminal --include-dom0 --window --start-timeout --link-timeout --floor --expect-server --expect-every --qubes-timeout --compress-filter --format --new-chain --no-compress --alarm-after --wait-for -h --help --version ;;
    " :"*) _qbackup_qubes run list verify audit restore ledger key passphrase recovery-sheet selftest help ;;
    help:*) _qbackup_words run list verify audit restore ledger key passphrase recovery-sheet selftest ;;
    list:*) _qbackup_nothing ;;
    verify:*) _qbackup_nothing ;;
    audit:*) _qbackup_nothing ;;
    restore:*) _qbackup_qubes ;;
    ledger:*) _qbackup_words head check rebuild forget ;;
    key:*) _qbackup_words show new export import rotate ;;
    passphrase:*) _qbackup_words new ;;
    recovery-sheet:*) _qbackup_nothing ;;
    selftest:*) _qbackup_nothing ;;
    *) _qbackup_qubes ;;
  esac
}
complete -F _qbackup qbackup

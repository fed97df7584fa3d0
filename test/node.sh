#!/bin/sh
# "sh test/node.sh FILE ARGUMENT...": node on a file that is TypeScript or loads some. The tools bring a
# node that reads it, as an optional package, since there is one for each kind of machine; and an optional
# package that it cannot get npm leaves out without a word.
set -eu
PATH=$(cd "$(dirname "$0")/.." && pwd)/node_modules/.bin:$PATH
node -e '
	const { arch, features, platform, version } = process;
	if (!features.typescript) {
		console.error(`qbackup: error: node ${version} reads no TypeScript, and npm left out the package node-${platform}-${arch}: run "npm install --no-save", or install node 22.18 or later`);
		process.exit(1);
	}'
exec node "$@"

// The three programs as single files that a person can read before trusting them: no minification
// beyond dropping what is never called, no code splitting, nothing that changes between two builds.
import { chmodSync, writeFileSync } from "node:fs";

/** Makes the files programs, also where a package.json above says that all is ESM. */
const executable = {
  name: "executable",
  writeBundle: ({ file }) => {
    chmodSync(file, 0o755);
    writeFileSync("dist/package.json", '{ "type": "commonjs" }\n');
  },
};

const program = (name, input, banner = "#!/usr/bin/node") => ({
  input,
  platform: "node",
  tsconfig: false,
  plugins: [executable],
  output: {
    file: `dist/${name}`,
    // CommonJS without a file name extension runs on every node from 20 on, whatever lies beside it.
    format: "cjs",
    minify: "dce-only",
    comments: { legal: false, annotation: false, jsdoc: false },
    codeSplitting: false,
    banner,
  },
});

export default [
  program("qbackup", "src/dom0.ts"),
  program("qubes.BackupCarrier", "src/carrier.ts"),
  program("qbackup-shell", "src/shell.ts"),
  // For tests and the demo; not installed.
  program("test/standin", "test/standin/main.ts", "#!/usr/bin/env node"),
];

// The three programs as single files that a person can read before trusting them: no minification
// beyond dropping what is never called, no code splitting, nothing that changes between two builds.
const program = (name, input) => ({
  input,
  platform: "node",
  tsconfig: false,
  output: {
    file: `dist/${name}`,
    // CommonJS without a file name extension runs on every node from 20 on, whatever lies beside it.
    format: "cjs",
    minify: "dce-only",
    comments: { legal: false, annotation: false, jsdoc: false },
    codeSplitting: false,
    banner: "#!/usr/bin/node",
  },
});

export default [
  program("qbackup", "src/dom0.ts"),
  program("qubes.BackupCarrier", "src/carrier.ts"),
  program("qbackup-shell", "src/shell.ts"),
];

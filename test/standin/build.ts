/** Bundles the stand-in for suites that do not want to depend on an earlier build. */
import { build } from "rolldown";

export const buildStandin = async (file: string): Promise<string> => {
  await build({
    input: "test/standin/main.ts",
    platform: "node",
    tsconfig: false,
    logLevel: "silent",
    output: { file, format: "cjs", codeSplitting: false, banner: "#!/usr/bin/env node" },
  });
  return file;
};

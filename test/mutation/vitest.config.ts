/** The suites with one module's text exchanged in memory: nothing is written, not even to a cache. */
import { defineConfig } from "vitest/config";

/** What the module `file` (an absolute path) has for a text now. */
export interface Planted {
  readonly file: string;
  readonly text: string;
}
/** The configuration is loaded as a module of its own: this is where both find it. */
export const place = Symbol.for("qbackup/test/mutation/planted");

export default defineConfig({
  plugins: [
    {
      name: "planted-fault",
      enforce: "pre",
      transform: (_, id) => {
        const planted = (globalThis as { [place]?: Planted })[place];
        return planted !== undefined && id.split("?")[0] === planted.file
          ? { code: planted.text, map: null }
          : undefined;
      },
    },
  ],
  test: {
    include: ["test/unit/**/*.test.ts"],
    // Libraries stay loaded from one run to the next; the project's own modules are loaded anew.
    pool: "threads",
    isolate: false,
    maxWorkers: 1,
    fsModuleCache: false,
    bail: 1,
    reporters: [{}],
    // Only for what waits for ever; what computes for ever is ended by the processor time it took.
    testTimeout: 60_000,
  },
});

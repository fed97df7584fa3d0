/** What lies on the server, held against dom0's own ledger. */
import { Effect } from "effect";
import { Invocation } from "#services/Invocation";
import { Ledger } from "#services/Ledger";
import { Locks } from "#services/Locks";
import { humanSize } from "#src/wire/format";
import { parseManifest } from "#src/wire/manifest";
import { isPrefix, printable, type Session } from "#src/wire/names";
import type { Reply } from "#src/wire/reply";
import { destinationFor, startDestination } from "./destination.ts";
import { failed } from "./failure.ts";
import { inLedger } from "./record.ts";
import { openCall, refusal, whyEnded } from "./upload.ts";

export interface ListOptions {
  readonly to: string | undefined;
  readonly keepRunning: boolean;
  readonly json: boolean;
  readonly prefix: string | undefined;
}

/**
 * proven: the ledger has the server's receipt for this content. unknown: the server calls it
 * verified, but this ledger has never heard of it. unverified: nobody vouches for it. changed: the
 * ledger has the name, with another content. missing: the ledger has it, the server does not.
 */
type Proof = "proven" | "unknown" | "unverified" | "changed" | "missing";

interface Row {
  readonly name: string;
  readonly stored: string;
  readonly size: number;
  readonly treehash: string | null;
  readonly proof: Proof;
  readonly qubes: ReadonlyArray<string>;
}

/** More lines than any store has; a server that says more is not believed. */
const archiveLimit = 1_000_000;

const ask = Effect.fnUntraced(function* (destination: string, prefix: string | undefined) {
  const { call, next } = yield* openCall(destination, {
    verb: "list",
    ...(prefix !== undefined && isPrefix(prefix) ? { prefix } : {}),
  });
  const archives: Array<Extract<Reply, { type: "archive" }>> = [];
  for (;;) {
    const reply = yield* next.pipe(
      Effect.timeoutOrElse({
        duration: "90 seconds",
        orElse: () => failed("link", "no answer from the server within 90 s"),
      }),
    );
    if (reply === undefined) {
      const { reason, hint } = yield* whyEnded(call, destination);
      return yield* failed("link", `the list broke off: ${reason}`, hint);
    }
    if (reply.type === "error") return yield* refusal(reply);
    if (reply.type === "end" && (reply.count ?? archives.length) === archives.length)
      return archives;
    if (reply.type === "archive" && archives.length < archiveLimit) archives.push(reply);
    else if (reply.type !== "alive") {
      return yield* failed("integrity", `the server said ${reply.type} where that has no place`);
    }
  }
}, Effect.scoped);

const table = (rows: ReadonlyArray<Row>): string => {
  const cells = [
    ["NAME", "STORED", "SIZE", "PROOF", "QUBES"],
    ...rows.map((row) => [
      row.name,
      row.stored.slice(0, 16).replace("T", " "),
      humanSize(row.size),
      row.proof,
      printable(row.qubes.join(" "), 60),
    ]),
  ];
  const widths = cells[0]!.map((_, i) => Math.max(...cells.map((line) => line[i]!.length)));
  return cells
    .map((line) =>
      line
        .map((cell, i) => cell.padEnd(widths[i]!))
        .join("  ")
        .trimEnd(),
    )
    .map((line) => `${line}\n`)
    .join("");
};

export const list = Effect.fnUntraced(function* (options: ListOptions) {
  const { prefix = "" } = options;
  if (prefix !== "" && !isPrefix(prefix)) {
    return yield* failed("usage", "that is not the beginning of a name");
  }
  const destination = yield* destinationFor(options.to);
  const ledger = yield* Ledger;
  const invocation = yield* Invocation;

  // While a run is under way the qube runs anyway, and stopping it is the run's business.
  const alone = yield* (yield* Locks).hold(`a run with the ledger in ${ledger.place}`).pipe(
    Effect.as(true),
    Effect.catch(() => Effect.succeed(false)),
  );
  if (alone) {
    const session = Buffer.from(invocation.entropy(16)).toString("hex") as Session;
    yield* startDestination({ destination, session, keepRunning: options.keepRunning });
  }
  const archives = yield* ask(destination, options.prefix).pipe(
    Effect.catchTag("BytesError", () => failed("link", "the link broke")),
    Effect.catchTag("WireError", (error) =>
      failed("integrity", `what came back is not of the wire: ${error.reason}`),
    ),
  );
  const { entries } = yield* inLedger(ledger.entries);
  const known = new Map(
    entries
      .filter((entry) => entry.destination === destination && entry.name.startsWith(prefix))
      .flatMap((entry) => {
        const manifest = parseManifest(entry.manifest);
        return manifest === undefined ? [] : [[entry.name as string, { entry, manifest }] as const];
      }),
  );
  const rows = archives.map((archive): Row => {
    const mine = known.get(archive.name);
    known.delete(archive.name);
    const same =
      mine?.manifest.treehash === archive.treehash && mine?.manifest.size === archive.size;
    return {
      name: archive.name,
      stored: archive.stored,
      size: archive.size,
      treehash: archive.treehash,
      proof:
        mine !== undefined
          ? same
            ? "proven"
            : "changed"
          : archive.verified
            ? "unknown"
            : "unverified",
      qubes: mine?.entry.qubes.map((qube) => qube.name) ?? [],
    };
  });
  const missing = [...known.values()].map(({ entry, manifest }): Row => ({
    name: entry.name,
    stored: entry.finished,
    size: manifest.size,
    treehash: manifest.treehash,
    proof: "missing",
    qubes: entry.qubes.map((qube) => qube.name),
  }));
  const all = [...rows, ...missing].sort((a, b) => (a.name < b.name ? -1 : 1));
  const text = options.json ? `${JSON.stringify(all, undefined, 2)}\n` : table(all);
  yield* Effect.ignore(invocation.stdout.write(new TextEncoder().encode(text)));
  if (all.some((row) => row.proof === "changed" || row.proof === "missing")) {
    return yield* failed("integrity", "the server does not hold all that the ledger says it does");
  }
}, Effect.scoped);

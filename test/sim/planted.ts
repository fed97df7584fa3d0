/**
 * Faults that somebody could make one day, planted to see that the simulation finds them. Each is a
 * change of the source text, made in a copy of it: the programs themselves have no hooks for tests.
 */
import { execFile } from "node:child_process";
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";

interface Change {
  readonly file: string;
  readonly from: string;
  readonly to: string;
}
export interface Planted {
  readonly name: string;
  readonly changes: ReadonlyArray<Change>;
  /** Stories within which it is found. */
  readonly within: number;
  /** Of these of one kind alone, because no others find it: about liars, or about nights in slots. */
  readonly of?: keyof typeof kinds;
}

/** The seeds of the stories of a kind. */
const kinds = { lies: { FROM: "11", EVERY: "12" }, slots: { FROM: "2", EVERY: "4" } } as const;

const one = (name: string, within: number, file: string, from: string, to = ""): Planted => ({
  name,
  within,
  changes: [{ file, from, to }],
});

const lied = (...of: Parameters<typeof one>): Planted => ({ ...one(...of), of: "lies" });
const tapped = (...of: Parameters<typeof one>): Planted => ({ ...one(...of), of: "slots" });

export const planted: ReadonlyArray<Planted> = [
  one(
    "acknowledged before the data is flushed",
    1200,
    "src/store/upload.ts",
    "yield* data.sync;\n        yield* digests.write",
    "yield* digests.write",
  ),
  one(
    "acknowledged before the digests are flushed",
    1200,
    "src/store/upload.ts",
    "yield* digests.sync;\n        yield* writeTable();",
    "yield* writeTable();",
  ),
  one(
    "acknowledged before the upload has a name on disk",
    400,
    "src/store/upload.ts",
    "for (const directory of [incoming, held, own, root]) yield* directory.sync;\n          rooted",
    "rooted",
  ),
  {
    name: "linked before the data is flushed",
    within: 100,
    changes: [
      {
        file: "src/store/upload.ts",
        from: "yield* flush;\n      yield* writeTable();\n      for (const file of [data, digests, table]) yield* file.syncAll;",
        to: "yield* writeTable();",
      },
    ],
  },
  one(
    "stored before the parts of the archive have names on disk",
    100,
    "src/store/commit.ts",
    "for (const directory of [incoming, packs, digests, tables, recipes, records]) {\n        yield* directory.sync;\n      }",
  ),
  {
    name: "stored before the archive's name is on disk",
    within: 100,
    changes: [
      {
        file: "src/store/commit.ts",
        from: "yield* place.directory.sync.pipe(\n        Effect.tapError(() => Effect.ignore(clear(place.directory, place.record))),\n      );",
        to: "",
      },
      { file: "src/store/settled.ts", from: "yield* settled.place.directory.sync;\n", to: "" },
    ],
  },
  one(
    "stored before the record is on disk",
    100,
    "src/store/commit.ts",
    "yield* file.protect(mode);\n      yield* file.syncAll;",
    "yield* file.protect(mode);",
  ),
  one(
    "the server believes manifest and recipe",
    200,
    "src/shell/verbs/put.ts",
    'if (differing !== undefined) {\n      return yield* refuse("digest-mismatch"',
    'if (differing === "size") {\n      return yield* refuse("digest-mismatch"',
  ),
  one(
    "the base is not held against what it has",
    400,
    "src/proof/recipe.ts",
    'if (first + count > (of === "new" ? members : baseMembers)) return undefined;',
    'if (of === "new" && first + count > members) return undefined;',
  ),
  one(
    "a member is counted twice",
    50,
    "src/store/upload.ts",
    "lines.push(lineOf({ ...begun(), digest }));",
    "lines.push(lineOf({ ...begun(), digest }), lineOf({ ...begun(), digest }));",
  ),
  one(
    "the ticket's signature is not checked",
    200,
    "src/store/tickets.ts",
    'if (!signatureHolds(ticket.signer, "ticket", text, signature)) {',
    "if (signature.length === 0) {",
  ),
  one(
    "a lower run is taken",
    100,
    "src/store/tickets.ts",
    "if (highest === undefined || highest.ticket.run < ticket.run || highest.text === text) return;",
    "if (highest === undefined || ticket.run >= 0) return;",
  ),
  one(
    "a ticket is good for any server",
    400,
    "src/proof/texts.ts",
    '["put", ...ticketWords(ticket), server].join(" ")',
    '["put", ...ticketWords(ticket), "A".repeat(43 - 0 * server.length)].join(" ")',
  ),
  one(
    "a ticket is good for any archive",
    800,
    "src/shell/verbs/put.ts",
    "(field) => manifest[field] !== ticket[field],",
    '(field) => field === "signer" && manifest[field] !== ticket[field],',
  ),
  one(
    "a signature is good for any text",
    200,
    "src/proof/keys.ts",
    "Buffer.from(`qbackup-${what}-1\\n${text}`)",
    "Buffer.from(`qbackup-${what.slice(9)}-1\\n${text}`)",
  ),
  one(
    "the signer is not looked at again at commit",
    1200,
    "src/store/tickets.ts",
    "  yield* known(store, admitted.ticket.signer);\n  yield* fresh(store, admitted);\n});",
    "  yield* fresh(store, admitted);\n});",
  ),
  one(
    "two writers for one session",
    400,
    "src/shell/verbs/put.ts",
    "const { asked } = yield* hold(store, `session:${session}`);",
    "const asked = Effect.never;",
  ),
  lied(
    "the receipt is not checked",
    150,
    "src/dom0/verbs/run.ts",
    "yield* checkReceipt(stored, server, manifest);",
  ),
  lied(
    "the server's offset is believed",
    150,
    "src/dom0/far/upload.ts",
    "if (offset !== acked && (at < 0 || offset > sent)) {",
    "if (offset < 0) {",
  ),
  lied(
    "the running hash is not compared",
    150,
    "src/dom0/far/upload.ts",
    "if (running !== here) {",
    'if (running === "") {',
  ),
  lied(
    "a ticket that the server shows is believed",
    150,
    "src/dom0/far/server.ts",
    'signatureHolds(keys.signer, "ticket", text, signature) &&',
    "signature.length > 0 &&",
  ),
  {
    name: "the server's key may change",
    within: 150,
    of: "lies",
    changes: [
      {
        file: "src/dom0/far/server.ts",
        from: "if (pinned === undefined || pinned === server) return pinned !== undefined;",
        to: "if (pinned === undefined || server !== undefined) return pinned !== undefined;",
      },
      {
        file: "src/dom0/far/server.ts",
        from: "if (server === undefined || !expected) return",
        to: "if (server === undefined || expected) return",
      },
    ],
  },
  one(
    "the exit code of qvm-backup is not looked at",
    300,
    "src/dom0/verbs/run.ts",
    "if (ended.code !== 0) {",
    "if (ended.code < 0) {",
  ),
  one(
    "a block leaves the window when it is sent",
    50,
    "src/dom0/far/upload.ts",
    "number += 1;\n      } else if",
    "number += 1;\n        blocks.shift();\n        gone += 1;\n      } else if",
  ),
  one(
    "nothing is noted before the trailer is sent",
    300,
    "src/dom0/verbs/run.ts",
    "remark((mark) => ({ ...mark, submission, ticket, backedUp }))",
    "remark((mark) => ({ ...mark, backedUp }))",
  ),
  one(
    "a receipt is not fetched later",
    300,
    "src/dom0/verbs/run.ts",
    "yield* settle(destination, options.startTimeout).pipe(",
    "yield* Effect.void.pipe(",
  ),
  one(
    "the destination qube is left running",
    50,
    "src/dom0/qube/destination.ts",
    "if (started && !options.keepRunning) yield* fromQubes(stopped);",
  ),
  one(
    "the server may be silent for ever",
    600,
    "src/shell/voice.ts",
    "} else if (now - since >= silenceLimit * 1000) {",
    "} else if (now - since >= 1e15) {",
  ),
  one(
    "a server that is long about it is given up",
    300,
    "src/dom0/far/call.ts",
    "if (reply === undefined || isAnswer(reply)) return reply;",
    'if (reply === undefined || isAnswer(reply) || reply.type === "alive") return undefined;',
  ),
  tapped(
    "the MAC of a cell does not say which one it is",
    100,
    "src/archive/slots.ts",
    "nonce.writeUInt32BE(chunk, 0);",
  ),
  tapped(
    "a member is kept whatever is in it now",
    100,
    "src/dom0/tool/chain.ts",
    "if (cell.mac === of.mac && !bad.has(cell.digest) && at !== undefined)",
    "if (!bad.has(cell.digest) && at !== undefined)",
  ),
  tapped(
    "what the server has of an upload is not held against what was noted",
    400,
    "src/dom0/far/upload.ts",
    "return at === offset && pack.running() === running ? pack.whole() : undefined;",
    "return running.length > 0 ? pack.whole() : undefined;",
  ),
  {
    name: "what the next archive is made from is noted before there is a receipt",
    of: "slots",
    within: 200,
    changes: [
      {
        file: "src/dom0/tool/chain.ts",
        from: "        proposed = true;\n      }).pipe(orWarning),",
        to: "        yield* chains.adopt(which!);\n      }).pipe(orWarning),",
      },
      // Without its second line of defence, which finds another archive to build on.
      {
        file: "src/dom0/tool/chain.ts",
        from: "places === undefined\n          ? yield*",
        to: "places === null\n          ? yield*",
      },
    ],
  },
  tapped(
    "of an upload that broke off it does not matter what it builds on",
    400,
    "src/dom0/tool/chain.ts",
    "journal.base === base &&",
  ),
  tapped(
    "the number of a run is on disk behind its ticket",
    400,
    "src/dom0/far/server.ts",
    "const run = yield* inLedger((yield* Signer).nextRun(server, series, least));",
    "const run = least + 1;\n  yield* inLedger((yield* Signer).nextRun(server, series, least));",
  ),
  tapped(
    "the end of a stream is taken for the end of its file",
    200,
    "src/dom0/tool/slots.ts",
    "if (next instanceof InnerFault) return yield* incomplete(name, next.message);",
    "if (next instanceof InnerFault) {\n          if (taker === undefined) return yield* incomplete(name, next.message);\n          yield* taker.end;\n          files.push({ name: name!, links });\n          return;\n        }",
  ),
  tapped(
    "what was sealed is not looked at",
    400,
    "src/archive/listed.ts",
    "return sealed === walk.seal.root",
    'return sealed !== ""',
  ),
  tapped(
    "what came is not held against what qubesd lists",
    200,
    "src/dom0/tool/slots.ts",
    "if (odd !== undefined) {",
    'if (odd === "") {',
  ),
  tapped(
    "a store that moved is not told to read what is built on",
    100,
    "src/dom0/tool/chain.ts",
    "yield* Effect.result(checkThere(destination, last, missing));",
    "Result.succeed(missing !== undefined);",
  ),
  tapped(
    "what a store that moved found is not held against the ledger",
    400,
    "src/dom0/tool/chain.ts",
    "if (!sound.success) return",
    "if (sound.success === undefined) return",
  ),
  tapped(
    "a chain that was taken over counts from one",
    100,
    "src/dom0/tool/chain.ts",
    "above: Math.max(0, ...(identity?.moved ?? []).map(({ run }) => run)),",
    "above: 0,",
  ),
  tapped(
    "a store with another key builds on nothing that it took before",
    100,
    "src/store/settled.ts",
    'signatureHolds(manifest.server, "receipt", record.receipt, record.receiptSignature)',
    'signatureHolds(store.key.publicKey, "receipt", record.receipt, record.receiptSignature)',
  ),
  tapped(
    "what a store that moved has for a run that broke off is not asked for",
    200,
    "src/dom0/far/settle.ts",
    "const record = unsaid && (yield* unlessLink(fetchRecord(destination, name)));",
    "const record = undefined as any;",
  ),
  tapped(
    "a store with another key shows tickets for the one before",
    100,
    "src/store/tickets.ts",
    "return found?.text === (found && ticketText(found.ticket, store.key.publicKey))\n    ? found\n    : undefined;",
    "return found;",
  ),
];

const root = path.resolve(import.meta.dirname, "../..");

/**
 * Stories that have found those which few find. They are told first, and where one does not find it any more, all
 * that there are: a seed is another story once anything about stories was changed.
 */
const foundBy: Readonly<Record<string, number>> = {
  "acknowledged before the data is flushed": 356,
  "acknowledged before the digests are flushed": 356,
  "acknowledged before the upload has a name on disk": 356,
  "the base is not held against what it has": 300,
  "a lower run is taken": 13,
  "a ticket is good for any archive": 153,
  "the signer is not looked at again at commit": 68,
  "two writers for one session": 114,
  "the server's key may change": 635,
  "the exit code of qvm-backup is not looked at": 51,
  "the server may be silent for ever": 63,
  "what the server has of an upload is not held against what was noted": 102,
  "what the next archive is made from is noted before there is a receipt": 106,
  "of an upload that broke off it does not matter what it builds on": 434,
  "the end of a stream is taken for the end of its file": 322,
  "what came is not held against what qubesd lists": 74,
  "what a store that moved found is not held against the ledger": 186,
  "what a store that moved has for a run that broke off is not asked for": 206,
};

/** A seed whose story finds it, or undefined when none of the first `count` does. */
export const find = async (
  { changes, name, of }: Planted,
  count: number,
): Promise<{ readonly seed: number; readonly violation: string } | undefined> => {
  const dir = fs.mkdtempSync(path.join(os.tmpdir(), "planted-"));
  try {
    for (const part of ["src", "services", "layers", "test/sim", "test/support", "test/fixtures"]) {
      fs.cpSync(path.join(root, part), path.join(dir, part), { recursive: true });
    }
    fs.copyFileSync(path.join(root, "package.json"), path.join(dir, "package.json"));
    fs.symlinkSync(path.join(root, "node_modules"), path.join(dir, "node_modules"));
    for (const { file, from, to } of changes) {
      const text = fs.readFileSync(path.join(dir, file), "utf8");
      if (text.split(from).length !== 2) {
        throw new Error(`${name}: ${file} does not have once: ${from}`);
      }
      fs.writeFileSync(
        path.join(dir, file),
        text.replace(from, () => to),
      );
    }
    const tell = async (
      which: { readonly FROM: string; readonly EVERY: string },
      count: number,
    ) => {
      const env = { ...process.env, ...which, COUNT: `${count}`, ENOUGH: "1", WORKERS: "1" };
      delete (env as NodeJS.ProcessEnv)["SEED"];
      const said = await new Promise<string>((done) => {
        // It exits with 1 when it has found something.
        execFile(process.execPath, ["test/sim/main.ts"], { cwd: dir, env }, (_error, out, err) =>
          done(`${out}${err}`),
        );
      });
      const match = /broken with seed (\d+);.*\n {2}(.*)/.exec(said);
      if (match === null && !/stories in/.test(said)) throw new Error(`${name}: ${said}`);
      return match === null ? undefined : { seed: Number(match[1]), violation: match[2]! };
    };
    const every = of === undefined ? { FROM: "1", EVERY: "1" } : kinds[of];
    const known = foundBy[name];
    return (
      (known === undefined ? undefined : await tell({ ...every, FROM: `${known}` }, 1)) ??
      (await tell(every, count))
    );
  } finally {
    fs.rmSync(dir, { recursive: true, force: true });
  }
};

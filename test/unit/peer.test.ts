/** The peer of the tests speaks the wire that src reads: one archive, put and read back. */
import { assert, it } from "@effect/vitest";
import { Effect } from "effect";
import { TestClock } from "effect/testing";
import { memoryPipe } from "#layers/memory/MemoryPipe";
import { signatureHolds } from "#src/proof/keys";
import { parseManifest, parseReceipt, parseTicket, receiptDiffers } from "#src/proof/texts";
import { frames } from "#src/wire/frames";
import { blockSize, proofLimit } from "#src/wire/limits";
import { replies } from "#src/wire/lines";
import { parseReply, type Verb } from "#src/wire/request";
import { archiveOf } from "#test/support/archive";
import { keyOf, type Lies, peer, shelf } from "#test/support/peer";
import * as reference from "#test/support/reference";

const { framed, leavesOf, linesOf, membersOf, rootOf, textOf } = reference;

const signer = keyOf("dom0");
const server = keyOf("server").publicKey;
const archive = archiveOf({
  seed: 1,
  files: [
    { path: "vm2/private.img", size: 2_500_000 },
    { path: "vm3/private.img", size: 100 },
  ],
});
const session = "0".repeat(31) + "1";
const series = "0123456789abcdef";
const ticket: reference.Ticket = {
  name: "a.backup",
  session,
  base: "-",
  series,
  run: 1,
  bytes: archive.length,
  time: "2026-01-31T04:00:00Z",
  signer: signer.publicKey,
};
const signed = (t: reference.Ticket) => ({
  ...t,
  signature: signer.sign("ticket", reference.ticketText(t, server)),
});
const manifestOf = (t: reference.Ticket, table: string) =>
  textOf("manifest", {
    name: t.name,
    session,
    server,
    signer: t.signer,
    series,
    run: t.run,
    created: t.time,
    size: archive.length,
    members: linesOf(table).length,
    root: rootOf(linesOf(table)),
    format: "qvm-backup",
    next: null,
  });
const blocks = membersOf(archive).flatMap(({ bytes }) =>
  Array.from({ length: leavesOf(bytes).length }, (_, i) =>
    bytes.subarray(i * blockSize, (i + 1) * blockSize),
  ),
);
const trailer = (manifest: string, recipe: string) => [
  framed(),
  framed(Buffer.from(manifest)),
  framed(Buffer.from(signer.sign("manifest", manifest), "base64url")),
  framed(Buffer.from(recipe)),
  framed(),
];

/** One call with all of its stdin; what came of it, read as src reads it. */
const call = <V extends Verb>(
  far: ReturnType<typeof peer>,
  verb: V,
  request: object,
  ...stdin: ReadonlyArray<Uint8Array>
) =>
  Effect.gen(function* () {
    const [up, down] = [memoryPipe(2 ** 30), memoryPipe(2 ** 30)];
    yield* up.sink.write(Buffer.concat([Buffer.from(`${JSON.stringify(request)}\n`), ...stdin]));
    yield* up.sink.end;
    const invocation = { stdin: up.source, stdout: down.sink, args: [], env: {} };
    const code = yield* far(
      { ...invocation, entropy: () => new Uint8Array(0) },
      `qubes.BackupCarrier+${verb}`,
    );
    yield* down.sink.end;
    const { next, rest } = replies(
      down.source,
      (line) => parseReply(verb, line),
      () => Effect.die("a line that src does not know"),
    );
    return { code, next, rest };
  });

const all = <A, E>(next: Effect.Effect<A | undefined, E>) =>
  Effect.gen(function* () {
    const some: Array<A> = [];
    for (let reply = yield* next; reply !== undefined; reply = yield* next) some.push(reply);
    return some;
  });

const started = TestClock.setTime(Date.parse("2026-01-31T05:00:00Z"));
const table = reference.tableOf(archive);
const manifest = manifestOf(ticket, table);

it.effect("an archive is put, resumed, listed, read and checked", () =>
  Effect.gen(function* () {
    yield* started;
    const w = shelf();
    const lies: Lies = { dropAfter: (n) => (n === 1 ? 4 : undefined) };
    const far = peer(w, lies);
    const put = (...bytes: ReadonlyArray<Uint8Array>) => call(far, "put", signed(ticket), ...bytes);
    const cut = yield* put(...blocks.map((block) => framed(block)));
    assert.strictEqual(cut.code, 4);
    const first = yield* all(cut.next);
    const leaves = membersOf(archive).map(({ bytes }) => leavesOf(bytes));
    const wholes = leaves.slice(0, 3).map(reference.topOf);
    const running = reference.running(wholes, leaves[3]!.slice(0, 1));
    assert.deepStrictEqual(first[0], { type: "ready", offset: 0, running: reference.running([]) });
    assert.deepStrictEqual(first.at(-1), { type: "ack", offset: 30_720 + blockSize, running });

    const done = yield* put(
      ...blocks.slice(4).map((block) => framed(block)),
      ...trailer(manifest, `new 0 ${leaves.length}\n`),
    );
    const said = yield* all(done.next);
    assert.deepStrictEqual(said[0], { type: "ready", offset: 30_720 + blockSize, running });
    const stored = said.at(-1)!;
    assert.strictEqual(stored.type, "stored");
    if (stored.type !== "stored") return;
    assert.isTrue(signatureHolds(server, "receipt", stored.receipt, stored.signature));
    assert.isUndefined(receiptDiffers(parseReceipt(stored.receipt)!, manifest));
    assert.deepStrictEqual(parseReceipt(stored.receipt)!.stored, "2026-01-31T05:00:00Z");
    const again = yield* all((yield* put()).next);
    assert.deepStrictEqual(again, [stored]);

    const about = yield* all(
      (yield* call(far, "about", { of: { signer: signer.publicKey, series } })).next,
    );
    const [{ ticket: top, ...rest } = { ticket: null }] = about as ReadonlyArray<
      Extract<(typeof about)[number], { type: "about" }>
    >;
    assert.include(rest, { server, clock: "2026-01-31T05:00:00Z" });
    assert.deepStrictEqual(parseTicket(top!.text), { ticket, server } as never);
    assert.isTrue(signatureHolds(signer.publicKey, "ticket", top!.text, top!.signature));

    const listed = yield* all((yield* call(far, "list", {})).next);
    assert.deepInclude(listed[0] as object, {
      type: "archive",
      name: "a.backup",
      root: rootOf(linesOf(table)),
    });
    assert.deepStrictEqual(listed[1], { type: "end", more: false });
    const [record] = yield* all((yield* call(far, "manifest", { name: "a.backup" })).next);
    assert.deepInclude(record, { type: "manifest", manifest, receipt: stored.receipt });
    assert.isDefined(parseManifest(manifest));

    const textsOf = Effect.fnUntraced(function* (verb: "recipe" | "table", request: object) {
      const { next, rest: bytes } = yield* call(far, verb, request);
      assert.deepStrictEqual(yield* next, { type: "ready" });
      const { next: frame } = frames(bytes, blockSize);
      let text = "";
      for (let one = yield* frame; one.kind === "bytes"; one = yield* frame) {
        text += Buffer.from(one.bytes).toString();
      }
      return text;
    });
    const recipe = `${session} 0 ${leaves.length}\n`;
    assert.strictEqual(yield* textsOf("recipe", { name: "a.backup" }), recipe);
    assert.strictEqual(yield* textsOf("table", { session }), table);

    const ask = Buffer.from(`${session} 3 1 2\n.\n${session} 0 0 1\n${session} 9 0 1\n\n`);
    const { code, next, rest: answers } = yield* call(far, "read", {}, ask);
    assert.strictEqual(code, 0);
    yield* next;
    const { next: frame } = frames(answers, blockSize + proofLimit);
    for (const [member, block] of [
      [3, 1],
      [3, 2],
      [0, 0],
    ] as const) {
      const one = yield* frame;
      if (one.kind !== "bytes") return assert.fail(one.kind);
      const bytes = membersOf(archive)[member]!.bytes;
      const data = bytes.subarray(block * blockSize, (block + 1) * blockSize);
      assert.isTrue(data.equals(one.bytes.subarray(0, data.length)));
      const siblings = Buffer.concat(reference.siblingsOf(leavesOf(bytes), block));
      assert.isTrue(siblings.equals(one.bytes.subarray(data.length)));
    }
    assert.deepStrictEqual(yield* frame, { kind: "give-up" });

    const checked = yield* all((yield* call(far, "check", { name: "a.backup" })).next);
    assert.deepInclude(checked.at(-1), { type: "checked", members: leaves.length });
    w.committed.set("a.backup", {
      ...w.committed.get("a.backup")!,
      bytes: Buffer.alloc(archive.length),
    });
    const broken = yield* all((yield* call(far, "check", { name: "a.backup" })).next);
    assert.deepInclude(broken.at(-1), { type: "error", code: "damaged" });
  }),
);

it.effect("what is not as it must be is refused", () =>
  Effect.gen(function* () {
    yield* started;
    const answers = (t: reference.Ticket, ...bytes: ReadonlyArray<Uint8Array>) =>
      Effect.map(
        Effect.flatMap(call(peer(w), "put", signed(t), ...bytes), ({ next }) => all(next)),
        (some) => some.at(-1) as { readonly type: string; readonly code?: string },
      );
    const w = shelf();
    const code = (...args: Parameters<typeof answers>) =>
      Effect.map(answers(...args), (reply) => reply.code ?? reply.type);
    const whole = blocks.map((block) => framed(block));
    const end = (text = manifest, recipe = "new 0 5\n") => trailer(text, recipe);
    assert.strictEqual(yield* code({ ...ticket, time: "2025-12-31T00:00:00Z" }), "not-permitted");
    assert.strictEqual(yield* code({ ...ticket, base: "f".repeat(32) }), "not-found");
    assert.strictEqual(yield* code(ticket, framed(Buffer.alloc(5))), "bad-request");
    assert.strictEqual(
      yield* code(ticket, ...whole, ...end(manifest, "new 0 99\n")),
      "bad-request",
    );
    assert.strictEqual(yield* code(ticket, ...end(manifest, "new 0 4\n")), "digest-mismatch");
    assert.strictEqual(yield* code({ ...ticket, bytes: 5 }), "stale");
    assert.strictEqual(yield* code(ticket, ...whole, reference.giveUp), "ack");
    assert.strictEqual(w.gaveUp, 1);
    const other = manifest.replace(/"root":"[0-9a-f]{4}/, '"root":"ffff');
    assert.strictEqual(yield* code(ticket, ...whole, ...end(other)), "digest-mismatch");
    assert.strictEqual(w.incoming.size, 0);
    assert.strictEqual(yield* code(ticket, ...whole, ...end()), "stored");
  }),
);

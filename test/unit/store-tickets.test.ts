/** Who may open an upload: tickets in any order, of several signers, against a plain account of them. */
import { assert, describe, it } from "@effect/vitest";
import { Effect } from "effect";
import { TestClock } from "effect/testing";
import { parseTicket, type SignedTicket } from "#src/proof/texts";
import type { Refused } from "#src/store/failure";
import type { WritableStore } from "#src/store/store";
import {
  enter,
  fresh,
  highestTicket,
  stillHolds,
  ticketOf,
  vouch,
  type Vouched,
} from "#src/store/tickets";
import type { SafeFsError } from "#services/SafeFs";
import type { PublicKey, Series, Signature } from "#src/wire/names";
import {
  fingerprintOf,
  type Pair,
  pairOf,
  sha256,
  type Ticket,
  ticketText,
} from "#test/support/reference";
import { rng } from "#test/support/random";
import { dom0, otherDom0, type Put, series, sessionOf, ticketFor } from "#test/support/shell";
import { inStore } from "#test/support/writable";

const third = pairOf(Buffer.alloc(32, 3));
const pairs = [dom0, otherDom0, third];
const several = [series, `x-${series}`];
const day = 24 * 3600 * 1000;

/** A ticket as it comes in, signed by who it names unless by another. */
const signed = (store: WritableStore, put: Put, by: Pair = put.signer ?? dom0): SignedTicket => {
  const ticket = ticketFor(put, 0);
  const signature = by.sign("ticket", ticketText(ticket, store.key.publicKey));
  return { ...ticket, signature } as unknown as SignedTicket;
};
const vouched = (store: WritableStore, put: Put) => vouch(store, signed(store, put));
/** Of a failure its code, else "well". */
const outcome = <A>(effect: Effect.Effect<A, Refused | SafeFsError>) =>
  Effect.match(effect, {
    onFailure: (error) => (error._tag === "Refused" ? error.code : error.reason),
    onSuccess: () => "well",
  });
const keyOf = (key: string) => key as PublicKey;

describe("tickets", () => {
  it.effect("are admitted by signer and run, whatever came before", () =>
    Effect.forEach(
      Array.from({ length: 10 }, (_, seed) => seed),
      (seed) =>
        inStore((store, disk) =>
          Effect.gen(function* () {
            const r = rng(seed);
            let signers: ReadonlyArray<string> | undefined;
            const highest = new Map<string, { readonly text: string; readonly run: number }>();
            for (let n = 0; n < 15; n++) {
              if (r.next() < 0.15) {
                signers = pairs.map(({ publicKey }) => publicKey).filter(() => r.next() < 0.7);
                const text = signers.map((key) => `${key}\n`).join("");
                disk.plant(".qbackup/signers", Buffer.from(text));
              }
              const put: Put = {
                signer: pairs[r.int(0, 2)]!,
                series: several[r.int(0, 1)]!,
                run: r.int(0, 5),
                session: sessionOf(r.int(1, 3)),
              };
              const { publicKey } = put.signer!;
              const of = `${publicKey} ${put.series}`;
              const text = ticketText(ticketFor(put, 0), store.key.publicKey);
              const top = highest.get(of);
              const allowed = signers === undefined || signers.includes(publicKey);
              const newer = top === undefined || top.run < put.run! || top.text === text;
              const told = allowed ? (newer ? "well" : "stale") : "not-permitted";

              const came = signed(store, put);
              const seen = yield* Effect.result(vouch(store, came));
              assert.strictEqual(seen._tag, allowed ? "Success" : "Failure", `seed ${seed}`);
              const admitted = {
                text,
                signature: came.signature,
                ticket: parseTicket(text)!.ticket,
              };
              if (seen._tag === "Success") {
                assert.deepStrictEqual(seen.success, { ...admitted, untimely: undefined });
              }
              const isFresh = yield* outcome(fresh(store, admitted));
              assert.strictEqual(isFresh, newer ? "well" : "stale");
              assert.strictEqual(yield* outcome(stillHolds(store, admitted)), told);
              const before = yield* ticketOf(store.incoming, put.session!);
              assert.strictEqual(yield* outcome(enter(store, admitted)), told, `seed ${seed}`);
              if (told === "well") {
                signers ??= [publicKey];
                highest.set(of, { text, run: put.run! });
              }
              assert.deepStrictEqual(
                yield* ticketOf(store.incoming, put.session!),
                told === "well" ? admitted : before,
              );
              assert.strictEqual(
                disk.bytes(".qbackup/signers")?.toString(),
                signers?.map((key) => `${key}\n`).join(""),
              );
              for (const pair of pairs) {
                for (const one of several) {
                  const found = yield* highestTicket(store, keyOf(pair.publicKey), one as Series);
                  assert.strictEqual(found?.text, highest.get(`${pair.publicKey} ${one}`)?.text);
                }
              }
            }
          }),
        ),
      { discard: true },
    ),
  );

  it.effect("of a store that was given another key since are the highest no more", () =>
    inStore((store) =>
      Effect.gen(function* () {
        const { text, signature, ticket } = yield* vouched(store, {});
        yield* enter(store, { text, signature, ticket });
        const highest = (of: Pick<WritableStore, "root" | "key">) =>
          highestTicket(of, keyOf(dom0.publicKey), series as Series);
        assert.strictEqual((yield* highest(store))?.text, text);
        const key = { ...store.key, publicKey: keyOf(third.publicKey) };
        assert.isUndefined(yield* highest({ ...store, key }));
      }),
    ),
  );
  it.effect("are signed for this server by the key that they name, word by word", () =>
    inStore((store) =>
      Effect.gen(function* () {
        const whole = signed(store, {});
        assert.strictEqual(yield* outcome(vouch(store, whole)), "well");
        const others: ReadonlyArray<Partial<Ticket>> = [
          { name: "b.backup" },
          { session: sessionOf(2) },
          { base: sessionOf(3) },
          { series: several[1]! },
          { run: 2 },
          { bytes: 1 },
          { time: "1970-01-01T00:00:01Z" },
          { signer: third.publicKey },
        ];
        for (const other of others) {
          const bent = { ...whole, ...other } as unknown as SignedTicket;
          assert.strictEqual(yield* outcome(vouch(store, bent)), "signature");
        }
        assert.strictEqual(yield* outcome(vouch(store, signed(store, {}, otherDom0))), "signature");
        for (const [what, server] of [
          ["ticket", third.publicKey],
          ["manifest", store.key.publicKey],
        ] as const) {
          const signature = dom0.sign(what, ticketText(ticketFor({}, 0), server)) as Signature;
          assert.strictEqual(yield* outcome(vouch(store, { ...whole, signature })), "signature");
        }
      }),
    ),
  );

  it.effect("of a key that is not taken say whose are", () =>
    inStore((store, disk) =>
      Effect.gen(function* () {
        const put = { signer: third };
        const theirs = fingerprintOf(third.publicKey);
        const says = (...keys: ReadonlyArray<Pair>) => {
          disk.plant(
            ".qbackup/signers",
            Buffer.from(keys.map(({ publicKey }) => `${publicKey}\n`).join("")),
          );
          return Effect.map(Effect.flip(vouched(store, put)), ({ message }) => message);
        };
        const first = fingerprintOf(dom0.publicKey);
        const not = `this store does not take the key ${theirs}; it takes`;
        assert.strictEqual(yield* says(), `${not} none`);
        assert.strictEqual(yield* says(dom0), `${not} ${first}`);
        const most = yield* says(dom0, otherDom0);
        assert.strictEqual(most, `${not} ${first} (and 1 more)`);
        // dom0 shows all of it.
        assert.isAtMost(most.length, 199);
      }),
    ),
  );

  it.effect("have a time at most 30 days back and 24 hours ahead", () =>
    inStore((store) =>
      Effect.gen(function* () {
        const time = 400 * day;
        const told = (now: number) =>
          Effect.andThen(
            TestClock.setTime(now),
            Effect.map(vouched(store, { time }), ({ untimely }: Vouched) => untimely),
          );
        for (const now of [time - day, time, time + 30 * day]) {
          assert.isUndefined(yield* told(now), String(now));
        }
        for (const now of [time - day - 1, time + 30 * day + 1]) {
          const refused = yield* told(now);
          assert.strictEqual(refused?.code, "not-permitted", String(now));
          assert.include(refused?.message, "dom0 wrote 1971-02-05T00:00:00Z");
          assert.include(
            refused?.message,
            `here it is ${new Date(now).toISOString().slice(0, 19)}Z`,
          );
        }
      }),
    ),
  );

  it.effect("that are stale are shown the highest one", () =>
    inStore((store) =>
      Effect.gen(function* () {
        const top = yield* vouched(store, { run: 3 });
        yield* enter(store, top);
        const old = yield* vouched(store, { run: 2, session: sessionOf(2) });
        const refused = (yield* Effect.flip(enter(store, old))) as Refused;
        assert.deepStrictEqual(refused.more, { ticket: top.text, signature: top.signature });
        assert.isUndefined(yield* ticketOf(store.incoming, sessionOf(2)));
      }),
    ),
  );

  it.effect("let nobody in whose highest one cannot be read", () =>
    inStore((store, disk) =>
      Effect.gen(function* () {
        const { signature, text } = yield* vouched(store, { run: 3 });
        const next = yield* vouched(store, { run: 4 });
        yield* enter(store, yield* vouched(store, { run: 3 }));
        const file = disk.files().find((one) => one.startsWith(".qbackup/runs/"))!;
        const name = sha256(`${dom0.publicKey} ${series}`).toString("hex");
        assert.strictEqual(file, `.qbackup/runs/${name}`);
        const session = `.qbackup/incoming/${sessionOf(1)}.ticket`;
        assert.strictEqual(disk.bytes(file)!.toString(), `${text}\n${signature}`);
        for (const bytes of [
          "",
          "\n",
          text,
          `${text}\n`,
          `\n${signature}`,
          `${text}\n${signature.slice(1)}`,
          `${text.slice(1)}\n${signature}`,
          "x".repeat(5000),
        ]) {
          disk.plant(file, Buffer.from(bytes));
          disk.plant(session, Buffer.from(bytes));
          for (const tried of [fresh(store, next), enter(store, next), stillHolds(store, next)]) {
            assert.strictEqual(yield* outcome(tried), "internal", bytes);
          }
          assert.isUndefined(yield* ticketOf(store.incoming, sessionOf(1)), bytes);
        }
      }),
    ),
  );
});

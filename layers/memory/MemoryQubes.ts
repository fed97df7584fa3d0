/** A table of qubes, for tests: what is asked is recorded, and can be made to fail or to take time. */
import type * as Duration from "effect/Duration";
import * as Effect from "effect/Effect";
import * as Layer from "effect/Layer";
import { type Power, type Qube, Qubes, QubesError } from "#services/Qubes";

export interface QubesTable {
  readonly qubes: Array<Qube>;
  /**
   * `list`, `power NAME`, `start NAME`, `shutdown NAME`, `unsavable NAME`, `capacity NAME`, `backed-up NAME AT`,
   * `create NAME`, `mark NAME TAG`, `marked TAG`, `fill NAME`, `remove NAME`, `scratch`, `free`, in order.
   */
  readonly calls: Array<string>;
  /** Qubes of which a volume keeps no snapshot, and that volume. */
  readonly unsavable: Map<string, string>;
  /** The tags that qubes were given, `NAME TAG`. */
  readonly tags: Set<string>;
  /** What private volumes were filled with. */
  readonly filled: Map<string, Uint8Array>;
  /** What each qube's volumes can hold, in bytes. */
  capacity: number;
  /** What qubesd's journal has of broken pipes; undefined where it may not be read. */
  brokenPipes: number | undefined;
  /** What is free for qubesd's temporary files, in bytes. */
  free: number;
  /** The text that a call fails with; it works where there is none. Asked for every call. */
  fails: (call: string) => string | undefined;
  /** How long a call takes. */
  takes: (call: string) => Duration.Input;
}

/** A halted AppVM that is part of the default set, but for what is said otherwise. */
export const aQube = (name: string, qid: number, but: Partial<Qube> = {}): Qube => ({
  name,
  qid,
  state: "Halted",
  class: "AppVM",
  included: true,
  ...but,
});

export const qubesTable = (qubes: ReadonlyArray<Qube>): QubesTable => ({
  qubes: [aQube("dom0", 0, { state: "Running", class: "AdminVM" }), ...qubes],
  calls: [],
  unsavable: new Map(),
  tags: new Set(),
  filled: new Map(),
  capacity: 2 ** 31,
  brokenPipes: 0,
  free: 10 * 2 ** 30,
  fails: () => undefined,
  takes: () => 0,
});

export const memoryQubes = (table: QubesTable): Layer.Layer<Qubes> => {
  const call = <A>(name: string, doing: string, what: () => A | undefined) =>
    Effect.gen(function* () {
      table.calls.push(name);
      const time = table.takes(name);
      // Even a sleep of nothing costs a turn of the clock, and `free` is asked every second.
      if (time !== 0) yield* Effect.sleep(time);
      const detail = table.fails(name);
      if (detail !== undefined) return yield* new QubesError({ doing, detail });
      const value = what();
      return value ?? (yield* new QubesError({ doing, detail: "no such domain" }));
    });
  const find = (name: string) => table.qubes.findIndex((qube) => qube.name === name);
  const become = (name: string, state: string) => () => {
    const at = find(name);
    if (at < 0) return undefined;
    table.qubes[at] = { ...table.qubes[at]!, state };
    return true;
  };
  return Layer.succeed(Qubes, {
    list: call("list", "list the qubes", () => [...table.qubes]),
    power: (qube) =>
      call(`power ${qube}`, `see whether ${qube} is running`, (): Power => {
        const state = table.qubes[find(qube)]?.state ?? "Halted";
        if (state === "Paused") return "paused";
        return state === "Halted" || state === "NA" ? "off" : "on";
      }),
    // A paused qube is one that runs already.
    start: (qube) =>
      Effect.asVoid(
        call(`start ${qube}`, `start ${qube}`, () =>
          table.qubes[find(qube)]?.state === "Paused" ? true : become(qube, "Running")(),
        ),
      ),
    shutdown: (qube) =>
      Effect.asVoid(call(`shutdown ${qube}`, `shut down ${qube}`, become(qube, "Halted"))),
    unsavable: ({ name, state }) =>
      call(`unsavable ${name}`, `see how the volumes of ${name} are kept`, () => ({
        volume: state === "Running" ? table.unsavable.get(name) : undefined,
      })).pipe(Effect.map(({ volume }) => volume)),
    capacity: ({ name }) =>
      call(`capacity ${name}`, `see how large ${name} is`, () => table.capacity),
    create: (qube) =>
      Effect.gen(function* () {
        const doing = `make the qube ${qube}`;
        const made = yield* call(`create ${qube}`, doing, () => ({ is: find(qube) < 0 }));
        if (!made.is) return yield* new QubesError({ doing, detail: `VM ${qube} already exists` });
        const qid = Math.max(...table.qubes.map((one) => one.qid)) + 1;
        table.qubes.push(aQube(qube, qid, { included: false }));
      }),
    mark: (qube, tag) =>
      Effect.asVoid(
        call(`mark ${qube} ${tag}`, `tag ${qube}`, () =>
          find(qube) < 0 ? undefined : table.tags.add(`${qube} ${tag}`),
        ),
      ),
    marked: (tag) =>
      call(`marked ${tag}`, `list the qubes with the tag ${tag}`, () =>
        table.qubes.map(({ name }) => name).filter((name) => table.tags.has(`${name} ${tag}`)),
      ),
    fill: (qube, image) =>
      Effect.asVoid(
        call(`fill ${qube}`, `fill the private volume of ${qube}`, () =>
          find(qube) < 0 ? undefined : table.filled.set(qube, new Uint8Array(image)),
        ),
      ),
    remove: (qube) =>
      Effect.asVoid(
        call(`remove ${qube}`, `remove ${qube}`, () => {
          const at = find(qube);
          if (at < 0) return undefined;
          table.qubes.splice(at, 1);
          for (const tagged of table.tags) {
            if (tagged.startsWith(`${qube} `)) table.tags.delete(tagged);
          }
          return true;
        }),
      ),
    versions: Effect.succeed(["Qubes release 4.3 (R4.3)"]),
    setBackedUp: (qube, at) =>
      Effect.asVoid(
        call(`backed-up ${qube} ${at ?? "never"}`, `set the last backup of ${qube}`, () => {
          const index = find(qube);
          if (index < 0) return undefined;
          const { backedUp: _, ...rest } = table.qubes[index]!;
          table.qubes[index] = at === undefined ? rest : { ...rest, backedUp: at };
          return true;
        }),
      ),
    brokenPipes: () => Effect.sync(() => table.brokenPipes),
    scratch: call("scratch", "find qubesd's temporary directory", () => ({
      path: "/tmp",
      free: call("free", "see how much room /tmp has", () => table.free),
    })),
  });
};

/** What goes wrong in a story, and when: decided from its seed before it begins. */
import * as fs from "node:fs";
import { nightsRoom } from "#test/sim/nights";
import { archiveOf } from "#test/support/archive";
import type { Suspension } from "#test/sim/universe";
import { type Rng, rng } from "#test/support/random";

const mebi = 1_048_576;
/** Frames of an archive of so many bytes: its small members have one each. */
export const frameCount = (size: number): number => 6 + Math.floor(size / mebi);
/** What scrypt, tar and the three heads add to the only file of these archives, in bytes. */
const padTo = (target: number): number => target - 3 * 10_240 - 5_120;

const archive = (seed: number, total: number): Buffer =>
  archiveOf({
    seed,
    files: [
      { path: "vm2/private.img", size: padTo(total) },
      { path: "vm3/root.img", size: 3 },
      { path: "vm4/empty", size: 0 },
    ],
  });
/**
 * Sizes where things change: less than a block, blocks and a rest, whole blocks and no rest (5 MiB are
 * 512 records of tar), more than one sync takes (8 MiB), more than the window (16 MiB).
 */
const makers: ReadonlyArray<() => Buffer> = [
  () => fs.readFileSync(new URL("../fixtures/sample-tiny-lowcost.qubes-backup", import.meta.url)),
  () => archive(1, 200_000),
  () => archive(2, mebi + 300_000),
  () => archive(3, 2 * mebi + 900_000),
  () => archive(4, 3 * mebi),
  () => archive(5, 5 * mebi - 40_960),
  () => archive(6, 9 * mebi + 5000),
  () => archive(7, 18 * mebi),
];
const made = new Map<number, Buffer>();
/** Archives are made once and shared: nobody changes them. */
export const archiveNumber = (n: number): Buffer => {
  const found = made.get(n) ?? makers[n]!();
  made.set(n, found);
  return found;
};

/** How a link breaks: who is told, and where. Bytes are counted from the beginning of the call. */
export interface Break {
  readonly when:
    | { readonly up: number }
    | { readonly down: number }
    /** Milliseconds after the call. */
    | { readonly after: number };
  readonly dom0Knows: boolean;
  readonly serverKnows: "ended" | "failed" | undefined;
  /** What is under way still arrives. */
  readonly keep: boolean;
}

export interface LinkPlan {
  readonly broken?: Break;
  /** Flips a bit of the byte at this offset. */
  readonly corrupt?: { readonly direction: "up" | "down"; readonly at: number };
  /** The carrier leaves out what is written `at`th, or sends it twice, later, or another in its place. */
  readonly altered?: { readonly at: number; readonly how: "drop" | "twice" | "swap" | "older" };
  readonly capacity: number;
  /** Milliseconds that a write may take at most. */
  readonly delay: number;
  /** Into how many pieces a write falls at most. */
  readonly pieces: number;
  readonly seed: number;
}

/** A server process dies at its n-th call on the disk of the story. */
export interface Death {
  readonly at: number;
  readonly moment: "before" | "after";
  /** The machine with it: what was not synced is gone, all of it or any part of it. */
  readonly power?: "nothing" | "any";
  /** The client learns of it at once. */
  readonly told: boolean;
  /** Milliseconds until the machine is there again. */
  readonly away: number;
}

/** The ssh key is in other hands. */
export interface Attack {
  readonly seed: number;
  /** The carrier sees what is sent just now, too; who has the key alone, what was sent before. */
  readonly by: "key" | "carrier";
  /** What of an upload the carrier lets not through. */
  readonly holdsBack: "trailer" | "all" | undefined;
  /** In bytes. */
  readonly quota?: number;
  /**
   * Milliseconds after the server was ready for the upload, after which its owner takes dom0's key for
   * no signer any more.
   */
  readonly revoked?: number;
}

/** One night of a story in slots. */
export interface NightPlan {
  /**
   * What qubesd does: cuts a file's stream, lists a file that never came or not one that did, fails, or
   * hangs.
   */
  readonly qvm: "sound" | "cut" | "unlisted" | "missing" | "fails" | "hangs";
  /** Milliseconds before each file. */
  readonly pause: number;
  readonly dies?: Plan["dom0Dies"];
  /**
   * What happens before it: the server's power fails; dom0 is put back to what it was some nights ago; the
   * passphrase becomes another one; what dom0 knows of its archives is lost.
   */
  readonly before?: "power" | "restored" | "passphrase" | "forgotten";
  /** Its owner asks for a new chain. */
  readonly asked?: boolean;
  /** The qube through which it goes: behind `far` is another server. */
  readonly to?: "net" | "far";
  /** Milliseconds until the next one. */
  readonly rest: number;
}

/** What becomes of a store between two nights, and of the key that signs its archives. */
export interface Move {
  /** The new place gives itself another key. */
  readonly rekeyed: boolean;
  /**
   * What comes there: all; what there was a night before; all without the record of the newest archive, with a
   * bit of that flipped, without a pack of it, or with what the one before was in its place.
   */
  readonly store: "sound" | "older" | "missing" | "damaged" | "lost" | "replaced";
  /** dom0 has another signing key, too, which the store's owner lets in before its first night, or behind that. */
  readonly signer?: "before" | "behind";
  /** A night that breaks off before it, often about the time of its receipt. */
  readonly left?: NonNullable<Plan["dom0Dies"]>;
  /** What happens in the first night behind it. */
  readonly dies?: NonNullable<Plan["dom0Dies"]>;
  readonly links: ReadonlyArray<LinkPlan>;
  readonly deaths: ReadonlyArray<Death>;
  /** The images are others than before. */
  readonly changed: boolean;
}

/** A story in slots: nights with trouble, after a calm one or not; others without any follow. */
export interface SlotsPlan {
  /** The server is hostile, and nothing else goes wrong. */
  readonly hostile: boolean;
  readonly calmFirst: boolean;
  readonly nights: ReadonlyArray<NightPlan>;
  /** Behind all of them; of a hostile server, how often it comes with another key. */
  readonly moves: ReadonlyArray<Move>;
}

export interface Plan {
  readonly seed: number;
  readonly disorder: number;
  readonly archive: number;
  /** Milliseconds; how long a sync takes. */
  readonly syncing: number;
  readonly prefix: string;
  /** The destination qube runs before the run. */
  readonly running: boolean;
  readonly keepRunning: boolean;
  /** Of the uploads' calls in order; then all are sound. */
  readonly links: ReadonlyArray<LinkPlan>;
  /** Of the calls before an upload. */
  readonly early: ReadonlyArray<LinkPlan>;
  readonly sound: Omit<LinkPlan, "broken" | "corrupt">;
  readonly deaths: ReadonlyArray<Death>;
  /** dom0's n-th step, or its first one of that name. `torn`: a line of the ledger is half-written by it. */
  readonly dom0Dies?: {
    readonly at: number | string;
    readonly moment: "before" | "after";
    readonly torn: boolean;
  };
  /** Milliseconds after the beginning of the call. */
  readonly carrierDies?: { readonly call: number; readonly after: number };
  /** Calls on the server's disk (of those that can fail) from `at` on, `count` of them. */
  readonly disk?: {
    readonly at: number;
    readonly count: number;
    readonly reason: "no-space" | "io";
  };
  /** Calls on dom0's books from `at` on, `count` of them. */
  readonly books?: { readonly at: number; readonly count: number };
  /** dom0's machine, with all that runs on it. The link should break silently at that moment, too. */
  readonly suspended?: Suspension;
  readonly clocks: ReadonlyArray<{
    readonly machine: "dom0" | "server";
    readonly after: number;
    readonly by: number;
  }>;
  readonly qvm:
    | { readonly kind: "sound" }
    /** Ends after so many bytes, with this exit code. */
    | { readonly kind: "cut"; readonly at: number; readonly code: number }
    | { readonly kind: "exit"; readonly code: number }
    | { readonly kind: "hangs"; readonly at: number };
  /** Pauses of qvm-backup. */
  readonly pauses: ReadonlyArray<{ readonly at: number; readonly millis: number }>;
  /** Another run: of the same dom0, or of another one that writes to the same server. */
  readonly second?: { readonly who: "same" | "other"; readonly after: number };
  readonly attack?: Attack;
  /** Another dom0, which keeps slots, uses the server from so many milliseconds on. */
  readonly nights?: { readonly seed: number; readonly after: number };
  /** The story is of backups in slots. */
  readonly slots?: SlotsPlan;
  /** How the story ends: the power fails once more, and this much of the unsynced is left. */
  readonly last: "nothing" | "any";
  /** Milliseconds between the trouble and the run that has to succeed. */
  readonly rest: number;
}

const sound = (r: Rng): Plan["sound"] => ({
  capacity: r.pick([1, 700, 65_536, 131_072, 4_194_304]),
  delay: r.pick([0, 0, 1, 20, 500]),
  pieces: r.pick([1, 1, 2, 5]),
  seed: r.int(1, 2 ** 31),
});

const aBreak = (r: Rng, size: number): Break => {
  const end = size + 4 * frameCount(size);
  const where = r.next();
  const when =
    where < 0.35
      ? { up: r.int(0, end) }
      : where < 0.55
        ? { up: end + r.int(0, 1200) } // the end frame and the trailer
        : where < 0.75
          ? { down: r.pick([r.int(0, 120), r.int(0, 700)]) }
          : { after: r.pick([r.int(0, 50), r.int(0, 5000), r.int(0, 60_000)]) };
  return {
    when,
    dom0Knows: r.next() < 0.75,
    serverKnows: r.pick(["ended", "failed", undefined]),
    keep: r.next() < 0.5,
  };
};

/** Every fourth story is of backups in slots. */
const isOfSlots = (seed: number): boolean => seed % 4 === 2;

export const planOf = (seed: number): Plan => (isOfSlots(seed) ? slotsPlanOf : fullPlanOf)(seed);

/** Bytes of a first night in slots, about: where links break. */
const ofSlots = 80_000;

/** A request of which a part arrives, and its answer too, is no link that breaks. */
const behindRequest = (broken: Break): Break =>
  "up" in broken.when ? { ...broken, when: { up: broken.when.up + 1000 } } : broken;

/** By dice of their own: up to there, stories are what they are without them. */
const movesOf = (seed: number): ReadonlyArray<Move> => {
  const r = rng(seed ^ 0x30fed);
  for (let i = 0; i < 8; i++) r.next();
  const likely = (chance: number) => r.next() < chance;
  const dies = (at: ReadonlyArray<number | string>) => ({
    at: r.pick(at),
    moment: r.pick(["before", "after"] as const),
    torn: likely(0.5),
  });
  // Those that are looked through for planted faults have more of them: a move is several nights.
  const moves = likely(seed < 1700 ? 0.4 : 0.08) ? r.pick([1, 1, 2]) : 0;
  return Array.from({ length: moves }, (): Move => {
    const rekeyed = likely(0.8);
    const whole = ["sound", "sound", "sound", "older", "missing"] as const;
    return {
      rekeyed,
      // Of one that has its key still, nothing is looked at before it is built on.
      store: r.pick(rekeyed ? ([...whole, "damaged", "lost", "replaced"] as const) : whole),
      ...(likely(0.25) ? { signer: r.pick(["before", "behind"] as const) } : {}),
      ...(likely(0.3) ? { left: dies([r.int(1, 60), "append", "adopt"]) } : {}),
      ...(likely(0.35) ? { dies: dies([r.int(1, 40), "propose", "adopt"]) } : {}),
      links: Array.from({ length: r.pick([0, 0, 1, 2, 4]) }, () => ({
        ...sound(r),
        ...(likely(0.7) ? { broken: behindRequest(aBreak(r, r.pick([200, 3000, ofSlots]))) } : {}),
      })),
      deaths: Array.from({ length: r.pick([0, 0, 1]) }, () => ({
        at: r.int(1, r.pick([4, 20, 60])),
        moment: r.pick(["before", "after"] as const),
        ...(likely(0.6) ? { power: r.pick(["nothing", "any"] as const) } : {}),
        told: likely(0.7),
        away: r.pick([10, 3000, 40_000]),
      })),
      changed: likely(0.5),
    };
  });
};

const slotsPlanOf = (seed: number): Plan => {
  const r = rng(seed ^ 0x5107);
  for (let i = 0; i < 8; i++) r.next();
  const likely = (chance: number) => r.next() < chance;
  const times = <A>(counts: ReadonlyArray<number>, make: () => A): ReadonlyArray<A> =>
    Array.from({ length: r.pick(counts) }, make);
  const plain = sound(r);
  const size = () => r.pick([3000, 20_000, ofSlots]);
  const links = times([0, 0, 1, 2, 3], () => ({
    ...sound(r),
    ...(likely(0.85) ? { broken: behindRequest(aBreak(r, size())) } : {}),
  }));
  const hows = ["drop", "twice", "swap", "older"] as const;
  const meddled: ReadonlyArray<LinkPlan> = likely(0.15)
    ? [
        likely(0.3)
          ? { ...sound(r), corrupt: { direction: "up", at: r.int(0, size()) } }
          : { ...sound(r), altered: { at: r.int(2, r.pick([6, 40])), how: r.pick(hows) } },
      ]
    : [];
  let at = 0;
  const deaths = times([0, 0, 0, 1, 2, 3], () => ({
    at: (at += r.int(1, r.pick([12, 60, 300]))),
    moment: r.pick(["before", "after"] as const),
    ...(likely(0.6) ? { power: r.pick(["nothing", "any"] as const) } : {}),
    told: likely(0.7),
    away: r.pick([10, 3000, 40_000]),
  }));
  const twoServers = likely(0.2);
  const faults = ["cut", "unlisted", "missing", "fails", "hangs"] as const;
  const events = ["power", "restored", "restored", "passphrase", "forgotten"] as const;
  // By dice of its own: the stories that there were stay as they are.
  const asks = rng(seed ^ 0xa5ced);
  const nights = times([1, 1, 2, 2, 3], (): NightPlan => ({
    ...(asks.next() < 0.1 ? { asked: true } : {}),
    qvm: likely(0.12) ? r.pick(faults) : "sound",
    pause: r.pick([0, 0, 2500, 20_000]),
    ...(likely(0.4)
      ? {
          dies: {
            at: r.int(1, r.pick([30, 60, 150])),
            moment: r.pick(["before", "after"] as const),
            torn: likely(0.5),
          },
        }
      : {}),
    ...(likely(0.3) ? { before: r.pick(events) } : {}),
    ...(twoServers && likely(0.5) ? { to: "far" as const } : {}),
    rest: r.pick([60_000, 3_600_000, 86_400_000]),
  }));
  const attack = likely(0.3)
    ? {
        seed: r.int(1, 2 ** 31),
        by: r.pick(["key", "carrier", "carrier"] as const),
        holdsBack: likely(0.3) ? r.pick(["trailer", "all"] as const) : undefined,
        ...(likely(0.3) ? { quota: 8 * mebi } : {}),
      }
    : undefined;
  return {
    seed,
    disorder: r.pick([0, 0, 0.1]),
    archive: 0,
    syncing: r.pick([0, 1, 30, 3000]),
    prefix: r.pick(["", "laptop-"]),
    running: likely(0.1),
    keepRunning: likely(0.1),
    links: [...links, ...meddled],
    early: [],
    sound: plain,
    deaths,
    ...(likely(0.1) ? { carrierDies: { call: r.int(0, 4), after: r.int(0, 60_000) } } : {}),
    ...(likely(0.08)
      ? {
          disk: {
            at: r.int(1, 300),
            count: r.pick([1, 1, 2, 1000]),
            reason: r.pick(["no-space", "io"] as const),
          },
        }
      : {}),
    ...(likely(0.12)
      ? { books: { at: r.int(0, r.pick([8, 60])), count: r.pick([1, 2, 100]) } }
      : {}),
    clocks: [],
    qvm: { kind: "sound" },
    pauses: [],
    slots: { hostile: likely(0.2), calmFirst: likely(0.5), nights, moves: movesOf(seed) },
    ...(attack === undefined ? {} : { attack }),
    last: r.pick(["nothing", "any"] as const),
    rest: 0,
  };
};

const fullPlanOf = (seed: number): Plan => {
  const r = rng(seed);
  // mulberry32 starts alike for neighbours.
  for (let i = 0; i < 8; i++) r.next();
  const likely = (chance: number) => r.next() < chance;
  const n = r.pick([
    0,
    0,
    0,
    1,
    1,
    1,
    2,
    2,
    2,
    2,
    2,
    3,
    3,
    4,
    likely(0.5) ? 5 : 2,
    likely(0.2) ? r.pick([6, 7]) : 2,
  ]);
  const size = archiveNumber(n).length;
  const plain = sound(r);
  const links: Array<LinkPlan> = [];
  if (likely(0.5)) {
    const count = r.pick([1, 1, 1, 2, 2, 3, 6]);
    for (let i = 0; i < count; i++) {
      links.push({ ...sound(r), ...(likely(0.85) ? { broken: aBreak(r, size) } : {}) });
    }
  }
  if (likely(0.1)) {
    const direction = r.pick(["up", "down"] as const);
    const at =
      direction === "down"
        ? r.int(0, 900)
        : likely(0.5)
          ? r.int(0, size)
          : size + 4 * frameCount(size) + r.int(0, 1200);
    const link = links.pop() ?? sound(r);
    links.push({ ...link, corrupt: { direction, at } });
  }
  const deaths: Array<Death> = [];
  if (likely(0.35)) {
    const count = r.pick([1, 1, 1, 2, 3]);
    for (let i = 0, at = 0; i < count; i++) {
      at += r.int(1, r.pick([12, 40, 90]));
      deaths.push({
        at,
        moment: r.pick(["before", "after"] as const),
        ...(likely(0.6) ? { power: r.pick(["nothing", "any"] as const) } : {}),
        told: likely(0.7),
        away: r.pick([10, 3000, 40_000]),
      });
    }
  }
  const pauses: Array<Plan["pauses"][number]> = [];
  // An acknowledgement comes two seconds after a block: without pauses there would be none to break.
  if (likely(0.5)) {
    for (let i = r.int(1, 3); i > 0; i--) {
      pauses.push({
        at: r.int(0, size),
        millis: r.pick([10, 2500, 2500, 20_000, 90_000, 200_000]),
      });
    }
  }
  const clocks: Array<Plan["clocks"][number]> = [];
  if (likely(0.08)) {
    clocks.push({
      machine: r.pick(["dom0", "server"] as const),
      after: r.int(0, 10_000),
      by: r.pick([-1, 1]) * r.pick([1000, 90_000, 3_700_000, 8_000_000, 40_000_000_000]),
    });
  }
  const attack = likely(0.3)
    ? {
        seed: r.int(1, 2 ** 31),
        by: r.pick(["key", "carrier", "carrier"] as const),
        holdsBack: likely(0.3) ? r.pick(["trailer", "all"] as const) : undefined,
        ...(likely(0.5) ? { quota: 2 * size + mebi + nightsRoom + r.pick([0, 6 * mebi]) } : {}),
        ...(likely(0.35) ? { revoked: r.pick([0, 10, 1000, 5000, 20_000]) } : {}),
      }
    : undefined;
  if (attack !== undefined && likely(0.4)) {
    const by = r.pick([-1, 1]) * r.pick([3_700_000, 90_000_000, 40_000_000_000]);
    clocks.push({ machine: "server", after: r.int(0, 60_000), by });
  }
  const nights = likely(0.25)
    ? { seed: r.int(1, 2 ** 31), after: r.pick([0, 0, 2000, 30_000]) }
    : undefined;
  const fault = r.next();
  const qvm: Plan["qvm"] =
    fault < 0.92
      ? { kind: "sound" }
      : fault < 0.95
        ? { kind: "cut", at: r.int(0, size), code: r.pick([0, 0, 1]) }
        : fault < 0.98
          ? { kind: "exit", code: r.pick([1, 2, 130, 255]) }
          : { kind: "hangs", at: r.int(0, size) };
  return {
    seed,
    disorder: r.pick([0, 0, 0.1, 0.5]),
    archive: n,
    syncing: r.pick([0, 1, 30, 3000]),
    prefix: r.pick(["", "", "laptop-", "appvms/my-"]),
    running: likely(0.15),
    keepRunning: likely(0.1),
    links,
    early: likely(0.1)
      ? [{ ...sound(r), broken: { ...aBreak(r, size), when: { after: r.int(0, 30) } } }]
      : [],
    sound: plain,
    deaths,
    ...(likely(0.15)
      ? {
          dom0Dies: {
            at: r.int(1, r.pick([30, 70])),
            moment: r.pick(["before", "after"] as const),
            torn: likely(0.3),
          },
        }
      : {}),
    ...(likely(0.1)
      ? { carrierDies: { call: r.int(0, 1), after: r.pick([r.int(0, 100), r.int(0, 5000)]) } }
      : {}),
    ...(likely(0.1)
      ? {
          disk: {
            at: r.int(1, 60),
            count: r.pick([1, 1, 2, 1000]),
            reason: r.pick(["no-space", "io"] as const),
          },
        }
      : {}),
    ...(likely(0.08) ? { books: { at: r.int(0, 14), count: r.pick([1, 2, 100]) } } : {}),
    clocks,
    qvm,
    pauses,
    ...(likely(0.08)
      ? { second: { who: r.pick(["same", "other"] as const), after: r.pick([0, 5, 1000, 20_000]) } }
      : {}),
    ...(attack === undefined ? {} : { attack }),
    ...(nights === undefined ? {} : { nights }),
    last: r.pick(["nothing", "any"] as const),
    // What the attacker has open keeps its room until the server notices that nobody is there.
    rest: r.pick(
      attack?.quota === undefined ? [1000, 60_000, 90_000_000] : [3_600_000, 90_000_000],
    ),
  };
};

/** A plan with a link, deaths, clocks and pauses, and nothing besides: for stories that are made by hand. */
export const planFor = (seed: number) => {
  const {
    attack: _0,
    carrierDies: _1,
    disk: _2,
    dom0Dies: _3,
    books: _4,
    second: _5,
    ...rest
  } = planOf(seed);
  return rest;
};

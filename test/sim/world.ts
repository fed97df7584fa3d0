/**
 * The machines of a story: dom0s, one carrier for each call, one server, and the links between them.
 * Each runs the real program on the layers for tests; what a machine keeps (a disk, a ledger, the
 * state of the qubes) outlives the programs on it.
 */
import { NodeServices } from "@effect/platform-node";
import { Clock, type Context, Deferred, Effect, Exit, Fiber, Layer, Random, Scope } from "effect";
import * as crypto from "node:crypto";
import { Itself } from "#services/Itself";
import { memorySealing } from "#layers/memory/MemorySealing";
import { keysOf } from "#layers/files/FileSigner";
import { type BooksDisk, booksDisk, memoryBooks } from "#layers/memory/MemoryBooks";
import { memoryJournal } from "#layers/memory/MemoryJournal";
import { type LockTable, memoryLocks } from "#layers/memory/MemoryLocks";
import { memoryNotifier, type Notification } from "#layers/memory/MemoryNotifier";
import { memoryPipe, type Pipe } from "#layers/memory/MemoryPipe";
import { aQube, memoryQubes, type QubesTable, qubesTable } from "#layers/memory/MemoryQubes";
import {
  memoryQvmBackup,
  qvmBackupScript,
  type QvmBackupScript,
} from "#layers/memory/MemoryQvmBackup";
import { memoryReporter, type Said } from "#layers/memory/MemoryReporter";
import { Disk, memorySafeFs, type Operation } from "#layers/memory/MemorySafeFs";
import { memorySettings } from "#layers/memory/MemorySettings";
import type { Sink, Source } from "#services/Bytes";
import { Chains } from "#services/Chains";
import { Invocation } from "#services/Invocation";
import { KnownServers } from "#services/KnownServers";
import { Ledger } from "#services/Ledger";
import { Notifier } from "#services/Notifier";
import { Qrexec } from "#services/Qrexec";
import { Qubes } from "#services/Qubes";
import { QvmBackup } from "#services/QvmBackup";
import { QvmRestore } from "#services/QvmRestore";
import { ReadBacks } from "#services/ReadBacks";
import { Reporter } from "#services/Reporter";
import { RunMark } from "#services/RunMark";
import { SafeFs } from "#services/SafeFs";
import { Signer } from "#services/Signer";
import { SshTransport } from "#services/SshTransport";
import { SlotSize } from "#src/archive/parameters";
import { carrier } from "#src/carrier/carrier";
import { dom0 } from "#src/dom0/cli/main";
import { shell } from "#src/shell/main";
import type { PublicKey } from "#src/wire/names";
import { isVerb, parseReply, type Reply } from "#src/wire/request";
import { type Capture, isTicket, packIn, type Trailer, trailerIn } from "#test/sim/attack";
import { type Images, slot } from "#test/sim/images";
import { type Doom, gated, Life } from "#test/sim/life";
import { type Nights, nightsKey } from "#test/sim/nights";
import type { Death, LinkPlan, Plan } from "#test/sim/plan";
import { Universe } from "#test/sim/universe";
import { type Rng, rng } from "#test/support/random";
import { holds, linesOf, rootOf, spread } from "#test/support/reference";

/** What effect/cli wants to have; the programs touch none of it. */
const cliNeeds: Context.Context<NodeServices.NodeServices> = await Effect.runPromise(
  Layer.buildWithScope(NodeServices.layer, Scope.makeUnsafe()),
);

/** Only through `step` is a call counted; the rest of the world costs a process no step. */
const through = <I, S extends object>(
  life: Life,
  key: Context.Service<I, S>,
  layer: Layer.Layer<NoInfer<I>>,
  step?: (member: string) => string | undefined,
): Layer.Layer<I> =>
  Layer.effect(
    key,
    Effect.map(Effect.service(key), (service) => gated(life, service, step)),
  ).pipe(Layer.provide(layer));

/** What qvm-backup does in a night in slots. */
export interface Tapped {
  /** What is there when it begins. */
  readonly images: Images;
  /** The streams that qubesd hands over, each as far as it comes, and the list that it writes. */
  readonly files: ReadonlyArray<Buffer>;
  readonly listing: Buffer;
  readonly passphrase: string;
  /** For the run, besides. */
  readonly words: ReadonlyArray<string>;
  /** Milliseconds before each file. */
  readonly pause: number;
  /** All of it comes, and as it is listed. */
  readonly whole: boolean;
}

/** One run of qbackup in a dom0. */
export interface Run {
  readonly id: string;
  readonly dom0: Dom0;
  /** What qvm-backup writes in it, and whether all of that is an archive that it vouches for. */
  readonly archive: Buffer;
  readonly sound: boolean;
  /** The qube through which it goes. */
  readonly to: string;
  /** A backup in slots; `archive` is of no bytes then. */
  readonly tapped: Tapped | undefined;
  /** `SERVER RUN` of each ticket that it made. */
  readonly numbers: Set<string>;
  readonly script: QvmBackupScript;
  readonly life: Life;
  readonly said: Said;
  readonly notes: Array<Notification>;
  readonly out: Array<string>;
  /** Chosen by the program; undefined before that. */
  session: string | undefined;
  /** Most that the server said to have, as dom0 heard it. In bytes. */
  acked: number;
  /** The window: most that was read from qvm-backup and not acknowledged. In bytes. */
  widest: number;
  /** The server said that it will not, or was told that it need not. */
  forsaken: boolean;
  fiber?: Fiber.Fiber<number>;
  code: number | undefined;
}

/** One dom0: its books and a table of qubes. */
export interface Dom0 {
  readonly name: string;
  /** The public key of what it signs. */
  key: PublicKey;
  readonly formerKeys: Array<PublicKey>;
  readonly books: BooksDisk;
  readonly table: QubesTable;
  readonly locks: LockTable;
  calls: number;
  /** Of these, uploads. */
  puts: number;
  wrong: number;
}

interface Process {
  readonly life: Life;
  fiber?: Fiber.Fiber<number>;
  /** Ends the link with it, telling the client or not. */
  readonly hangUp: (told: boolean) => Effect.Effect<void>;
}

/** Files of a store by their paths. */
export type Copy = Map<
  string,
  { readonly bytes: Buffer; readonly mode: number; readonly modified: number }
>;

const verdicts = new Map<string, boolean>();
/** As `holds`: the same records are looked at again and again. */
const held = (...of: Parameters<typeof holds>): boolean => {
  const question = of.join(" ");
  const verdict = verdicts.get(question) ?? holds(...of);
  if (verdicts.size > 1000) verdicts.clear();
  verdicts.set(question, verdict);
  return verdict;
};

const secret = (text: string) => crypto.createHash("sha256").update(text).digest();

const failing = new Set<Operation["operation"]>([
  "make",
  "create",
  "write",
  "truncate",
  "protect",
  "sync",
  "link",
  "replace",
  "remove",
  "sync-directory",
]);
const needsSpace = new Set<Operation["operation"]>(["make", "create", "write", "link", "replace"]);

export class World {
  readonly plan: Plan;
  readonly random: Rng;
  readonly universe: Universe;
  readonly trace: Array<string> = [];
  readonly runs: Array<Run> = [];
  readonly scope = Scope.makeUnsafe();
  readonly disk = new Disk();
  readonly serverSaid: Said = { lines: [], progress: [] };
  /** Names for which a server process said `stored`, and the session. */
  readonly stored = new Map<string, string>();
  /** A disk that once failed may have lost what it had said to have. */
  diskFailed = false;
  /** Options of the forced command. */
  options: ReadonlyArray<string> = [];
  booksFailed = false;
  clockStepped = false;
  /** What passed through the carrier; kept where somebody is there to make use of it. */
  readonly captures: Array<Capture> = [];
  /** Another dom0 beside those of the runs, where the story has one. */
  nights: Nights | undefined;
  /** Done when the server was ready for an upload of the first run. */
  readonly readied = Deferred.makeUnsafe<void>();
  /** Public key of the server, once it was asked, and those that it had before. */
  serverKey = "";
  readonly formerKeys: Array<string> = [];
  /** Archives that came to no new place as they were, by their names. */
  readonly lost = new Set<string>();
  /** Faults of the calls, and of the server, that come though all else is calm; the links of each call in turn. */
  besides:
    | { readonly links: Array<LinkPlan>; readonly deaths: Array<Death>; steps: number }
    | undefined;
  corrupted = false;
  powerFailed = 0;
  /** Faults are over: what happens now has to go well. */
  calm = false;
  /** Called when the power has just failed, before anything runs again. */
  afterPowerLoss: () => void = () => {};
  readonly #processes = new Set<Process>();
  /** Of each signer and series the highest run for whose upload it was ready. */
  readonly #ready = new Map<string, number>();
  /** The same of what was seen since a crash. */
  readonly #highest = new Map<string, number>();
  #serverLocks: LockTable = new Map();
  #serverAway = false;
  #serverWrong = 0;
  #serverSteps = 0;
  #deaths: Array<Death>;
  #entropy = 0;
  /** One that a carrier has kept. */
  #frame: Uint8Array | undefined;
  readonly #serverClock: Clock.Clock;

  constructor(plan: Plan) {
    this.plan = plan;
    this.random = rng(plan.seed ^ 0x5eed);
    this.universe = new Universe(rng(plan.seed ^ 0x0dd5), plan.disorder);
    this.#deaths = [...plan.deaths];
    this.#serverClock = this.universe.clock(() => this.#serverWrong);
    this.disk.plant("appvms", "directory");
    this.disk.syncing = plan.syncing === 0 ? Effect.void : Effect.sleep(plan.syncing);
    let operations = 0;
    this.disk.fault = ({ operation }) => {
      const fault = plan.disk;
      if (fault === undefined || this.calm || !failing.has(operation)) return undefined;
      operations += 1;
      if (operations < fault.at || operations >= fault.at + fault.count) return undefined;
      if (fault.reason === "no-space" && !needsSpace.has(operation)) return undefined;
      this.diskFailed = true;
      this.note(`disk ${fault.reason} at ${operation}`);
      return fault.reason;
    };
    for (const { after, by, machine } of plan.clocks) {
      const step = Effect.sync(() => {
        if (this.calm) return;
        this.clockStepped = true;
        this.note(`clock of ${machine} steps by ${by}`);
        if (machine === "server") this.#serverWrong += by;
        else for (const run of this.runs) run.dom0.wrong += by;
      });
      this.go(Effect.delay(step, after));
    }
  }

  note(what: string): void {
    this.trace.push(`${(this.universe.now - this.universe.begin).toFixed(0)} ${what}`);
  }
  /** Starts something in this world; it lives as long as the world. */
  go<A, E>(effect: Effect.Effect<A, E>): Fiber.Fiber<A, E> {
    return Effect.runForkWith(cliNeeds as Context.Context<never>)(
      effect.pipe(
        Effect.provideService(Clock.Clock, this.universe.clock()),
        Random.withSeed(`${this.plan.seed}`),
      ),
      { scheduler: this.universe },
    );
  }
  entropy(n: number): Uint8Array {
    this.#entropy += 1;
    const text = `${this.plan.seed} ${this.#entropy}`;
    return new Uint8Array(crypto.createHash("sha256").update(text).digest().subarray(0, n));
  }

  // The server.

  /** Kills processes; the finalizers that run then find every gate shut. */
  #kill(processes: ReadonlyArray<Process>, told: boolean): Effect.Effect<void> {
    for (const process of processes) {
      process.life.dead = true;
      this.#processes.delete(process);
    }
    return Effect.forEach(
      processes,
      (process) => Effect.andThen(Fiber.interrupt(process.fiber!), process.hangUp(told)),
      { discard: true },
    );
  }

  /** The power of the server fails; it is back when this returns. */
  powerLoss(death: Pick<Death, "power" | "told" | "away">): Effect.Effect<void> {
    return Effect.suspend(() => {
      this.note(`the server loses power`);
      this.#serverAway = true;
      const ending = this.#kill([...this.#processes], death.told);
      // At once: a sync that was under way has not happened.
      this.disk.crash(death.power === "any" ? () => this.random.next() : undefined);
      this.#serverLocks = new Map();
      // What was seen of a run was perhaps on no disk yet, unless it was told that it is.
      this.#highest.clear();
      if (!this.diskFailed) for (const [of, run] of this.#ready) this.#highest.set(of, run);
      this.afterPowerLoss();
      return Effect.andThen(ending, Effect.sleep(death.away));
    }).pipe(
      Effect.andThen(
        Effect.sync(() => {
          this.#serverAway = false;
          this.note("the server is back");
        }),
      ),
    );
  }

  #doom(life: Life, what: string): Doom | undefined {
    if (this.calm && this.besides === undefined) return undefined;
    const steps = this.besides === undefined ? ++this.#serverSteps : ++this.besides.steps;
    const deaths = this.besides?.deaths ?? this.#deaths;
    const next = deaths[0];
    if (next === undefined || steps < next.at) return undefined;
    deaths.shift();
    this.note(`${life.name} dies ${next.moment} ${what}`);
    return {
      moment: next.moment,
      dies: () => {
        const itself = [...this.#processes].filter((process) => process.life === life);
        // Its fiber is the one that runs just now: it cannot end before its turn has.
        const end = next.power === undefined ? this.#kill(itself, next.told) : this.powerLoss(next);
        this.go(end);
      },
    };
  }

  /**
   * qbackup-shell on the server, as sshd starts it for a command, or its owner with other `args`. Its
   * exit code, when it has one.
   */
  serve(
    command: string | undefined,
    stdin: Source,
    stdout: Sink,
    hangUp: Process["hangUp"] = () => Effect.void,
    args: ReadonlyArray<string> = this.options,
  ) {
    const name = `shell ${(command ?? args.join(" ")).split(" ")[1]}`;
    const life = new Life(name, (mine, what) => this.#doom(mine, what));
    const disk = memorySafeFs(this.disk);
    const layer = Layer.mergeAll(
      through(life, SafeFs, disk, (member) => (readOnly.has(member) ? undefined : member)),
      memoryLocks(this.#serverLocks),
      through(life, Reporter, memoryReporter(this.serverSaid)),
      memoryJournal(),
      Layer.succeed(
        Invocation,
        gated(life, {
          args,
          env: { SSH_ORIGINAL_COMMAND: command },
          stdin: gated(life, stdin),
          stdout: gated(life, stdout),
          entropy: (n) => this.entropy(n),
        }),
      ),
    );
    const process: Process = { life, hangUp };
    this.#processes.add(process);
    process.fiber = this.go(
      Effect.andThen(
        Effect.yieldNow,
        shell.pipe(
          Effect.provide(layer, { local: true }),
          Effect.provideService(Clock.Clock, this.#serverClock),
        ),
      ),
    );
    return Fiber.await(process.fiber).pipe(
      Effect.tap(() =>
        Effect.sync(() => {
          this.#processes.delete(process);
        }),
      ),
    );
  }

  /** Is the server's machine off? */
  get away(): boolean {
    return this.#serverAway;
  }
  /** Processes of the server that have not ended. */
  get serving(): number {
    return this.#processes.size;
  }

  /** What the server says to a command without any input, or to its owner. */
  ask(command: string | undefined, args = this.options): Effect.Effect<string> {
    return Effect.gen({ self: this }, function* () {
      const up = memoryPipe();
      const down = memoryPipe(Number.MAX_SAFE_INTEGER);
      yield* up.sink.end;
      const exit = yield* this.serve(command, up.source, down.sink, undefined, args);
      if (!Exit.isSuccess(exit) || exit.value !== 0) {
        throw new Error(`the server does not answer ${command ?? args.join(" ")}`);
      }
      yield* down.sink.end;
      const into = new Uint8Array(1 << 16);
      const n = yield* Effect.orDie(down.source.read(into, into.length));
      return Buffer.from(into.subarray(0, n)).toString();
    });
  }

  /** What the server lists, asked on the server itself. */
  list(): Effect.Effect<ReadonlyArray<Extract<Reply<"list">, { type: "archive" }>>> {
    return Effect.map(this.ask("qbackup/1 list"), (said) =>
      said.split("\n").flatMap((line) => {
        const reply = parseReply("list", line);
        return reply?.type === "archive" ? [reply] : [];
      }),
    );
  }

  /** The server's owner makes the store, and says whose uploads it takes; nothing goes wrong in it. */
  admit(dom0s: ReadonlyArray<Pick<Dom0, "key">>): Effect.Effect<void> {
    return Effect.gen({ self: this }, function* () {
      const { calm } = this;
      this.calm = true;
      // Where a commit takes long, it is told to come again.
      const asked = (...args: ReadonlyArray<string>) =>
        Effect.suspend(() => this.ask(undefined, args)).pipe(
          Effect.catchDefect((busy) => Effect.delay(Effect.fail(busy), 10_000)),
          Effect.retry({ times: 30 }),
          Effect.orDie,
        );
      const said = yield* asked("init");
      this.serverKey = /^key +(\S+)$/m.exec(said)![1]!;
      for (const { key } of dom0s) yield* asked("signers", "add", key);
      this.calm = calm;
    });
  }

  /** What is on the server's disk, as it can be copied to another one. */
  copied(): Copy {
    return new Map(
      this.disk.files().map((path) => {
        const { mode, modified } = this.disk.find(path) as { mode: number; modified: number };
        return [path, { bytes: this.disk.bytes(path)!, mode, modified }];
      }),
    );
  }
  /** The store is on another machine from now on, as its owner has copied it; under a key of its own, if `rekeyed`. */
  move(copy: Copy, rekeyed: boolean): Effect.Effect<void> {
    return Effect.gen({ self: this }, function* () {
      yield* this.admit([]);
      this.note(`the store moves${rekeyed ? ", and has another key there" : ""}`);
      yield* this.#kill([...this.#processes], true);
      this.#serverLocks = new Map();
      const fresh = new Disk();
      for (const [path, { bytes, mode, modified }] of copy) {
        const parts = path.split("/").slice(0, -1);
        parts.forEach((_, i) => {
          const directory = parts.slice(0, i + 1).join("/");
          if (fresh.find(directory) === undefined) fresh.plant(directory, "directory");
        });
        if (rekeyed && path === ".qbackup/identity") continue;
        fresh.plant(path, bytes, mode);
        (fresh.find(path) as { modified: number }).modified = modified;
      }
      this.disk.root = fresh.root;
      this.disk.generation += 1;
      // What was signed for another key, or came behind the copy, says nothing of the tickets here.
      this.#ready.clear();
      this.#highest.clear();
      if (rekeyed) this.formerKeys.push(this.serverKey);
      yield* this.admit([]);
    });
  }

  /** The owner takes this key for no signer any more; false where that did not come to its end. */
  revoke({ key }: Dom0): Effect.Effect<boolean> {
    return Effect.exit(this.ask(undefined, ["signers", "remove", key])).pipe(
      Effect.map(Exit.isSuccess),
    );
  }
  /** Clocks are set right. */
  setClocks(): void {
    this.#serverWrong = 0;
    for (const { dom0 } of this.runs) dom0.wrong = 0;
  }

  /** Trailers that dom0s have sent, by session. */
  get trailers(): ReadonlyMap<string, Trailer> {
    const found = new Map<string, Trailer>();
    for (const capture of this.captures) {
      const trailer = trailerIn(capture);
      if (trailer !== undefined) found.set(JSON.parse(trailer.manifest).session as string, trailer);
    }
    return found;
  }
  /** The highest run that the server has admitted, by `SIGNER SERIES`. */
  get highestRuns(): ReadonlyMap<string, number> {
    const found = new Map<string, number>();
    for (const file of this.disk.files().filter((one) => isRuns.test(one))) {
      // put NAME SESSION BASE SERIES RUN BYTES TIME SIGNER SERVER
      const [, , , , series, run, , , signer, server] = this.#text(file).split("\n")[0]!.split(" ");
      if (this.formerKeys.includes(server!)) continue;
      found.set(`${signer} ${series}`, Number(run));
    }
    return found;
  }
  #text(path: string): string {
    return this.disk.bytes(path)?.toString("latin1") ?? "";
  }
  /**
   * What vouches for archives was signed for just these, by dom0 and by the server; gives their names,
   * and who signed them.
   */
  checkRecords(when: string): ReadonlyMap<string, string> {
    const names = new Map<string, string>();
    const { nights } = this;
    const keys = new Set<string>(this.runs.flatMap(({ dom0 }) => [dom0.key, ...dom0.formerKeys]));
    const servers = [this.serverKey, ...this.formerKeys];
    if (nights !== undefined) keys.add(nightsKey.publicKey);
    const sent = this.plan.attack === undefined ? undefined : this.trailers;
    for (const file of this.disk.files()) {
      // One that begins with another character is what the commit is tried with.
      const name = /^((?:.*\/)?[A-Za-z0-9][^/]*)\.manifest\.json$/.exec(file)?.[1];
      if (file.startsWith(".qbackup/") || name === undefined || this.lost.has(name)) continue;
      const wrong = (what: string) => this.broken(`P8 ${when}: ${name} ${what}`);
      let record: Record<string, string>;
      try {
        record = JSON.parse(this.#text(file));
      } catch {
        wrong("has a torn record");
        continue;
      }
      const { manifest = "{}", receipt = "{}", receiptSignature = "", signature = "" } = record;
      const { members, name: said, root, session, signer } = JSON.parse(manifest);
      names.set(name, signer);
      const known = nights?.manifests.has(manifest) === true;
      if (sent !== undefined && !known && sent.get(session)?.manifest !== manifest) {
        wrong("is vouched for by what no dom0 has sent");
      } else if (!keys.has(signer) || !held(signer, "manifest", manifest, signature)) {
        wrong("is not signed by a dom0");
      } else if (
        this.serverKey &&
        !servers.some((server) => held(server, "receipt", receipt, receiptSignature))
      ) {
        wrong("is not signed by the server");
      } else if (said !== name) wrong(`is the archive ${said}`);
      const lines = spread(this.#text(`.qbackup/recipes/${session}`)).map(
        ([pack, index]) => linesOf(this.#text(`.qbackup/tables/${pack}`))[index] ?? "",
      );
      if (lines.length !== members || rootOf(lines) !== root) wrong("is not what was signed");
    }
    for (const [of, run] of this.highestRuns) {
      const before = this.#highest.get(of) ?? 0;
      if (run < before) this.broken(`P8 ${when}: the highest run went from ${before} to ${run}`);
      this.#highest.set(of, run);
    }
    const bug = this.serverSaid.lines.find(({ text }) => text.startsWith("a bug"));
    if (bug !== undefined) this.broken(`P3 ${when}: ${bug.text}`);
    const { quota } = this.plan.attack ?? {};
    if (quota !== undefined && this.disk.used > quota) {
      this.broken(`P3 ${when}: ${this.disk.used} bytes, and the quota is ${quota}`);
    }
    return names;
  }

  // The link and the carrier.

  #pass(
    plan: Omit<LinkPlan, "broken">,
    way: "up" | "down",
    broken: LinkPlan["broken"],
    cut: Effect.Effect<void>,
  ) {
    const random = rng(plan.seed ^ (way === "up" ? 1 : 2));
    const limit =
      broken === undefined
        ? undefined
        : way in broken.when
          ? (broken.when as { up: number })[way as "up"]
          : undefined;
    let passed = 0;
    return (bytes: Uint8Array): Effect.Effect<ReadonlyArray<Uint8Array>> => {
      const from = passed;
      passed += bytes.length;
      const corrupt = plan.corrupt;
      if (corrupt?.direction === way && corrupt.at >= from && corrupt.at < passed && !this.calm) {
        this.corrupted = true;
        this.note(`a bit flips at ${way} ${corrupt.at}`);
        bytes[corrupt.at - from]! ^= 1 << (corrupt.at % 8);
      }
      let rest = bytes;
      if (limit !== undefined && limit < passed)
        rest = bytes.subarray(0, Math.max(0, limit - from));
      const parts: Array<Uint8Array> = [];
      for (let n = random.int(1, plan.pieces); n > 1 && rest.length > 1; n--) {
        const at = random.int(1, rest.length - 1);
        parts.push(rest.subarray(0, at));
        rest = rest.subarray(at);
      }
      if (rest.length > 0) parts.push(rest);
      const wait = plan.delay === 0 ? 0 : random.int(0, plan.delay);
      const delivered =
        wait === 0 ? Effect.succeed(parts) : Effect.delay(Effect.succeed(parts), wait);
      // The bytes before the cut are on their way first.
      return limit !== undefined && limit < passed && limit >= from
        ? Effect.tap(delivered, () =>
            Effect.sync(() => void this.go(Effect.andThen(Effect.yieldNow, cut))),
          )
        : delivered;
    };
  }

  /** What a carrier makes of the frames that it is given. */
  #altering(alter: LinkPlan["altered"]) {
    let count = 0;
    let kept: Uint8Array | undefined;
    return (bytes: Uint8Array): ReadonlyArray<Uint8Array> => {
      if (alter === undefined) return [bytes];
      count += 1;
      if (kept !== undefined) {
        const before = kept;
        kept = undefined;
        return [bytes, before];
      }
      const older = this.#frame;
      if (bytes.length > 600) this.#frame = Buffer.from(bytes);
      if (count !== alter.at) return [bytes];
      this.corrupted = true;
      this.note(`the carrier alters frame ${count}: ${alter.how}`);
      if (alter.how === "swap") kept = Buffer.from(bytes);
      if (alter.how === "older" && older !== undefined) return [older];
      return alter.how === "twice" ? [bytes, bytes] : [];
    };
  }

  /** One call from dom0, through a carrier of its own, to the server. */
  #call(run: Run, service: string) {
    return Effect.gen({ self: this }, function* () {
      const number = run.dom0.calls;
      run.dom0.calls += 1;
      // What goes wrong with links is planned for uploads; before the first there is one call more.
      const puts = service.endsWith("+put");
      const planned = puts ? this.plan.links[run.dom0.puts] : this.plan.early[number];
      if (puts) run.dom0.puts += 1;
      const ours = this.besides?.links.shift();
      const plan: LinkPlan = ours ?? (this.calm ? undefined : planned) ?? this.plan.sound;
      const { broken } = plan;
      let lost = false;
      const gone = Deferred.makeUnsafe<void>();
      const lose = (
        what: string,
        dom0Knows: boolean,
        serverKnows: "ended" | "failed" | undefined,
        keep: boolean,
      ) =>
        Effect.suspend(() => {
          if (!lost) this.note(`${run.id} call ${number}: ${what}`);
          lost = true;
          return Effect.andThen(
            up.lose({
              reader: serverKnows,
              writer: dom0Knows,
              keep: keep && serverKnows === "ended",
            }),
            down.lose({
              reader: dom0Knows ? "ended" : undefined,
              writer: serverKnows !== undefined,
              keep: keep && dom0Knows,
            }),
          ).pipe(Effect.andThen(Deferred.succeed(gone, undefined)));
        });
      const cut =
        broken === undefined
          ? Effect.void
          : lose("the link breaks", broken.dom0Knows, broken.serverKnows, broken.keep);
      const up: Pipe = memoryPipe(plan.capacity, this.#pass(plan, "up", broken, cut));
      const down: Pipe = memoryPipe(plan.capacity, this.#pass(plan, "down", broken, cut));
      if (broken !== undefined && "after" in broken.when) {
        this.go(Effect.delay(cut, broken.when.after));
      }

      const { attack } = this.plan;
      const capture: Capture = {
        by: run,
        get archive() {
          return run.tapped === undefined ? run.archive : packIn(this);
        },
        sign: (what, text) => keysOf(run.dom0.books.secrets!, false).sign(what, text),
        command: undefined,
        sent: [],
      };
      if (puts && attack !== undefined) this.captures.push(capture);
      /** The carrier keeps for itself what dom0 sends now. */
      const heldBack = () =>
        puts &&
        !this.calm &&
        ((attack?.holdsBack === "all" && capture.command !== undefined) ||
          (attack?.holdsBack === "trailer" &&
            run.dom0.books.unfinished?.submission?.session === run.session));
      const program = (mine: Invocation["Service"], command: string) =>
        Effect.gen({ self: this }, function* () {
          capture.command = command;
          const keys = [this.serverKey, ...this.formerKeys];
          if (attack !== undefined && puts && !keys.some((key) => isTicket(command, key))) {
            this.broken(`${run.id}: no ticket: ${command}`);
          }
          if (this.#serverAway) {
            yield* Effect.sleep(this.random.int(10, 5000));
            return { code: 255, reason: "unreachable" as const, said: ["no route"] };
          }
          [, , , session] = command.split(" ");
          if (puts && run.tapped !== undefined && run.session !== session) {
            run.session = session;
            run.acked = 0;
          }
          const stdout: Sink = {
            ...mine.stdout,
            write: (bytes) => {
              this.#heard(run, command, bytes);
              return mine.stdout.write(bytes);
            },
          };
          const served = this.go(
            Effect.gen({ self: this }, function* () {
              const exit = yield* this.serve(command, mine.stdin, stdout, (told) =>
                lose("the server dies", told, "failed", false),
              );
              // What the kernel does for a process that is gone.
              yield* up.lose({ writer: true });
              yield* down.sink.end;
              return Exit.isSuccess(exit) ? exit.value : 137;
            }),
          );
          const code = yield* Effect.raceFirst(
            Fiber.join(served),
            Effect.as(Deferred.await(gone), undefined),
          );
          return code === undefined
            ? { code: 255, reason: "lost" as const, said: [] }
            : { code, reason: "done" as const, said: [] };
        });
      const said: Said = { lines: [], progress: [] };
      const [, verb] = service.split("+");
      const mine: Invocation["Service"] = {
        args: verb === undefined ? [] : [verb],
        env: { QREXEC_REMOTE_DOMAIN: "dom0" },
        stdin: up.source,
        stdout: down.sink,
        entropy: () => new Uint8Array(0),
      };
      const fiber = this.go(
        carrier.pipe(
          Effect.provide(
            Layer.mergeAll(
              Layer.succeed(Invocation, mine),
              Layer.succeed(SshTransport, {
                read: () => Effect.die("only the paranoid mode reads"),
                handOver: (_to: string, command: string) => program(mine, command),
              }),
              memoryReporter(said),
              memorySettings({ SSH_CONN: "backup@server" }),
            ),
            { local: true },
          ),
        ),
      );
      const doom = this.plan.carrierDies;
      if (doom?.call === number && !this.calm) {
        const dies = Effect.andThen(
          lose("the carrier dies", true, "failed", false),
          Fiber.interrupt(fiber),
        );
        this.go(Effect.delay(dies, doom.after));
      }
      // dom0 lets go: qvm-run and ssh close what they hold; what is under way still arrives.
      yield* Effect.addFinalizer(() =>
        Effect.suspend(() => {
          if (lost) return up.lose({ writer: true, keep: true });
          lost = true;
          return Effect.andThen(
            up.lose({ reader: "ended", writer: true, keep: true }),
            down.lose({ reader: "ended", writer: true }),
          );
        }),
      );
      let line = "";
      /** What the call is about; not every one is about the archive of this run. */
      let session: string | undefined;
      const stdout: Source = {
        received: down.source.received,
        read: (into, atLeast) =>
          Effect.tap(down.source.read(into, atLeast), (n) =>
            Effect.sync(() => {
              const lines = (line + Buffer.from(into.subarray(0, n)).toString("latin1")).split(
                "\n",
              );
              line = lines.pop()!;
              if (session === run.session) for (const whole of lines) this.#delivered(run, whole);
            }),
          ),
      };
      const altered = this.#altering(puts && !this.calm ? plan.altered : undefined);
      const stdin: Sink = {
        end: up.sink.end,
        write: (bytes) => {
          if (puts && attack !== undefined) capture.sent.push(Buffer.from(bytes));
          return heldBack() ? Effect.void : Effect.forEach(altered(bytes), up.sink.write);
        },
      };
      return {
        stdin,
        stdout,
        ended: Fiber.await(fiber).pipe(
          Effect.map((exit) => ({
            code: Exit.isSuccess(exit) ? exit.value : 1,
            said: said.lines.map(({ text }) => text),
          })),
        ),
      };
    });
  }

  /** What a server process says, whether or not it arrives. */
  #heard(run: Run, command: string, bytes: Uint8Array): void {
    const [, verb = "", name, session] = command.split(" ");
    if (!isVerb(verb)) return;
    for (const line of Buffer.from(bytes).toString().split("\n")) {
      const reply = parseReply(verb, line);
      if (reply === undefined) continue;
      this.note(`${verb} says ${line.slice(0, 60)}`);
      if (reply.type === "stored") this.stored.set(name!, session!);
      if (reply.type === "error" && reply.code !== "busy") run.forsaken = true;
      if (reply.type === "ready" && verb === "put") {
        const [, , , , , series, number, , , signer] = command.split(" ");
        const of = `${signer} ${series}`;
        this.#ready.set(of, Math.max(this.#ready.get(of) ?? 0, Number(number)));
      }
      if (reply.type === "ready" && "offset" in reply && session === run.session) {
        if (run.id === "first") Deferred.doneUnsafe(this.readied, Effect.void);
        if (reply.offset < run.acked && this.mustKeep(run)) {
          this.broken(`${run.id}: ready ${reply.offset} after an acknowledgement of ${run.acked}`);
        }
      }
    }
  }
  readonly #violations: Array<string> = [];
  broken(promise: string): void {
    this.note(`BROKEN: ${promise}`);
    this.#violations.push(promise);
  }
  get violations(): ReadonlyArray<string> {
    return this.#violations;
  }
  /** Is there a run that relies on what the server has acknowledged? */
  mustKeep(run: Run): boolean {
    return (
      run.code === undefined &&
      !run.life.dead &&
      !run.forsaken &&
      !this.diskFailed &&
      !this.clockStepped &&
      !this.corrupted
    );
  }
  /** A line that dom0 reads. */
  #delivered(run: Run, line: string): void {
    const reply = parseReply("put", line);
    if ((reply?.type === "ack" || reply?.type === "ready") && "offset" in reply) {
      run.acked = Math.max(run.acked, reply.offset);
    }
  }

  // dom0.

  dom0(name: string): Dom0 {
    const table = qubesTable([
      aQube("work", 2),
      aQube("mail", 3),
      aQube("vault", 4),
      aQube("net", 9, { included: false, state: this.plan.running ? "Running" : "Halted" }),
      ...(this.plan.slots === undefined ? [] : [aQube("far", 10, { included: false })]),
    ]);
    const books = booksDisk();
    books.secrets = { signing: secret(`${name} signs`), series: secret(`${name} counts`) };
    const { signer: key } = keysOf(books.secrets, false);
    const { books: fault } = this.plan;
    let calls = 0;
    books.fails = (call) => {
      if (fault === undefined || this.calm || !writing.test(call)) return undefined;
      calls += 1;
      if (calls <= fault.at || calls > fault.at + fault.count) return undefined;
      this.booksFailed = true;
      this.note(`the books fail at ${call}`);
      return "no space left on the device";
    };
    const none = { formerKeys: [], locks: new Map(), calls: 0, puts: 0, wrong: 0 };
    return { name, key, books, table, ...none };
  }
  /** Its signing key is lost, and another one is made; series stay what they are. */
  renew(where: Dom0): void {
    const { books, formerKeys, key, name } = where;
    formerKeys.push(key);
    const signing = secret(`${name} signs ${formerKeys.length}`);
    books.secrets = { ...books.secrets!, signing };
    where.key = keysOf(books.secrets, false).signer;
  }

  start(
    where: Dom0,
    what: {
      readonly id: string;
      readonly archive: Buffer;
      readonly qvm: Plan["qvm"];
      readonly doomed: boolean;
      readonly tapped?: Tapped;
      /** Instead of that of the plan. */
      readonly dies?: Plan["dom0Dies"];
      readonly to?: string;
      /** Another command than a backup. */
      readonly command?: ReadonlyArray<string>;
    },
    /** Another far side than the carriers and the server of this world. */
    far?: Layer.Layer<Qrexec>,
  ): Run {
    const { archive, command, qvm, tapped, to = "net" } = what;
    const { keepRunning, pauses, prefix } = this.plan;
    const dom0Dies = tapped === undefined ? this.plan.dom0Dies : what.dies;
    const written =
      qvm.kind === "cut" || qvm.kind === "hangs" ? archive.subarray(0, qvm.at) : archive;
    // The others take a while too, or the server would have no time to tidy up beside them.
    const calmly = [{ at: Math.floor(written.length / 2), millis: 15_000 }];
    const stops = what.doomed ? pauses.filter(({ at }) => at < written.length) : calmly;
    const cuts = [...stops].sort((a, b) => a.at - b.at);
    const chunks = [...cuts, { at: written.length, millis: 0 }].map(({ at }, i) => ({
      bytes: written.subarray(i === 0 ? 0 : cuts[i - 1]!.at, at),
      ...(i === 0 ? {} : { after: cuts[i - 1]!.millis }),
      percent: Math.floor((100 * at) / Math.max(1, written.length)),
    }));
    const code = qvm.kind === "cut" || qvm.kind === "exit" ? qvm.code : 0;
    const script = qvmBackupScript({
      chunks,
      ...(tapped === undefined
        ? {}
        : {
            chunks: [{ bytes: tapped.listing, percent: 100 }],
            files: tapped.files,
            fileAfter: tapped.pause,
            passphrase: tapped.passphrase,
          }),
      hangs: qvm.kind === "hangs",
      ends: { code, said: code === 0 ? [] : ["Backup error"] },
    });
    const life = new Life(what.id, (mine, step) => {
      const calm = this.calm && this.besides === undefined;
      if (!what.doomed || calm || dom0Dies === undefined) return undefined;
      if (dom0Dies.at !== (typeof dom0Dies.at === "string" ? step : mine.steps)) return undefined;
      this.note(`${what.id} dies ${dom0Dies.moment} ${step}`);
      return { moment: dom0Dies.moment, dies };
    });
    const dies = () => {
      const { books } = where;
      const last = books.text.trimEnd().lastIndexOf("\n") + 1;
      const doing = books.calls.at(-1) ?? "";
      // Only while the line is being written can it be torn.
      const during = dom0Dies?.torn === true && dom0Dies.moment === "after";
      if (during && doing.startsWith("note ")) {
        for (const [name, bytes] of books.chains) {
          const begin = bytes.lastIndexOf("\n", -2) + 1;
          if (!name.endsWith(".journal") || begin === 0) continue;
          books.chains.set(name, bytes.subarray(0, begin + ((bytes.length - begin) >> 1)));
          this.note("the last line of the journal is torn");
        }
      }
      if (dom0Dies?.torn === true && doing.startsWith("append")) {
        books.text = books.text.slice(0, last + Math.floor((books.text.length - last) / 2));
        this.note("the last line of the ledger is torn");
      }
      this.go(Fiber.interrupt(run.fiber!));
    };
    const run: Run = {
      id: what.id,
      dom0: where,
      archive,
      sound:
        (qvm.kind === "sound" && tapped?.whole !== false) ||
        (qvm.kind === "cut" && qvm.at === archive.length && code === 0),
      to,
      tapped,
      numbers: new Set(),
      script,
      life,
      said: { lines: [], progress: [] },
      notes: [],
      out: [],
      session: undefined,
      acked: 0,
      widest: 0,
      forsaken: false,
      code: undefined,
    };
    this.runs.push(run);
    const counted = (...members: ReadonlyArray<string>) => {
      const set = new Set(members);
      return (member: string) => (set.has(member) ? member : undefined);
    };
    const books = memoryBooks(where.books);
    const layer = Layer.mergeAll(
      Layer.succeed(
        Invocation,
        gated(life, {
          args: command ?? [
            ...(keepRunning ? ["-x"] : []),
            ...(prefix === "" ? [] : ["-f", prefix]),
            ...`-t ${to} -p /pass --window 16 --link-timeout 6 --qubes-timeout 5`.split(" "),
            // In slots it is the default set, which changes.
            ...(tapped?.words ?? ["--format", "qvm-backup", "work", "mail", "vault"]),
          ],
          env: {},
          stdin: { read: () => Effect.die("stdin is read"), received: () => 0 },
          stdout: {
            write: (b) => Effect.sync(() => void run.out.push(Buffer.from(b).toString())),
            end: Effect.void,
          },
          entropy: (n) => {
            const bytes = this.entropy(n);
            if (tapped === undefined) run.session = Buffer.from(bytes).toString("hex");
            return bytes;
          },
        }),
      ),
      through(life, Reporter, memoryReporter(run.said)),
      through(life, Notifier, memoryNotifier(run.notes)),
      through(life, Ledger, books, counted("append")),
      through(life, RunMark, books, counted("read", "write")),
      through(life, KnownServers, books, counted("pin", "pinned")),
      through(life, ReadBacks, books),
      through(life, Chains, books, counted("read", "begin", "note", "propose", "adopt", "forget")),
      through(life, Signer, this.#numbered(run, books), counted("nextRun")),
      through(life, Qubes, memoryQubes(where.table), counted("list", "power", "start", "shutdown")),
      through(
        life,
        QvmBackup,
        this.#watched(run, memoryQvmBackup(script)),
        counted("start", "recover"),
      ),
      through(
        life,
        Qrexec,
        far ??
          Layer.succeed(Qrexec, {
            call: (_qube: string, service: string) => this.#call(run, service),
          }),
        counted("call", "write"),
      ),
      memoryLocks(where.locks),
      memorySettings({}),
      Layer.mock(QvmRestore, {}),
      memorySealing,
      Layer.mock(Itself, { runtime: "" }),
    );
    run.fiber = this.go(
      Effect.andThen(
        Effect.yieldNow,
        dom0.pipe(
          Effect.provideService(SlotSize, slot),
          Effect.provide(layer, { local: true }),
          Effect.provide(cliNeeds),
          Effect.provideService(
            Clock.Clock,
            this.universe.clock(() => where.wrong, this.plan.suspended),
          ),
        ),
      ),
    );
    return run;
  }

  /** Sees which numbers a run is given. */
  #numbered(run: Run, layer: Layer.Layer<Signer>): Layer.Layer<Signer> {
    return Layer.effect(
      Signer,
      Effect.map(Effect.service(Signer), (service) => ({
        ...service,
        nextRun: (server, series, least) =>
          Effect.tap(service.nextRun(server, series, least), (number) =>
            Effect.sync(() => run.numbers.add(`${server} ${number}`)),
          ),
      })),
    ).pipe(Layer.provide(layer));
  }

  /** Sees how far qvm-backup gets ahead of the acknowledgements. */
  #watched(run: Run, layer: Layer.Layer<QvmBackup>): Layer.Layer<QvmBackup> {
    return Layer.effect(
      QvmBackup,
      Effect.map(Effect.service(QvmBackup), (service) => ({
        ...service,
        start: (plan) =>
          Effect.map(service.start(plan), (running) => ({
            ...running,
            archive: {
              ...running.archive,
              read: (into: Uint8Array, atLeast?: number) =>
                Effect.tap(running.archive.read(into, atLeast), () =>
                  Effect.sync(() => {
                    run.widest = Math.max(run.widest, running.archive.received() - run.acked);
                  }),
                ),
            },
          })),
      })),
    ).pipe(Layer.provide(layer));
  }

  /** Waits for the end of a run; how it ended, or undefined where it was killed. */
  end(run: Run): Effect.Effect<number | undefined> {
    return Effect.map(Fiber.await(run.fiber!), (exit) => {
      if (run.life.dead) {
        this.note(`${run.id} was killed`);
        return undefined;
      }
      if (!Exit.isSuccess(exit)) {
        this.broken(`${run.id} ended without an exit code: ${String(exit.cause).slice(0, 300)}`);
        return undefined;
      }
      run.code = exit.value;
      this.note(`${run.id} exits with ${exit.value}`);
      return exit.value;
    });
  }
  close(): void {
    this.go(Scope.close(this.scope, Exit.void));
  }
}

/** Calls on the books that a full disk fails. */
const writing = /append|mark|pin |run |begin|note |propose|adopt/;
const isRuns = /^\.qbackup\/runs\/[0-9a-f]{64}$/;
const readOnly = new Set([
  "self",
  "stat",
  "read",
  "names",
  "free",
  "writable",
  "root",
  "open",
  "directory",
]);

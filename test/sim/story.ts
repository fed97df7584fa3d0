/**
 * One story: a run of qbackup in which something goes wrong, the checks of what was promised, and then
 * a run in which nothing does, which has to put everything right.
 */
import { Deferred, Effect, Fiber } from "effect";
import { parseLedger } from "#layers/files/FileLedger";
import { signatureHolds } from "#src/proof/keys";
import { parseManifest, parseReceipt, receiptDiffers } from "#src/proof/texts";
import { attack, type Capture, outdated } from "#test/sim/attack";
import { hostileTale } from "#test/sim/hostile";
import { Nights, nightsKey } from "#test/sim/nights";
import { archiveNumber, type Plan, planOf } from "#test/sim/plan";
import { hostileNights, slotsTale } from "#test/sim/slots";
import { type Run, World } from "#test/sim/world";
import { linesOf, membersOf, rootOf, tableOf } from "#test/support/reference";

export interface Told {
  readonly seed: number;
  readonly plan: Plan;
  /** Exit codes of the runs; undefined where the run was killed. */
  readonly codes: ReadonlyArray<number | undefined>;
  readonly trace: ReadonlyArray<string>;
  readonly violations: ReadonlyArray<string>;
  /** Simulated. */
  readonly seconds: number;
}

/** No run may take longer. In simulated seconds; nights in slots are many. */
const longest = 28 * 3600;
const longestOfNights = 60 * 24 * 3600;
const mebi = 1_048_576;

interface Truth {
  readonly lines: ReadonlyArray<string>;
  readonly root: string;
  /** Offsets at which a block ends. */
  readonly ends: ReadonlyArray<number>;
}
const truths = new WeakMap<Buffer, Truth>();
/** What is true of an archive; worked out once, by the second implementation. */
const truthOf = (archive: Buffer): Truth => {
  const known = truths.get(archive);
  if (known !== undefined) return known;
  const lines = linesOf(tableOf(archive));
  const ends: Array<number> = [];
  let start = 0;
  for (const { length } of membersOf(archive)) {
    for (let at = mebi; at < length; at += mebi) ends.push(start + at);
    ends.push((start += length));
  }
  const truth = { lines, root: rootOf(lines), ends };
  truths.set(archive, truth);
  return truth;
};

const isOf = (
  {
    members,
    root,
    size,
  }: { readonly members: number; readonly root: string; readonly size: number },
  archive: Buffer,
): boolean => {
  const truth = truthOf(archive);
  return size === archive.length && root === truth.root && members === truth.lines.length;
};

/** The bytes of a file, not copied: these checks are made often. */
const look = (world: World, path: string): Buffer | undefined => {
  const node = world.disk.find(path);
  return node?.kind === "file" ? node.now.view() : undefined;
};
/** Does the pack of a night hold what it sent? */
const isPack = (world: World, session: string): boolean => {
  const sent = world.nights?.packs.get(session);
  return sent !== undefined && look(world, `.qbackup/packs/${session}`)?.equals(sent) === true;
};
const isVisible = (file: string): boolean =>
  !file.startsWith(".qbackup/") && !file.endsWith(".manifest.json");

/** What has to be true of the server's disk at every moment, power or no power. */
const checkDisk = (world: World, when: string): void => {
  world.checkRecords(when);
  const archives = new Set(world.runs.map((run) => run.archive));
  for (const file of world.disk.files()) {
    if (!isVisible(file)) continue;
    const bytes = look(world, file)!;
    if (![...archives].some((archive) => archive.equals(bytes))) {
      world.broken(`P1 ${when}: ${file} (${bytes.length} bytes) is no archive that was sent`);
    }
  }
  for (const { name, session } of world.nights?.kept ?? []) {
    const there = look(world, `${name}.manifest.json`) !== undefined && isPack(world, session);
    if (!there) world.broken(`P1 ${when}: ${name} was stored, and is not there`);
  }
  for (const run of world.runs) {
    if (run.code !== 0) continue;
    for (const entry of entriesOf(run).filter(({ session }) => session === run.session)) {
      const bytes = look(world, entry.name);
      if (bytes?.equals(run.archive) !== true) {
        world.broken(`P2 ${when}: ${run.id} exited 0, but ${entry.name} is not there`);
      }
    }
  }
};

/** What was acknowledged to a run that still goes on is there, with its digests. */
const checkAcked = (world: World): void => {
  for (const run of world.runs) {
    if (run.session === undefined || run.acked === 0 || !world.mustKeep(run)) continue;
    if ([...world.stored.values()].includes(run.session)) continue;
    const committed = world.disk
      .files()
      .some((file) => isVisible(file) && look(world, file)!.equals(run.archive));
    if (committed) continue;
    const bytes = look(world, `.qbackup/incoming/${run.session}`);
    const digests = look(world, `.qbackup/incoming/${run.session}.digests`);
    const there = bytes?.subarray(0, run.acked).equals(run.archive.subarray(0, run.acked)) === true;
    const blocks = truthOf(run.archive).ends.filter((end) => end <= run.acked).length;
    if (!there || (digests?.length ?? 0) < blocks * 32) {
      world.broken(`${run.id}: ${run.acked} bytes were acknowledged, and a power loss took them`);
    }
  }
};

const entriesOf = (run: Run) =>
  parseLedger(Buffer.from(run.dom0.books.text)).lines.map(({ entry }) => entry);

/** What has to be true when a run has ended by itself. */
const checkRun = (world: World, run: Run): void => {
  const { code, dom0, notes, said } = run;
  const { books, table } = dom0;
  const mine = entriesOf(run).filter(({ session }) => session === run.session);
  const wrong = (what: string) => world.broken(`${run.id} (exit ${code}): ${what}`);
  if (said.lines.some(({ text }) => !/^[\x20-\x7e]*$/.test(text))) wrong("P4 unprintable words");
  if (run.out.length > 0) wrong("stdout is not for words");
  if (run.widest > 17 * mebi) wrong(`the window grew to ${run.widest} bytes`);
  // A run that waited for this one leaves a mark of its own where it fails, or is killed; not at the end.
  const its = world.calm || books.unfinished?.session === run.session;
  const mark = its ? books.unfinished : undefined;
  // What runs through another qube left may have to wait for one through that.
  const left = mark?.submission === undefined && mark?.earlier !== undefined ? undefined : mark;
  if (code === 0) {
    const [entry] = mine;
    const manifest = entry === undefined ? undefined : parseManifest(entry.manifest);
    const receipt = entry === undefined ? undefined : parseReceipt(entry.receipt);
    if (entry === undefined || manifest === undefined || receipt === undefined || mine.length > 1) {
      wrong("P2 no single entry in the ledger");
    } else {
      if (!run.sound) wrong("P2 qvm-backup did not write it whole, or did not exit 0");
      const pinned = books.pins.get(run.to);
      if (!(pinned && signatureHolds(pinned, "receipt", entry.receipt, entry.receiptSignature))) {
        wrong("P2 the receipt is not signed by the pinned key");
      }
      if (receiptDiffers(receipt, entry.manifest) !== undefined) wrong("P2 a receipt for another");
      // What is made in slots of what it wrote is looked at by itself.
      if (run.tapped === undefined && !isOf(manifest, run.archive)) {
        wrong("P2 the manifest is not of what qvm-backup wrote");
      }
    }
    if (left !== undefined && !world.booksFailed) wrong("P7 a mark is left");
    if (said.lines.some(({ level }) => level === "error")) wrong("an error was reported");
    // Behind it may come that nothing was read back for long: by this clock it may be years.
    if (!notes.some(({ urgency }) => urgency === "normal")) wrong("P5 no good news");
  } else {
    if (!said.lines.some(({ level }) => level === "error")) wrong("P5 no error reported");
    if (notes.at(-1)?.urgency !== "critical" && code !== 7) wrong("P5 no notification");
    // A later run of the same dom0 may have fetched the receipt meanwhile.
    const settled = world.runs.some((other) => other.dom0 === dom0 && other !== run);
    if (mine.length > 0 && !world.booksFailed && !settled) {
      wrong("P2 there is an entry all the same");
    }
    if (left !== undefined && left.submission === undefined && !world.booksFailed && code !== 7) {
      wrong("P7 a mark without a receipt to fetch is left");
    }
  }
  const alone = world.runs.filter((other) => other.dom0 === dom0 && other.code === undefined);
  if (alone.length === 0 && !world.booksFailed && code !== 7) {
    const started = table.calls.includes(`start ${run.to}`);
    const state = table.qubes.find(({ name }) => name === run.to)!.state;
    const runs = world.plan.running && run.to === "net";
    const wanted = runs || (world.plan.keepRunning && started) ? "Running" : "Halted";
    // A killed run leaves it running, and the next one puts that right unless it was told -x.
    if (state !== wanted && !(world.plan.keepRunning && state === "Running")) {
      wrong(`P7 the destination qube is ${state}`);
    }
  }
  if (run.script.hangs === true && run.script.started.length > run.script.cancelled) {
    wrong("P7 qvm-backup goes on");
  }
};

const checkList = Effect.fnUntraced(function* (world: World, when: string) {
  const listed = yield* world.list();
  for (const { damaged, name, root, session, size } of listed) {
    if (damaged) world.broken(`${when}: ${name} is listed as damaged`);
    // That its members make what was signed, its record was held against.
    if (isPack(world, session)) continue;
    // Its own name comes behind the record, and is made again where a crash took it.
    const bytes = look(world, name) ?? look(world, `.qbackup/packs/${session}`);
    const sent = world.runs.some(
      ({ archive, sound }) =>
        sound &&
        archive.length === size &&
        truthOf(archive).root === root &&
        bytes !== undefined &&
        archive.equals(bytes),
    );
    if (!sent) world.broken(`P1 ${when}: ${name} is listed and is not what was sent`);
  }
  for (const { name } of world.nights?.kept ?? []) {
    if (!listed.some((archive) => archive.name === name)) {
      world.broken(`P1 ${when}: ${name} was stored, and is not listed`);
    }
  }
  for (const run of world.runs) {
    if (run.code !== 0) continue;
    for (const { name } of entriesOf(run).filter(({ session }) => session === run.session)) {
      if (!listed.some((archive) => archive.name === name)) {
        world.broken(`P2 ${when}: ${run.id} exited 0, but ${name} is not listed`);
      }
    }
  }
  return listed;
});

/** Its first tar header says nothing of an owner: such an upload is kept for thirty days. */
const isOfSlots = (pack: Buffer | undefined): boolean =>
  pack !== undefined && pack.length >= 512 && pack.toString("latin1", 265, 269) === "\0\0\0\0";

/** Nothing is left on the server but archives and what belongs to them. */
const checkLeft = (world: World, listed: ReadonlyArray<{ readonly name: string }>): void => {
  const names = new Set(listed.map(({ name }) => name));
  const sessions = new Set(
    world.runs.flatMap((run) => entriesOf(run).map(({ session }) => session as string)),
  );
  const slots = new Set(world.nights?.packs.keys());
  const books = /^\.qbackup\/(identity|owner|signers|(runs|gone)\/[0-9a-f]+)$/;
  const parts =
    /^\.qbackup\/(?:packs|digests|tables|recipes|records)\/([0-9a-f]{32})(?:\.manifest\.json)?$/;
  for (const file of world.disk.files()) {
    const session = parts.exec(file)?.[1];
    // A later night may go on with what one left, or what the attacker has put in place of a stream.
    const upload = /^\.qbackup\/[a-z]+\/([0-9a-f]{32})/.exec(file)?.[1] ?? "";
    if (slots.has(upload) || isOfSlots(world.disk.bytes(`.qbackup/incoming/${upload}`))) continue;
    // Where dom0 could not write its books, an archive may be stored that no ledger knows.
    if (session !== undefined && (sessions.has(session) || world.booksFailed)) continue;
    if (books.test(file) || names.has(file)) continue;
    if (file.endsWith(".manifest.json") && names.has(file.slice(0, -14))) continue;
    world.broken(`P7 in the end ${file} is left on the server`);
  }
};

const tale = Effect.fnUntraced(function* (world: World) {
  const { plan } = world;
  world.afterPowerLoss = () => {
    checkDisk(world, "after a power loss");
    checkAcked(world);
  };
  const home = world.dom0("home");
  const elsewhere = plan.second?.who === "other" ? world.dom0("elsewhere") : undefined;
  const nights =
    plan.nights === undefined ? undefined : (world.nights = new Nights(world, plan.nights.seed));
  const admitted = [
    home,
    ...(elsewhere === undefined ? [] : [elsewhere]),
    ...(nights === undefined ? [] : [{ key: nightsKey.publicKey }]),
  ];
  // The first that comes would be the only one.
  if (admitted.length > 1 || plan.attack !== undefined) yield* world.admit(admitted);
  const { attack: attacked } = plan;
  const before: Array<Run> = [];
  if (attacked !== undefined) {
    if (attacked.quota !== undefined) world.options = ["--quota", `${attacked.quota}`];
    world.calm = true;
    const earlier = world.start(home, {
      id: "earlier",
      archive: archiveNumber(0),
      qvm: { kind: "sound" },
      doomed: false,
    });
    if ((yield* world.end(earlier)) !== 0) world.broken("the earlier run did not succeed");
    before.push(earlier);
    home.calls = home.puts = 0;
    world.calm = false;
  }
  const seen =
    attacked?.by === "carrier" ? () => true : ({ by }: Capture) => before.some((run) => run === by);
  const attacker =
    attacked === undefined ? undefined : world.go(attack(world, attacked.seed, seen));
  let revoked: ReadonlyMap<string, string> | undefined;
  let revoking: Fiber.Fiber<void> | undefined;
  if (attacked?.revoked !== undefined) {
    const revoke = Effect.gen(function* () {
      yield* Deferred.await(world.readied);
      yield* Effect.sleep(attacked.revoked!);
      if (world.calm) return;
      revoking = world.go(
        Effect.map(world.revoke(home), (done) => {
          if (!done) return;
          world.note("dom0's key is revoked");
          revoked = world.checkRecords("when the key was revoked");
        }),
      );
    });
    world.go(revoke);
  }
  const first = world.start(home, {
    id: "first",
    archive: archiveNumber(plan.archive),
    qvm: plan.qvm,
    doomed: true,
  });
  const night =
    nights === undefined
      ? undefined
      : world.go(
          Effect.andThen(Effect.delay(nights.next(), plan.nights!.after), () => nights.next()),
        );
  const others: Array<Run> = [];
  if (plan.second !== undefined) {
    yield* Effect.sleep(plan.second.after);
    const run = world.start(elsewhere ?? home, {
      id: elsewhere === undefined ? "twin" : "rival",
      archive: archiveNumber((plan.archive + 2) % 5),
      qvm: { kind: "sound" },
      doomed: false,
    });
    others.push(run);
  }
  const ran = [first, ...others];
  yield* Effect.forEach(ran, (run) => world.end(run), { concurrency: "unbounded" });
  if (night !== undefined) yield* Fiber.join(night);
  for (const run of ran) if (run.code !== undefined) checkRun(world, run);
  checkDisk(world, "after the run");

  // Trouble that a run has to survive: whatever the link and the server's machine did.
  const mild =
    !world.corrupted &&
    !world.diskFailed &&
    !world.booksFailed &&
    !world.clockStepped &&
    others.length === 0 &&
    attacked?.by !== "carrier" &&
    // While the attack lasts, it may take what room there is.
    attacked?.quota === undefined &&
    attacked?.revoked === undefined &&
    attacked?.holdsBack === undefined &&
    plan.qvm.kind === "sound";
  const faultless = mild && plan.links.length === 0 && plan.deaths.length === 0;
  if (faultless && plan.carrierDies === undefined && !first.life.dead && first.code !== 0) {
    world.broken(`nothing went wrong, but the first run exited with ${first.code}`);
  }
  if (mild && first.code !== undefined && first.code !== 0) {
    const text = first.said.lines.map((line) => line.text).join("\n");
    // Several half-open links one after another may take longer than a run is patient here.
    const troubles = plan.links.length + plan.deaths.length;
    const why = troubles > 2 ? /no link to the server|no progress for/ : /no link to the server/;
    if (first.code !== 4 || !why.test(text)) {
      world.broken(
        `a link that breaks made the first run exit with ${first.code}: ${text.slice(-300)}`,
      );
    }
  }

  yield* Effect.sleep(plan.rest);
  if (attacker !== undefined) yield* Fiber.interrupt(attacker);
  if (revoking !== undefined) yield* Fiber.await(revoking);
  world.calm = true;
  world.setClocks();
  if (attacked !== undefined) {
    const names = world.checkRecords("when the attack was over");
    if (revoked !== undefined) {
      for (const [name, signer] of names) {
        if (signer !== home.key || revoked.has(name)) continue;
        world.broken(`P8 ${name} was stored when its key was revoked`);
      }
    }
    yield* world.admit(admitted);
  }
  const late =
    attacked === undefined
      ? undefined
      : world.go(attack(world, attacked.seed + 1, outdated(world)));
  const places = [...new Set(ran.map((run) => run.dom0))];
  for (const place of places) {
    const run = world.start(place, {
      id: `last of ${place.name}`,
      archive: archiveNumber(1),
      qvm: { kind: "sound" },
      doomed: false,
    });
    if ((yield* world.end(run)) !== 0) {
      const text = run.said.lines.map((line) => line.text).join("\n");
      world.broken(`${run.id}: all is well, but it exited with ${run.code}: ${text.slice(-300)}`);
    }
    checkRun(world, run);
  }
  if (nights !== undefined && !(yield* nights.next())) {
    world.broken("all is well, but the last night was not stored");
  }
  if (late !== undefined) yield* Fiber.interrupt(late);
  // Half-open processes end by themselves, within a minute and the time of a sync; a night whose trailer
  // is held back waits three minutes for its answer.
  yield* Effect.sleep(nights === undefined ? 120_000 : 330_000);
  if (world.serving > 0) world.broken("P5 a process of the server waits for ever");
  const remaining = yield* checkList(world, "at the end");
  if (plan.rest > 86_400_000 && !world.diskFailed && !world.clockStepped)
    checkLeft(world, remaining);
  yield* world.powerLoss({ power: plan.last, told: true, away: 10 });
  checkDisk(world, "after the last power loss");
  const listed = yield* checkList(world, "after the last power loss");

  // Every archive that the server vouches for is known to the one who sent it.
  if (!world.diskFailed && !world.booksFailed) {
    const known = new Set(
      world.runs.flatMap((run) => entriesOf(run).map(({ name }) => name as string)),
    );
    for (const manifest of nights?.manifests ?? []) known.add(JSON.parse(manifest).name);
    for (const { name } of listed) {
      if (!known.has(name)) world.broken(`P7 ${name} is on the server and in no ledger`);
    }
  }
});

export const tell = (seed: number, plan: Plan = planOf(seed)): Told => {
  // Every twelfth story is about a liar; nothing else goes wrong in it.
  const hostile = seed % 12 === 11;
  const { books: _, ...honest } = plan;
  const world = new World(hostile || plan.slots?.hostile === true ? honest : plan);
  const fiber = world.go(
    hostile
      ? Effect.map(hostileTale(world), (run) => checkRun(world, run))
      : plan.slots === undefined
        ? tale(world)
        : (plan.slots.hostile ? hostileNights : slotsTale)(world, checkRun),
  );
  try {
    if (!world.universe.run(fiber, plan.slots === undefined ? longest : longestOfNights)) {
      world.broken(
        `P5 somebody waits for ever: ${world.runs.map((run) => `${run.id} ${run.code}`).join(", ")}`,
      );
    } else {
      const exit = fiber.pollUnsafe()!;
      if (exit._tag === "Failure") world.broken(`the story broke off: ${String(exit.cause)}`);
    }
  } catch (error) {
    world.broken(String(error instanceof Error ? error.stack : error));
  }
  return {
    seed,
    plan,
    codes: world.runs.map((run) => run.code),
    trace: world.trace,
    violations: world.violations,
    seconds: world.universe.seconds,
  };
};

/**
 * Qubes through its own command line, as documented for Qubes 4.2 and 4.3: exit codes and the raw
 * format of qvm-ls, never the text that is meant for people.
 */
import * as Effect from "effect/Effect";
import * as Layer from "effect/Layer";
import * as Option from "effect/Option";
import * as Schema from "effect/Schema";
import { existsSync } from "node:fs";
import { readFile, statfs } from "node:fs/promises";
import { type Argv, type Env, type ProgramError, type Ran, run } from "#layers/process/Child";
import { Qube, Qubes, QubesError } from "#services/Qubes";
import { printable } from "#src/say/shown";
import { parseNumber } from "#src/wire/names";

/** For every tool alike: with many qubes, or while the machine starts, qvm-ls alone took over a minute. */
const limit = "5 minutes";

const fields = "name,qid,state,class,include_in_backups,backup_timestamp";

/** What Python says for each write to a program that is gone (docs/qubes.md, Exit code). */
const brokenPipe = /pipe closed by peer or os\.write\(pipe, data\) raised exception/;

/** A column that is not set, or not known to this kind of qube, is `-`. */
const Flag = Schema.Literals(["True", "False", "-"]);
const Columns = Schema.Struct({
  name: Qube.fields.name,
  qid: Schema.String.check(Schema.isPattern(/^(?:0|[1-9][0-9]{0,9})$/)),
  state: Schema.String.check(Schema.isPattern(/^[A-Za-z-]{1,32}$/)),
  class: Schema.String.check(Schema.isPattern(/^[A-Za-z0-9-]{1,32}$/)),
  included: Flag,
  backedUp: Schema.String.check(Schema.isPattern(/^(?:-|[0-9]{1,15})$/)),
});
const decode = Schema.decodeUnknownOption(Columns);

/** One line of `qvm-ls --raw-data`: columns in the order asked for, separated by `|`. */
export const parseQube = (line: string): Qube | undefined => {
  const [name, qid, state, kind, included, backedUp, ...more] = line.split("|");
  if (more.length > 0) return undefined;
  const columns = decode({ name, qid, state, class: kind, included, backedUp });
  return Option.getOrUndefined(
    Option.map(columns, ({ backedUp, included, qid, ...rest }) => ({
      ...rest,
      qid: Number(qid),
      included: included === "True",
      ...(backedUp === "-" ? {} : { backedUp: Number(backedUp) }),
    })),
  );
};

/**
 * The directory that a service with this environment uses for temporary files, as Python's tempfile
 * chooses it. The text is what systemctl shows: words, quoted where they hold blanks.
 */
export const temporaryDirectory = (environment: string): string => {
  const words = environment.match(/(?:"[^"]*"|'[^']*'|[^\s"'])+/g) ?? [];
  for (const name of ["TMPDIR", "TEMP", "TMP"]) {
    const value = words
      .map((word) => word.replace(/["']/g, ""))
      .findLast((word) => word.startsWith(`${name}=/`));
    if (value !== undefined) return value.slice(name.length + 1);
  }
  return "/tmp";
};

/** The volumes that such a qube keeps at its end, and that are backed up (docs/qubes.md, Who does the work). */
const keptBy = ({ class: kind }: Qube): ReadonlyArray<string> =>
  kind === "TemplateVM" || kind === "StandaloneVM" ? ["private", "root"] : ["private"];

/** What it says of itself in a line; in Qubes alone. */
const releaseFile = "/etc/qubes-release";
/** Those of qvm-backup and of qubesd. */
const packages = ["qubes-core-admin-client", "qubes-core-dom0"] as const;

/** `env` is what the programs are given, and where they are looked for (PATH). */
export const qubesCli = (env?: Env): Layer.Layer<Qubes> =>
  Layer.sync(Qubes, () => {
    const call = (doing: string, argv: Argv, input?: Uint8Array) =>
      run(argv, { limit, env, ...(input === undefined ? {} : { input }) }).pipe(
        Effect.mapError((error: ProgramError) => new QubesError({ doing, detail: error.message })),
      );
    const refused = (doing: string, { code, said }: Ran) =>
      new QubesError({
        doing,
        // Of a traceback, or a chain of them, the last line alone says what it was.
        detail:
          said.length === 0
            ? `exit code ${code}`
            : printable(
                said.some((text) => /^Traceback|^\s+File "/.test(text))
                  ? said.at(-1)!
                  : said.join("; "),
                600,
              ),
      });
    const must = (doing: string, argv: Argv, input?: Uint8Array) =>
      Effect.flatMap(call(doing, argv, input), (ran) =>
        ran.code === 0 ? Effect.void : Effect.fail(refused(doing, ran)),
      );

    const is = Effect.fnUntraced(function* (state: "running" | "paused", qube: string) {
      const doing = `see whether ${printable(qube)} is ${state}`;
      const ran = yield* call(doing, ["qvm-check", "-q", `--${state}`, qube]);
      // A traceback exits 1 as well. Taken for "not running", it would have the qube shut down
      // afterwards under somebody who is using it.
      const broken = ran.said.some((line) => /^Traceback|^[\w.]*(?:Error|Exception)\b/.test(line));
      if (ran.code > 1 || broken) return yield* refused(doing, ran);
      return ran.code === 0;
    });

    const ofVolume = Effect.fnUntraced(function* ({ name }: Qube, volume: string, field: string) {
      const doing = `see how the volumes of ${printable(name)} are kept`;
      const ran = yield* call(doing, ["qvm-volume", "info", `${name}:${volume}`, field]);
      return ran.code === 0 ? ran.stdout.trim() : yield* refused(doing, ran);
    });

    return {
      list: Effect.gen(function* () {
        const doing = "list the qubes";
        const ran = yield* call(doing, ["qvm-ls", "--raw-data", "--fields", fields]);
        if (ran.code !== 0) return yield* refused(doing, ran);
        const qubes: Array<Qube> = [];
        for (const [i, line] of ran.stdout.split("\n").entries()) {
          if (line === "") continue;
          const qube = parseQube(line);
          if (qube === undefined) {
            const detail = `line ${i + 1} of qvm-ls is not as expected: ${printable(line)}`;
            return yield* new QubesError({ doing, detail });
          }
          qubes.push(qube);
        }
        return qubes;
      }),
      power: Effect.fnUntraced(function* (qube: string) {
        // A paused qube is a running one to qvm-check.
        if (!(yield* is("running", qube))) return "off";
        return (yield* is("paused", qube)) ? "paused" : "on";
      }),
      start: (qube) => must(`start ${printable(qube)}`, ["qvm-start", "--skip-if-running", qube]),
      shutdown: (qube) => must(`shut down ${printable(qube)}`, ["qvm-shutdown", "--wait", qube]),
      unsavable: Effect.fnUntraced(function* (qube: Qube) {
        if (qube.state === "Halted") return undefined;
        for (const volume of keptBy(qube)) {
          if ((yield* ofVolume(qube, volume, "revisions_to_keep")) === "-1") return volume;
        }
        return undefined;
      }),
      capacity: Effect.fnUntraced(function* (qube: Qube) {
        let bytes = 0;
        for (const volume of keptBy(qube)) {
          const size = parseNumber(yield* ofVolume(qube, volume, "size"));
          if (size === undefined) {
            const doing = `see how large ${printable(qube.name)} is`;
            return yield* new QubesError({ doing, detail: "qvm-volume gives no number" });
          }
          bytes += size;
        }
        return bytes;
      }),
      create: (qube) =>
        must(`make the qube ${printable(qube)}`, [
          "qvm-create",
          "--class=AppVM",
          "--label=red",
          "--property=netvm=",
          "--property=include_in_backups=False",
          qube,
        ]),
      mark: (qube, tag) => must(`tag ${printable(qube)}`, ["qvm-tags", qube, "add", tag]),
      marked: Effect.fnUntraced(function* (tag: string) {
        const doing = `list the qubes with the tag ${tag}`;
        const ran = yield* call(doing, ["qvm-ls", "--raw-list", "--tags", tag]);
        if (ran.code !== 0) return yield* refused(doing, ran);
        return ran.stdout.split("\n").filter((name) => name !== "");
      }),
      fill: (qube, image) =>
        must(
          `fill the private volume of ${printable(qube)}`,
          ["qvm-volume", "import", `${qube}:private`, "-", `--size=${image.length}`],
          image,
        ),
      remove: (qube) => must(`remove ${printable(qube)}`, ["qvm-remove", "--force", qube]),
      versions: Effect.gen(function* () {
        const release = yield* Effect.tryPromise(() => readFile(releaseFile, "utf8")).pipe(
          Effect.orElseSucceed(() => ""),
        );
        const asked = yield* run(
          ["rpm", "-q", "--queryformat", "%{NAME} %{VERSION}-%{RELEASE}\n", ...packages],
          { limit: "1 minute", env },
        ).pipe(Effect.option);
        const said = Option.match(asked, { onNone: () => "", onSome: (ran) => ran.stdout });
        // Of what is not installed it says so on the same stream.
        const known = said.split("\n").filter((line) => /^[a-z0-9-]+ [0-9][^ ]*$/.test(line));
        return [release.trim(), ...known]
          .filter((line) => line !== "")
          .map((line) => printable(line, 120));
      }),
      setBackedUp: (qube, at) =>
        must(
          `set the last backup of ${printable(qube)}`,
          at === undefined
            ? ["qvm-prefs", "--default", qube, "backup_timestamp"]
            : ["qvm-prefs", qube, "backup_timestamp", `${at}`],
        ),
      brokenPipes: (since) =>
        run(
          [
            "journalctl",
            "--unit=qubesd.service",
            `--since=@${since}`,
            "--output=cat",
            "--no-pager",
          ],
          { limit: "1 minute", env: { ...(env ?? process.env), LC_ALL: "C" }, most: 1 << 24 },
        ).pipe(
          Effect.map(({ code, said, stdout }) =>
            // Whoever may not read it gets a hint, or nothing, and exit code 0.
            code !== 0 ||
            said.some((text) => /not seeing messages|[Nn]o journal|permission/.test(text))
              ? undefined
              : stdout.split("\n").filter((text) => brokenPipe.test(text)).length,
          ),
          Effect.catch(() => Effect.undefined),
        ),
      scratch: Effect.gen(function* () {
        const shown = yield* run(
          ["systemctl", "show", "--property=Environment", "--value", "qubesd.service"],
          { limit: "5 seconds", env },
        ).pipe(Effect.option);
        const wanted = temporaryDirectory(
          Option.match(shown, { onNone: () => "", onSome: (ran) => ran.stdout }),
        );
        // Python passes over a directory that is not there.
        const path = existsSync(wanted) ? wanted : "/tmp";
        return {
          path,
          // What is kept back for root is left out, although qubesd is root: a reserve is no room.
          free: Effect.tryPromise({
            try: () => statfs(path).then(({ bavail, bsize }) => bavail * bsize),
            catch: (cause) => {
              const detail = printable((cause as Error).message);
              return new QubesError({ doing: `see how much room ${printable(path)} has`, detail });
            },
          }),
        };
      }),
    };
  });

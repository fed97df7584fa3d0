/** What the end of a call to the carrier means: once, with one cause and one thing to do. */
import { assert, describe, it } from "@effect/vitest";
import { Effect } from "effect";
import { meaning, refusal } from "#src/dom0/far/call";
import { failed, nextStep } from "#src/dom0/failure";
import { keep, anArchive, qbackup, world } from "#test/support/readback";

const own = (error: string, hint: string) => [
  `qubes.BackupCarrier: error: ${error}`,
  `qubes.BackupCarrier: hint: ${hint}`,
];
const connect =
  "2026-11-28 12:00:00.123 qrexec-client[123]: qrexec-daemon-common.c:262:connect_unix_socket: connect /run/qubes/qrexec.net: No such file or directory";
const sh = "sh: 1: exec: /etc/qubes-rpc/qubes.BackupCarrier: not found";
const bash =
  "bash: /etc/qubes-rpc/qubes.BackupCarrier: /usr/bin/node: bad interpreter: No such file";

type Case = readonly [
  what: string,
  code: number,
  said: ReadonlyArray<string>,
  exit: string,
  cause: RegExp,
  hint: RegExp,
];
/** No second try mends these. */
const permanent: ReadonlyArray<Case> = [
  [
    "an unknown host key",
    2,
    [
      "qubes.BackupCarrier: | Host key verification failed.",
      ...own(
        "ssh does not know the host key of h, so nothing was sent",
        'in this qube run "ssh h"',
      ),
    ],
    "usage",
    /^ssh does not know the host key of h, so nothing was sent$/,
    /^in net run "ssh h"$/,
  ],
  ["a changed host key", 6, own("it is not the one", "ask"), "integrity", /^it is not/, /^ask$/],
  ["no SSH_CONN", 2, own("SSH_CONN is not set", "put it"), "usage", /^SSH_CONN is/, /^put it$/],
  ["no service", 127, [], "usage", /^net has no service qubes.BackupCarrier$/, /make templatevm/],
  ["no node, as dash says it", 127, [sh], "usage", /^net has no node/, /template of net/],
  ["no node, as bash says it", 126, [bash], "usage", /^net has no node/, /template of net/],
  ["a service that may not be run", 125, [], "qubes", /could not run/, /executable/],
  ["no qrexec-daemon", 125, [connect], "qubes", /does not reach net/, /restart the carrier qube/],
  [
    "an old node in the qube",
    1,
    ["SyntaxError: Unexpected token '??='"],
    "usage",
    /node of net is too old/,
    /template of net/,
  ],
  [
    "an old node on the server",
    1,
    ["qubes.BackupCarrier: | SyntaxError: Unexpected token '??='"],
    "usage",
    /server's node is too old/,
    /on the server/,
  ],
  [
    "no node on the server",
    1,
    ["qubes.BackupCarrier: | /usr/local/bin/qbackup-shell: No such file or directory"],
    "usage",
    /^the server cannot run qbackup-shell: \/usr/,
    /node 20 .* \/usr\/bin\/qbackup-shell\?/,
  ],
  [
    "a qube that Qubes does not start",
    255,
    ["net: Qube start failed"],
    "qubes",
    /^net could not be called: net: Qube start failed$/,
    /qubesd/,
  ],
];
/** It may go better the next time. */
const passing: ReadonlyArray<readonly [string, number, ReadonlyArray<string>, RegExp]> = [
  ["no network", 4, own("ssh could not connect to h", "check"), /^ssh could not connect to h$/],
  ["a link that broke", 4, own("the connection to h broke off", "x"), /broke off$/],
  [
    "a server that speaks like the carrier",
    5,
    ["qubes.BackupCarrier: | error: the host key changed"],
    /^error: the host key changed$/,
  ],
  ["nothing at all", 3, [], /^the call ended with exit code 3$/],
];

describe("the end of a call", () => {
  it.each(permanent)("%s", (_, code, said, exit, cause, hint) => {
    const failure = meaning({ code, said }, "net");
    assert.strictEqual(failure._tag === "RunFailed" ? failure.exit : failure._tag, exit);
    if (failure._tag === "RunFailed") assert.match(failure.message, cause);
    assert.match(failure.hint ?? "", hint);
  });
  it("a tool that is not there is a matter of where this runs", () => {
    const missing = failed(
      "qubes",
      "could not list the qubes: qvm-ls is not installed, or not in PATH",
    );
    assert.match(nextStep(missing), /^qbackup is for dom0.* PATH, of cron's too$/);
    assert.match(nextStep(failed("qubes", "no")), /^mend what Qubes says/);
  });
  it("a refusal's hint is about its own cause", () => {
    for (const [message, hint] of [
      [
        "this store does not take the key 0; it takes none",
        /runuser -u ACCOUNT -- \/usr\/bin\/qbackup-shell signers add KEY --root STORE.*KEY is what qbackup key show/,
      ],
      ["the clocks differ too much: dom0 wrote 1, and here it is 2", /^set the clock/],
      ["this key may not ask for put", /^the server's owner decides/],
    ] as const) {
      const failure = refusal({ type: "error", code: "not-permitted", message });
      assert.match(failure.hint!, hint);
    }
    // Nights share packs: whoever removes archives for room loses them, and has no more of it.
    for (const code of ["no-space", "quota"] as const) {
      const { hint } = refusal({ type: "error", code, message: "no room" });
      assert.match(hint!, /larger .*removing archives by name/);
    }
  });
  it.each(passing)("%s", (_, code, said, reason) => {
    const failure = meaning({ code, said }, "net");
    if (failure._tag !== "LinkBroken") return assert.fail(failure.message);
    assert.match(failure.reason, reason);
  });

  const exits = { usage: 2, qubes: 3, integrity: 6 } as const;
  it.effect.each(permanent)("%s is told once, and not tried again", ([, code, said, exit, cause]) =>
    Effect.gen(function* () {
      for (const verb of [["list"], ["verify", "a.backup"], ["audit"]]) {
        const w = world();
        keep(w, "a.backup", anArchive(1, 3_000_000));
        let calls = 0;
        const far = () => Effect.sync(() => ((calls += 1), { code, said }));
        const ended = yield* qbackup(w, verb, { far });
        assert.strictEqual(ended.code, exits[exit as keyof typeof exits], ended.text);
        const errors = w.said.lines.filter(({ level }) => level === "error");
        const hints = w.said.lines.filter(({ level }) => level === "hint");
        assert.deepStrictEqual([errors.length, hints.length], [1, 1], ended.text);
        assert.match(errors[0]!.text, cause);
        assert.notMatch(ended.text, /link|network/);
        // A conversation is begun beside the first question; verify asks for the record beside both.
        assert.isAtMost(calls, { list: 1, audit: 2, verify: 3 }[verb[0]!]!, ended.text);
      }
    }),
  );

  it.effect("what shells print is shown once, however many calls there are", () =>
    Effect.gen(function* () {
      const w = world();
      keep(w, "a.backup", anArchive(1, 3_000_000));
      const ended = yield* qbackup(w, ["audit"], {
        far: ({ stdout }) =>
          Effect.as(Effect.ignore(stdout.write(Buffer.from("Welcome!\nto net\n"))), 4),
      });
      assert.strictEqual(ended.code, 4, ended.text);
      assert.strictEqual(ended.text.match(/a login shell on the way printed/g)?.length, 2);
    }),
  );
});

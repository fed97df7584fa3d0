/** What whoever looks on is shown, each second: how far it is, and what it waits for. */
import { Effect } from "effect";
import type { Running } from "#services/QvmBackup";
import { type Progress, Reporter } from "#services/Reporter";
import { type Line, line } from "#src/say/shown";
import type { Upload } from "#src/dom0/far/upload";

/** Filled in by the run as it goes on. */
export interface View {
  /** What it waits for where nothing moves yet, or nothing any more. */
  waits: Line | undefined;
  upload: Upload | undefined;
  running: Running | undefined;
  /** Bytes of files that qubesd has handed over. */
  taken: number;
  /** Bytes of their volumes that were gone through, holes and all; and how many there are, where that is known. */
  passed: number;
  volumes: number | undefined;
  /** Bytes of them that are not as they were. */
  changed: number;
  /** Bytes of qvm-backup are awaited, and not room in the window. */
  reading: boolean;
}

export const newView = (waits: Line): View => ({
  waits,
  upload: undefined,
  running: undefined,
  taken: 0,
  passed: 0,
  volumes: undefined,
  changed: 0,
  reading: false,
});

/** Seconds without a byte after which somebody is waited for. */
const patience = 3;

/** Shows it until it is interrupted. */
export const showing = (view: View) =>
  Effect.gen(function* () {
    const { progress } = yield* Reporter;
    let still = 0;
    let before = "";
    for (;;) {
      const { acked, sent, up } = view.upload?.progress() ?? { acked: 0, sent: 0, up: true };
      const now = `${acked} ${sent} ${(view.running?.archive.received() ?? 0) + view.taken}`;
      still = now === before ? still + 1 : 0;
      before = now;
      const waits = !up
        ? line`waiting for the link`
        : (view.waits ??
          (still < patience
            ? undefined
            : view.reading
              ? line`waiting for qvm-backup`
              : line`waiting for the server`));
      // qvm-backup's own figure is of what its compressor gives back, which for slots is nothing.
      const tapped = view.taken > 0;
      const gone = view.volumes && Math.min(100, (100 * view.passed) / view.volumes);
      yield* progress({
        doing: line`backing up`,
        percent: tapped ? gone : view.running?.progress().percent,
        read: tapped ? view.taken : undefined,
        // Slots count whole, holes and all, which were not read.
        changed: tapped ? Math.min(view.changed, view.taken) : undefined,
        bytes: sent,
        waits,
      });
      yield* Effect.sleep("1 second");
    }
  });

/**
 * For commands that say how far they are as bytes come: from their first word on, it is shown each
 * second, and what they wait for where nothing moves: what they say themselves, or else the server.
 */
export const watched = <A, E, R>(work: Effect.Effect<A, E, R>) =>
  Effect.gen(function* () {
    const { clear, progress, say } = yield* Reporter;
    let now: Progress | undefined;
    let still = 0;
    const show = ({ waits, ...moving }: Progress) =>
      still >= patience || (moving.bytes === 0 && waits !== undefined)
        ? progress({ ...moving, waits: waits ?? line`waiting for the server` })
        : progress(moving);
    yield* Effect.gen(function* () {
      for (;;) {
        yield* Effect.sleep("1 second");
        still += 1;
        if (now !== undefined) yield* show(now);
      }
    }).pipe(Effect.forkScoped);
    return yield* Effect.provideService(work, Reporter, {
      say,
      clear: Effect.suspend(() => {
        now = undefined;
        return clear;
      }),
      progress: (next) =>
        Effect.suspend(() => {
          if (next.bytes !== now?.bytes || next.doing !== now.doing) still = 0;
          now = next;
          return show(next);
        }),
    });
  }).pipe(Effect.scoped);

/** Before the first byte, what a command waits for. */
export const awaiting = Effect.fnUntraced(function* (waits: Line) {
  yield* (yield* Reporter).progress({ doing: line`looking`, bytes: 0, waits });
});

/** What whoever looks on is shown of a run, each second: how far it is, and what it waits for. */
import { Effect } from "effect";
import type { Running } from "#services/QvmBackup";
import { Reporter } from "#services/Reporter";
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
  /** Bytes of qvm-backup are awaited, and not room in the window. */
  reading: boolean;
}

export const newView = (waits: Line): View => ({
  waits,
  upload: undefined,
  running: undefined,
  taken: 0,
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
      const percent = view.taken > 0 ? undefined : view.running?.progress().percent;
      const read = view.taken > 0 ? view.taken : undefined;
      yield* progress({ doing: line`backing up`, percent, read, bytes: sent, waits });
      yield* Effect.sleep("1 second");
    }
  });

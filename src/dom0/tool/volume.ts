/** What a qube's private volume has, by the word of qubesd alone: as it hands it over for a backup. */
import { Effect } from "effect";
import { QvmBackup, type Running, type Tapped } from "#services/QvmBackup";
import { InnerFault, innerReader } from "#src/archive/inner";
import { SlotSize } from "#src/archive/parameters";
import { isZero } from "#src/archive/ustar";
import { failed } from "#src/dom0/failure";

/** Bytes that are read of a stream at once. */
const step = 1_048_576;
/** Minutes: it is a volume of some MiB, and nothing of it is sent anywhere. */
const patience = 15;

/** What is not as it should be of the file that this stream has; undefined where it is no private volume. */
const differs = Effect.fnUntraced(function* (stream: Tapped["stream"], image: Uint8Array) {
  const slot = yield* SlotSize;
  const reader = innerReader(slot);
  const buffer = new Uint8Array(step);
  let volume = false;
  let difference: string | undefined;
  let at = 0;
  const hold = (length: number, same: (wanted: Uint8Array) => boolean) => {
    if (!same(image.subarray(at, at + length))) {
      difference ??= `it differs in the ${length} bytes from byte ${at} on`;
    }
    at += length;
  };
  for (;;) {
    const read = yield* stream.read(buffer);
    if (read === 0) reader.end();
    else reader.push(buffer.subarray(0, read));
    for (let next = reader.next(); next !== undefined; next = reader.next()) {
      if (next instanceof InnerFault) return { volume, difference: next.message };
      if (next.type === "end") return { volume, difference };
      if (next.type === "file") {
        volume = next.name.endsWith("/private.img");
        if (volume && next.size !== image.length) {
          difference = `it has ${next.size} bytes, and not ${image.length}`;
        }
      } else if (volume && next.type === "slot") {
        const { bytes } = next;
        hold(bytes.length, (wanted) => Buffer.compare(wanted, bytes) === 0);
      } else if (volume && next.type === "zeros") hold(next.count * slot, isZero);
    }
  }
});

const readAll = Effect.fnUntraced(function* (running: Running, image: Uint8Array) {
  const found: Array<string | undefined> = [];
  const files = Effect.gen(function* () {
    for (let file = yield* running.nextFile; file !== undefined; file = yield* running.nextFile) {
      const { difference, volume } = yield* differs(file.stream, image);
      if (volume) found.push(difference);
      yield* file.done;
    }
  });
  const listing = Effect.gen(function* () {
    const buffer = new Uint8Array(65_536);
    while ((yield* running.archive.read(buffer)) > 0);
  });
  yield* Effect.all([files, listing], { concurrency: 2, discard: true });
  return { found, ended: yield* running.ended };
});

/**
 * Fails unless the private volume of this halted qube is `image`, byte for byte. Qubes has no way to hand out a
 * volume but for a backup: it is one, of which nothing is kept, and no other may run meanwhile.
 */
export const holds = Effect.fnUntraced(function* (
  qube: string,
  image: Uint8Array,
  passphraseFile: string,
) {
  const running = yield* (yield* QvmBackup)
    .start({ qubes: [qube], passphraseFile, tapped: true })
    .pipe(Effect.mapError((error) => failed("qubes", error.message)));
  const { ended, found } = yield* readAll(running, image).pipe(
    Effect.catchTag("BytesError", (error) =>
      failed("qubes", `the stream of qvm-backup failed: ${String(error.cause)}`),
    ),
    Effect.timeoutOrElse({
      duration: `${patience} minutes`,
      orElse: () => failed("qubes", `qubesd has not handed it over within ${patience} minutes`),
    }),
  );
  if (ended.code !== 0) {
    const said = ended.said.at(-1);
    return yield* failed(
      "qubes",
      `qvm-backup failed with exit code ${ended.code}${said === undefined ? "" : `: ${said}`}`,
      "see journalctl -u qubesd for what qubesd says",
    );
  }
  if (found.length !== 1) {
    return yield* failed("qubes", `qubesd handed over ${found.length} private volumes of ${qube}`);
  }
  const [difference] = found;
  if (difference === undefined) return;
  return yield* failed(
    "integrity",
    `the private volume of ${qube} is not what was backed up: ${difference}`,
    "do not rely on archives of this format from this machine before that is understood",
  );
}, Effect.scoped);

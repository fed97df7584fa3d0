/**
 * What the stand-in can be told to do wrong. faults.json is a list, read again at every use, so it
 * may change while a backup runs. A fault applies `times` times, or always; with `vm`, to that qube.
 *
 * tool        kind              what happens                                     with
 * ----------  ----------------  -----------------------------------------------  ----------------------
 * any         hang              never returns                                    ms: returns after all
 *             delay             begins late                                      ms
 *             no-qubesd         finds nobody at qubesd's socket
 * any but     fail              an error and an exit code                        text, code
 * qvm-backup
 * qvm-backup  fail              "Backup error: TEXT", exit 1                     text; after: bytes written
 *                                                                                before; stage "info": a
 *                                                                                preparation error
 *             traceback         a Python traceback, exit 1                       after, stage, text
 *             empty-response    qubesd closes the connection unanswered          after
 *             write-nothing     exit 0, and not a byte                           open: false: does not
 *                                                                                even open the location
 *             hang-before-open  never opens the location; can be cancelled       ms
 *             hang-after        stops writing and never ends; can be cancelled   after: bytes
 *             silence           writes nothing for a while                       ms, after: bytes
 *             slow              writes slowly                                    bytesPerSecond
 *             drop-tail         exit 0 without the end of the archive            members, or after: bytes
 *             ignore-sigint     cannot be cancelled
 *             temp-full         members cut short at a page, well formed,        member: only that one;
 *                               not decryptable, exit 0                          else the last of each file
 *             missing-member    a member is left out                             member; else the last
 *             doubled-member    a member comes twice                             member; else the first of
 *                                                                                a qube
 *             swapped-members   a member comes after the next one                member; else as above
 *             gap               a chunk in the middle is left out                member; else the first .001
 *                                                                                that is not the last
 *             short-chunk       a chunk that should be full is not               member; else the first full
 *             broken-tar        the tar header's checksum is wrong               member; else the first of
 *                                                                                a qube
 *             broken-scrypt     the scrypt header's checksum is wrong            member; else as above
 *             unexpected-qube   a qube more than asked for                       qid (99)
 *             missing-qube      a whole qube less, exit 0                        vm; else the last
 *             trailing-garbage  bytes behind the last member                     bytes (10240)
 *             removed           the qube is removed before the names are looked   vm; stage: before that
 *                               at: refused; later: left out, exit 0             question to qubesd
 * qvm-run     refuse            qubesd says no, exit 255                         text
 *             exit              ends at once, without the service                code
 *             usage             qrexec-client is of another version and does not
 *                               know an option: prints its usage, exits 0
 *             no-daemon         no qrexec-daemon for the qube, though it runs    text: the socket's error
 *             kill-client       qrexec-client is killed; qvm-run exits 0         after: bytes of stdin, or ms
 * qvm-start   fail              also for the start that qvm-run asks for         text
 * qvm-shutdown stubborn         the qube does not stop until it is killed
 *
 * `member` is a path in the archive, as vm3/private.img.001.enc.
 */
import * as fs from "node:fs";
import * as path from "node:path";
import { locked, replaceFile } from "./state.ts";

export interface Fault {
  readonly tool: string;
  readonly kind: string;
  readonly times?: number;
  readonly vm?: string;
  readonly text?: string;
  readonly code?: number;
  readonly stage?: "info" | "execute";
  readonly after?: number;
  readonly ms?: number;
  readonly bytesPerSecond?: number;
  readonly bytes?: number;
  readonly members?: number;
  readonly member?: string;
  readonly qid?: number;
  readonly open?: boolean;
}

const file = (dir: string): string => path.join(dir, "faults.json");

export const readFaults = (dir: string): Array<Fault> =>
  JSON.parse(fs.readFileSync(file(dir), "utf8")) as Array<Fault>;

export const writeFaults = (dir: string, faults: ReadonlyArray<Fault>): void =>
  replaceFile(file(dir), `${JSON.stringify(faults, null, 2)}\n`);

/** The faults of a tool that `when` lets through; each is counted as having happened once. */
export const takeFaults = (
  dir: string,
  tool: string,
  when: (fault: Fault) => boolean = () => true,
): Array<Fault> => {
  if (readFaults(dir).length === 0) return [];
  return locked(dir, "faults", () => {
    const taken: Array<Fault> = [];
    const left: Array<Fault> = [];
    for (const fault of readFaults(dir)) {
      const applies = fault.tool === tool && (fault.times ?? 1) > 0 && when(fault);
      if (applies) taken.push(fault);
      left.push(
        applies && fault.times !== undefined ? { ...fault, times: fault.times - 1 } : fault,
      );
    }
    if (taken.some((fault) => fault.times !== undefined)) writeFaults(dir, left);
    return taken;
  });
};

export const takeFault = (
  dir: string,
  tool: string,
  kind: string,
  vm?: string,
): Fault | undefined =>
  takeFaults(
    dir,
    tool,
    (fault) => fault.kind === kind && (fault.vm === undefined || fault.vm === vm),
  )[0];

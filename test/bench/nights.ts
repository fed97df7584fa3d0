/**
 * Nights in slots. What qubesd does for them is little: GNU tar of each file through the tap, and then an
 * archive that lists the files. So it is a few lines here, and what is measured is qbackup.
 */
import * as crypto from "node:crypto";
import * as fs from "node:fs";
import * as path from "node:path";
import { type Bed, type Job, loopback } from "./bed.ts";
import { counting } from "./links.ts";
import { GiB, MiB } from "./measure.ts";
import { human, row, s } from "./table.ts";
import { archiveOf } from "#test/support/archive";
import { rng } from "#test/support/random";

/** Bytes that nothing can compress, the same for the same seed. */
const noise = (seed: string) => {
  const key = crypto.createHash("sha256").update(seed).digest().subarray(0, 16);
  const stream = crypto.createCipheriv("aes-128-ctr", key, Buffer.alloc(16));
  return (bytes: number): Buffer => stream.update(Buffer.alloc(bytes));
};

const xml = (time: number) => `<?xml version="1.0"?>
<qubes><domains><domain id="domain-7" class="AppVM"><properties><property name="qid">7</property>
<property name="name">work</property><property name="backup_timestamp">${time}</property></properties>
<features><feature name="backup-content">True</feature><feature name="backup-path">vm7</feature>
<feature name="backup-size">1</feature></features></domain></domains></qubes>
`;

export const nights = (b: Bed, quick: boolean) => {
  const world = path.join(b.dir, "qubes");
  /** The private volume of the only qube that is backed up. */
  const image = path.join(world, "vm7/private.img");
  fs.mkdirSync(path.dirname(image), { recursive: true });
  const files = [{ path: "vm7/private.img", size: 0 }];
  fs.writeFileSync(path.join(world, "listed"), archiveOf({ seed: 1, files, filter: "/tap" }));
  const source = `cd ${world}
for file in qubes.xml vm7/private.img; do tar -cS -f - --use-compress-program="$tap" $file || exit; done
exec cat listed`;

  const counter = counting(path.join(b.dir, "ssh.log"), loopback);
  const names: Array<string> = [];
  let clock = 0;
  /** One run: what it took, and what went through ssh. */
  const night = async (series: string, watched = false): Promise<Job & { sent: number }> => {
    b.use(counter.link);
    // qubesd writes there when the qube was backed up before, so no two nights have the same.
    fs.writeFileSync(path.join(world, "qubes.xml"), xml(1_795_000_000 + 86_400 * clock++));
    const job = await b.backUp(source, { series, watched, bytes: 0 });
    b.use(loopback);
    names.push(job.name);
    return { ...job, sent: counter.sent() };
  };
  /** Nothing of the nights before is left on the server. */
  const wipe = () => {
    for (const name of names.splice(0)) b.forget(name);
  };

  const fill = (bytes: number, seed: string) => {
    const fd = fs.openSync(image, "w");
    const next = noise(seed);
    for (let at = 0; at < bytes; at += 4 * MiB)
      fs.writeSync(fd, next(Math.min(4 * MiB, bytes - at)));
    fs.closeSync(fd);
  };
  /** Writes to so many places of the image, each in a part of its own. */
  const scatter = (clusters: number, bytes: number, seed: number) => {
    const random = rng(seed);
    const next = noise(`clusters ${seed}`);
    const fd = fs.openSync(image, "r+");
    const part = Math.floor(fs.fstatSync(fd).size / clusters);
    for (let n = 0; n < clusters; n++) {
      const at = n * part + Math.floor(random.next() * (part - bytes));
      fs.writeSync(fd, next(bytes), 0, bytes, at - (at % 4096));
    }
    fs.closeSync(fd);
  };
  const share = (part: number, of: number) => `${((100 * part) / of).toFixed(2)} %`;

  /** Nothing changed, and one part in a hundred of a volume that is full of what nothing compresses. */
  const little = async () => {
    const size = quick ? 64 * MiB : 10 * GiB;
    const clusters = quick ? 1 : 20;
    fill(size, "little");
    const first = await night("little-");
    const same = await night("little-");
    scatter(clusters, Math.round(size / 100 / clusters), 1);
    const day = await night("little-");
    wipe();
    row(
      `(j) sent of ${human(size)}, of which nothing changed`,
      `${(same.sent / 1024).toFixed(1)} KiB, ${s(same.exit)}`,
      `the first run: ${human(first.sent)}, ${s(first.exit)}`,
      share(same.sent, first.sent),
      "40 KiB",
    );
    row(
      `(j) the same, of which 1 % changed, in ${clusters} places`,
      `${human(day.sent)}, ${s(day.exit)}`,
      `the first run: ${human(first.sent)}, ${s(first.exit)}`,
      share(day.sent, size),
      "2.2 %",
    );
  };
  return { j: little };
};

/**
 * What the qubes of a story hold, night after night, and the streams in which qubesd hands it over. Slots
 * are small, so that a volume has many of them, and images with them.
 */
import type { Qube } from "#services/Qubes";
import { aQube } from "#layers/memory/MemoryQubes";
import { archiveOf } from "#test/support/archive";
import { gnuTar, piecesOf, tarwriter } from "#test/support/inner";
import type { Rng } from "#test/support/random";

/** Bytes of a slot in these stories. */
export const slot = 2048;

/** A qube, and what it holds: `private.img`, `root.img` or `notes.txt`. */
interface Holding {
  readonly qube: Qube;
  readonly files: ReadonlyMap<string, Buffer>;
}

/** What is there when a night begins. */
export interface Images {
  readonly qubes: ReadonlyArray<Holding>;
}

/** Files by their names in the backup, without `qubes.xml`. */
export const filesOf = ({ qubes }: Images): ReadonlyMap<string, Buffer> =>
  new Map(
    qubes.flatMap(({ files, qube }) =>
      [...files].map(([name, bytes]) => [`vm${qube.qid}/${name}`, bytes] as const),
    ),
  );

const sizeOf = (r: Rng): number =>
  r.pick([0, 1, 512, 700, slot, 3 * slot + 9, 12 * slot, 20 * slot + 512, 45 * slot]);

/** The same image with some bytes of it others; what is written falls into few slots. */
const scattered = (r: Rng, image: Buffer): Buffer => {
  const bytes = Buffer.from(image);
  for (let n = r.int(0, 3); n > 0 && bytes.length > 0; n--) {
    const at = r.int(0, bytes.length - 1);
    const end = Math.min(bytes.length, at + r.pick([1, 300, slot, 4 * slot]));
    if (r.int(0, 3) === 0) bytes.fill(0, at, end);
    else {
      bytes.fill(r.int(1, 255), at, end);
      r.bytes(Math.min(end - at, 40)).copy(bytes, at);
    }
  }
  return bytes;
};
const resized = (r: Rng, image: Buffer): Buffer => {
  const bytes = Buffer.alloc(r.pick([0, sizeOf(r), image.length + slot, image.length >> 1]));
  image.copy(bytes);
  return bytes;
};
/** Now and then one that stays as it is, grows, shrinks or is emptied. */
const nextOf = (r: Rng, image: Buffer): Buffer => {
  const fate = r.next();
  if (fate < 0.45) return image;
  return scattered(r, fate < 0.65 ? resized(r, image) : image);
};

const held = (r: Rng, name: string, qid: number): Holding => {
  const fresh = () => scattered(r, Buffer.alloc(sizeOf(r)));
  const files: Array<readonly [string, Buffer]> = [["private.img", fresh()]];
  if (r.next() < 0.3) files.push(["root.img", fresh()]);
  if (r.next() < 0.3) files.push(["notes.txt", Buffer.alloc(r.int(0, slot + 900), name)]);
  return { qube: aQube(name, qid), files: new Map(files) };
};

/** The qubes of the first night. */
export const firstImages = (r: Rng): Images => ({
  qubes: [held(r, "work", 2), held(r, "mail", 3), held(r, "vault", 4)],
});

/** A day later: images change, a qube comes or goes, and another one may get an id that one had. */
export const nextImages = (r: Rng, { qubes }: Images): Images => {
  const fate = r.next();
  const stay =
    fate < 0.1 && qubes.length > 1
      ? qubes.filter((_, i) => i !== qubes.length - 1)
      : fate < 0.2
        ? qubes.filter(({ qube }) => qube.qid !== 3)
        : qubes;
  const there = new Set(stay.map(({ qube }) => qube.qid));
  const free = [3, 5, 6].find((qid) => !there.has(qid));
  const added = fate > 0.85 && free !== undefined ? [held(r, `qube${r.int(1, 999)}`, free)] : [];
  return {
    qubes: [
      ...stay.map(({ files, qube }) => ({
        qube,
        files: new Map([...files].map(([name, bytes]) => [name, nextOf(r, bytes)] as const)),
      })),
      ...added,
    ],
  };
};

const xmlOf = (images: Images): Buffer =>
  Buffer.from(
    `<qubes>\xe9${images.qubes.map(({ qube }) => `<features><feature name="backup-path">vm${qube.qid}/</feature><feature name="backup-size">7</feature></features>`).join("")}</qubes>\n`,
    "latin1",
  );
/** As it must be in the archive, but for the numbers that are raised. */
export const xmlIn = (images: Images): string => xmlOf(images).toString("latin1");
export const withoutSizes = (xml: string): string => xml.replace(/size">[0-9]+/g, 'size">7');

/** The tar stream of each file, in qubesd's order: of files (GNU tar), or of block devices. */
export const streamsOf = (r: Rng, images: Images): ReadonlyArray<readonly [string, Buffer]> => {
  const device = r.next() < 0.4;
  const xml = xmlOf(images);
  const whole = (bytes: Buffer) => [{ offset: 0, length: bytes.length }];
  return [
    ["qubes.xml", gnuTar("qubes.xml", xml, whole(xml))],
    ...[...filesOf(images)].map(
      ([name, bytes]) =>
        [
          name,
          device && name.endsWith(".img")
            ? tarwriter(name, bytes)
            : gnuTar(name, bytes, r.next() < 0.5 ? whole(bytes) : piecesOf(bytes)),
        ] as const,
    ),
  ];
};

const listings = new Map<string, Buffer>();
/** What qubesd writes besides: an empty chunk for each of these files. */
export const listingOf = (names: ReadonlyArray<string>): Buffer => {
  const key = names.join(" ");
  const found =
    listings.get(key) ??
    archiveOf({
      seed: 3,
      filter: "/home/user/.local/state/qbackup/run/tap",
      files: names.filter((name) => name !== "qubes.xml").map((path) => ({ path, size: 0 })),
    });
  listings.set(key, found);
  return found;
};

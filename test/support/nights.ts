/** Two nights of slots, as a client sends them: a pack, its recipe, and the members of all of the archive. */
import { scryptOf, slotOf } from "#test/support/archive";
import { sha256 } from "#test/support/reference";
import { nth, sessionOf, tableFor, type Upload } from "#test/support/shell";

const salt = (n: number) => sha256(Buffer.from(`salt ${n}`));
let salts = 0;
export const slot = (name: string, bytes: number) =>
  slotOf(name, scryptOf(Buffer.alloc(bytes, ++salts), salt(salts)));
export const header = (runs: number) =>
  slotOf(
    "backup-header",
    Buffer.from(
      `version=4\nencrypted=True\ncompressed=True\ncompression-filter=gzip\nhmac-algorithm=scrypt\nbackup-id=20261123T030424-14807\nqbackup-seal=${"0".repeat(64)}\nqbackup-run=${runs}\n`,
    ),
  );
export const cell = (n: number) => `vm1/private.img.${String(n).padStart(3, "0")}.enc`;
/** The pack of a first night: cells, map, qubes.xml, and the heads last. */
export const first = Buffer.concat([
  ...[1, 2, 3, 4, 5].map((n) => slot(cell(n), 40_000 + n)),
  slot(cell(0), 900),
  slot("qubes.xml.000.enc", 500),
  slot("backup-header.hmac", 100),
  header(1),
]);
const recipe = "new 8 1\nnew 7 1\nnew 6 1\nnew 5 1\nnew 0 5\n";
export const inOrder = (pack: Buffer, order: ReadonlyArray<number>) =>
  order.map((i) => tableFor(pack)[i]!);
export const firstLines = inOrder(first, [8, 7, 6, 5, 0, 1, 2, 3, 4]);
export const firstNight: Upload = {
  archive: first,
  format: "slots",
  recipe,
  lines: firstLines,
  ...nth(1),
};
/** One cell is another one, and the heads are new. */
export const second = Buffer.concat([
  slot(cell(3), 50_000),
  slot("qubes.xml.000.enc", 600),
  slot("backup-header.hmac", 100),
  header(2),
]);
export const secondLines = [
  ...inOrder(second, [3, 2, 1]),
  ...firstLines.slice(3, 6),
  tableFor(second)[0]!,
  ...firstLines.slice(7),
];
export const secondNight: Upload = {
  archive: second,
  format: "slots",
  recipe: "new 3 1\nnew 2 1\nnew 1 1\nbase 3 3\nnew 0 1\nbase 7 2\n",
  lines: secondLines,
  base: sessionOf(1),
  ...nth(2),
};

/**
 * /etc/qubes/backup/NAME.conf, as yaml.safe_dump writes it: the part of YAML that it needs. It holds
 * the passphrase in clear while a backup runs (docs/qubes.md, Passphrase).
 */
import * as fs from "node:fs";
import * as path from "node:path";

export interface Profile {
  /** Null: the set that is included by default. */
  readonly include: ReadonlyArray<string> | null;
  readonly exclude: ReadonlyArray<string>;
  readonly compression: boolean | string;
  readonly destinationPath: string;
  readonly passphrase: string | null;
}

export const profileFile = (dir: string, name: string): string =>
  path.join(dir, "etc", "qubes", "backup", `${name}.conf`);

const scalar = (text: string): string =>
  /^[A-Za-z/][A-Za-z0-9 ._/@-]*(?<! )$/.test(text) &&
  !/^(true|false|null|yes|no|on|off|y|n)$/i.test(text)
    ? text
    : `'${text.replaceAll("'", "''")}'`;

const list = (key: string, values: ReadonlyArray<string>): Array<string> =>
  values.length === 0
    ? [`${key}: []`]
    : [`${key}:`, ...values.map((value) => `- ${scalar(value)}`)];

export const writeProfile = (dir: string, name: string, profile: Profile): void => {
  const { compression, include, passphrase } = profile;
  const lines = [
    `compression: ${typeof compression === "string" ? scalar(compression) : compression}`,
    `destination_path: ${scalar(profile.destinationPath)}`,
    "destination_vm: dom0",
    ...(profile.exclude.length === 0 ? [] : list("exclude", profile.exclude)),
    ...(include === null ? ["include: null"] : list("include", include)),
    // An empty passphrase is as good as none: qubesd then refuses.
    ...(passphrase === null || passphrase === "" ? [] : [`passphrase_text: ${scalar(passphrase)}`]),
  ];
  fs.writeFileSync(profileFile(dir, name), `${lines.join("\n")}\n`);
};

const unquoted = (text: string): string => {
  const quoted = /^'(.*)'$/.exec(text) ?? /^"(.*)"$/.exec(text);
  return quoted?.[1] === undefined ? text : quoted[1].replaceAll("''", "'");
};

/** Undefined: there is no such file. */
export const readProfile = (
  dir: string,
  name: string,
): { readonly [key: string]: string | ReadonlyArray<string> } | undefined => {
  const file = profileFile(dir, name);
  if (!fs.existsSync(file)) return undefined;
  const found: { [key: string]: string | Array<string> } = {};
  let key = "";
  for (const line of fs.readFileSync(file, "utf8").split("\n")) {
    const item = /^\s*- +(.*)$/.exec(line);
    const entry = /^([a-z_]+):(?: +(.*))?$/.exec(line);
    const values = found[key];
    if (item?.[1] !== undefined) {
      if (Array.isArray(values)) values.push(unquoted(item[1]));
      else found[key] = [unquoted(item[1])];
    } else if (entry?.[1] !== undefined) {
      key = entry[1];
      const value = entry[2] ?? "";
      found[key] = value === "[]" ? [] : unquoted(value);
    }
  }
  return found;
};

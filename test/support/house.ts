/**
 * The house rules, as data, and a look at one file that says where it breaks them. It looks at the syntax
 * tree, so that a comment or a string neither trips a rule nor hides what does.
 */
import * as fs from "node:fs";
import * as path from "node:path";
import { parseSync } from "rolldown/utils";

/** Folders of src that every program may use. Each other one is a program or the store, which no other imports. */
const shared = "wire|proof|archive|say";

interface Room {
  readonly files: RegExp;
  /** Packages as they are named, files of this repository as `/src/wire/names`. */
  readonly imports: RegExp;
  /** It may look at clocks, make timers, speak to the system. */
  readonly worldly?: true;
}

/** The first room whose pattern matches the file decides. Entrypoints are the files directly in src/. */
const rooms: ReadonlyArray<Room> = [
  {
    files: new RegExp(`^src/(${shared})/`),
    imports: new RegExp(`^(effect$|node:crypto$|/services/Bytes$|/src/(${shared})/)`),
  },
  {
    files: /^services\//,
    imports: new RegExp(`^(effect$|/src/(${shared})/|/services/)`),
  },
  {
    // What lies where on the server: not the client's business.
    files: /^src\/(store|shell|vault)\//,
    imports: new RegExp(
      `^(effect(?!/(process|testing))(/|$)|node:util$|/services/|/src/(${shared}|store)/)`,
    ),
  },
  {
    files: /^src\/[^/]+\//,
    imports: new RegExp(
      `^(effect(?!/(process|testing))(/|$)|@scure/bip39/wordlists/|node:util$|/services/|/src/(${shared})/)`,
    ),
  },
  {
    files: /^(layers\/|src\/[^/]+\.ts$)/,
    imports: new RegExp(
      `^((effect|@effect/platform-node)(/|$)|node:|/services/|/src/(${shared})/|/layers/)`,
    ),
    worldly: true,
  },
  // What stands for Qubes must not share a mistake with what is tried against it.
  { files: /^test\/standin\//, imports: /^(node:|rolldown$|\/test\/standin\/)/, worldly: true },
  { files: /^(test\/|[^/]+\.config\.ts$)/, imports: /./, worldly: true },
];

/** What a program can be told to do, a file each; none of them imports another. */
export const verb = /^\/src\/(?:[^/]+\/verbs\/[^/]+|carrier\/(?:carrier|fetch))$/;

/** What lists the verbs, and what it uses besides them: all else that it imports has to be a verb. */
const lists: Readonly<Record<string, ReadonlyArray<string>>> = {
  "/src/dom0/cli/commands": ["/src/dom0/cli/command"],
  "/src/shell/verbs": ["/src/shell/voice"],
};

/** A rule for each kind of fault. */
export const rules = [
  "room",
  "import",
  "verb",
  "clock",
  "world",
  "timer",
  "random",
  "console",
  "network",
  "code",
  "run",
  "citation",
] as const;
type Rule = (typeof rules)[number];
type Names = Readonly<Partial<Record<Rule, ReadonlyArray<string>>>>;

/** Names of the world, and which rule refuses them. */
const globals: Names = {
  clock: ["performance", "Temporal"],
  world: ["process", "global", "globalThis", "navigator"],
  timer: [
    "setTimeout",
    "setInterval",
    "setImmediate",
    "queueMicrotask",
    "AbortSignal",
    "Atomics",
    "MessageChannel",
  ],
  random: ["crypto"],
  console: ["console"],
  network: ["fetch", "WebSocket", "EventSource", "XMLHttpRequest"],
};
/** Refused in every room but the tests. */
const everywhere: Names = {
  code: ["eval", "Function", "WebAssembly"],
  import: ["require"],
};
const ruleOf = (table: Names): ReadonlyArray<readonly [name: string, rule: Rule]> =>
  rules.flatMap((rule) => (table[rule] ?? []).map((name) => [name, rule] as const));

/** What may only be used as `NAME.MEMBER`, with members that are not refused. */
interface Guard {
  readonly rule: Rule;
  readonly refused: RegExp;
  /** `new NAME(...)` with an argument, which says which one. */
  readonly made?: true;
}
const guardedGlobals: Readonly<Record<string, Guard>> = {
  Date: { rule: "clock", refused: /^(?!UTC$|parse$)/, made: true },
  Math: { rule: "random", refused: /^random$/ },
};
/** The same of modules, whether they are imported whole or by their members. */
const guardedModules: Readonly<Record<string, Guard>> = {
  "node:crypto": {
    rule: "random",
    refused: /^(random|getRandom|webcrypto|subtle|generate|default)/,
  },
  "effect/DateTime": { rule: "clock", refused: /^nowUnsafe$/ },
  // Only an entrypoint runs a program, and what it says goes through its services.
  "effect/Effect": { rule: "run", refused: /^(run|log)/ },
  "effect/Console": { rule: "console", refused: /^/ },
};

/** What a comment calls by a name that only its author knows. */
const dangling: ReadonlyArray<RegExp> = [
  /\btraps? \d/i,
  /\bthe (?:Qubes )?contract\b/i,
  /\bcontract, (?:sections? )?\d/i,
  /(?<!RFC \d+, )\bsections? \d/i,
  /\bthe seed(?:'s)?\b/i,
  /\bdesign (?:document|notes?)\b|\bdesign, \d/i,
  /\bissues? #?\d/i,
  /\b(?:fault|entry) [DGST]\d/,
];

interface Node {
  readonly type: string;
  readonly start: number;
}
const isNode = (value: unknown): value is Node =>
  typeof value === "object" && value !== null && "type" in value && typeof value.type === "string";
const field = (node: Node, key: string): unknown =>
  (node as unknown as Record<string, unknown>)[key];
const child = (node: Node, key: string): Node | undefined => {
  const value = field(node, key);
  return isNode(value) ? value : undefined;
};
const children = (node: Node, key: string): ReadonlyArray<Node> => {
  const value = field(node, key);
  return Array.isArray(value) ? value.filter(isNode) : [];
};
/** What a literal says, or a template without anything to fill in. */
const textOf = (node: Node | undefined): string | undefined => {
  if (node === undefined) return undefined;
  const value = node.type === "TemplateLiteral" ? cooked(node) : field(node, "value");
  return typeof value === "string" ? value : undefined;
};
const cooked = (node: Node): unknown => {
  const [only, ...more] = children(node, "quasis");
  const value = only === undefined || more.length > 0 ? undefined : field(only, "value");
  return typeof value === "object" && value !== null && "cooked" in value
    ? value.cooked
    : undefined;
};
/** The name of an identifier, or of a member that is written as a string. */
const nameOf = (node: Node | undefined): string | undefined => {
  const name = node === undefined ? undefined : field(node, "name");
  return typeof name === "string" ? name : textOf(node);
};

/** These of TypeScript's own hold expressions; what else begins like them holds types. */
const expressions =
  /^TS(As|Satisfies|NonNull|Instantiation)Expression$|^TS(TypeAssertion|ParameterProperty|ExportAssignment|Enum|Module)/;

/** Where a name only looks like a variable. */
const isLabel = (parent: Node, key: string): boolean => {
  const computed = field(parent, "computed") === true;
  switch (parent.type) {
    case "MemberExpression":
      return key === "property" && !computed;
    case "Property":
    case "MethodDefinition":
    case "PropertyDefinition":
    case "AccessorProperty":
    case "TSEnumMember":
      return (key === "key" || key === "id") && !computed;
    case "LabeledStatement":
    case "BreakStatement":
    case "ContinueStatement":
      return key === "label";
    case "ExportAllDeclaration":
    case "ExportSpecifier":
      return key === "exported";
    case "MetaProperty":
      return true;
    default:
      return false;
  }
};

/** The names that a declaration or a pattern binds. */
const bound = (node: Node | undefined): ReadonlyArray<string> => {
  switch (node?.type) {
    case undefined:
      return [];
    case "Identifier":
      return [nameOf(node)!];
    case "VariableDeclaration":
      // Only declared, it is the world's all the same.
      if (field(node, "declare") === true) return [];
      return children(node, "declarations").flatMap((one) => bound(child(one, "id")));
    case "FunctionDeclaration":
    case "ClassDeclaration":
    case "TSEnumDeclaration":
      return bound(child(node, "id"));
    case "ExportNamedDeclaration":
      return bound(child(node, "declaration"));
    default:
      return [];
  }
};

interface Import {
  /** Undefined where it is computed. */
  readonly to: string | undefined;
  readonly at: number;
}

const resolve = (file: string, to: string): string => {
  const inside = /^#(src|services|layers|test)\//.test(to)
    ? `/${to.slice(1)}`
    : /^\.\.?\//.test(to)
      ? path.posix.join("/", path.posix.dirname(file), to).replace(/\.ts$/, "")
      : to;
  return inside.startsWith("/") ? path.posix.normalize(inside) : inside;
};

export interface Fault {
  readonly rule: Rule;
  readonly line: number;
  readonly what: string;
}

const parse = (file: string, text: string) => {
  const { comments, errors, program } = parseSync(file, text);
  if (errors.length > 0) throw new Error(`${file}: ${errors[0]!.message}`);
  const root: unknown = program;
  return { comments, root: root as Node };
};

/** Walks all of a tree. `types` is set inside of types. */
const walk = (
  root: Node,
  visit: (node: Node, parent: Node, key: string, types: boolean, above: Node) => void,
): void => {
  const into = (node: Node, above: Node, types: boolean): void => {
    for (const [key, value] of Object.entries(node)) {
      for (const one of Array.isArray(value) ? value : [value]) {
        if (!isNode(one)) continue;
        const inside = types || (one.type.startsWith("TS") && !expressions.test(one.type));
        visit(one, node, key, inside, above);
        into(one, node, inside);
      }
    }
  };
  into(root, root, false);
};

/** Everything that a file imports or hands on, in whatever form, types too. */
const importsOf = (file: string, root: Node): ReadonlyArray<Import> => {
  const found: Array<Import> = [];
  walk(root, (node) => {
    const source =
      node.type === "TSExternalModuleReference"
        ? child(node, "expression")
        : /^(Import|ExportNamed|ExportAll)(Declaration|Expression)$|^TSImportType$/.test(node.type)
          ? child(node, "source")
          : undefined;
    if (source === undefined) return;
    const to = textOf(source);
    found.push({ to: to === undefined ? undefined : resolve(file, to), at: node.start });
  });
  return found;
};

type Found = readonly [rule: Rule, at: number, what: string];

/** Where a file imports what it may not. */
const ofImports = (file: string, root: Node, room: Room): ReadonlyArray<Found> => {
  const self = `/${file.replace(/\.ts$/, "")}`;
  const [, folder, entry] = /^src\/(?:([^/]+)\/|([^/]+)\.ts$)/.exec(file) ?? [];
  /** A program may use itself, and an entrypoint the program that it assembles. */
  const own = `/src/${folder ?? entry}/`;
  const besides = lists[self];
  return importsOf(file, root).flatMap(({ at, to }): ReadonlyArray<Found> => {
    if (to === undefined)
      return file.startsWith("test/") ? [] : [["import", at, "an import that is computed"]];
    if (!to.startsWith(own))
      return room.imports.test(to) ? [] : [["import", at, `it imports ${to}`]];
    if (verb.test(to)) return verb.test(self) ? [["verb", at, `a verb imports a verb: ${to}`]] : [];
    return besides === undefined || besides.includes(to)
      ? []
      : [["verb", at, `${to} is no verb, nor what ${self} uses besides`]];
  });
};

/** Whether what is guarded stands where it may: as the object of a harmless member, or made of a value. */
const isFair = (guard: Guard, parent: Node, key: string): boolean => {
  switch (parent.type) {
    case "MemberExpression": {
      const property = child(parent, "property");
      const member = field(parent, "computed") === true ? textOf(property) : nameOf(property);
      return key === "object" && member !== undefined && !guard.refused.test(member);
    }
    case "NewExpression": {
      const [first] = children(parent, "arguments");
      return (
        guard.made === true &&
        key === "callee" &&
        first !== undefined &&
        first.type !== "SpreadElement"
      );
    }
    case "BinaryExpression":
      return field(parent, "operator") === "instanceof";
    default:
      return false;
  }
};

/** Where a file breaks a rule of its room; nothing of its comments. */
const ofCode = (file: string, root: Node): ReadonlyArray<Found> => {
  const room = rooms.find(({ files }) => files.test(file));
  if (room === undefined) return [["room", 0, "it lies where no rule is"]];
  const found = [...ofImports(file, root, room)];
  if (file.startsWith("test/")) return found;

  /** Of this module: these names are not the world's. */
  const own = new Set(children(root, "body").flatMap(bound));
  const guards = new Map<string, Guard>();
  for (const declaration of children(root, "body")) {
    if (declaration.type === "TSImportEqualsDeclaration")
      found.push(["import", declaration.start, "an import of TypeScript's own"]);
    if (declaration.type !== "ImportDeclaration") continue;
    const from = textOf(child(declaration, "source")) ?? "";
    for (const specifier of children(declaration, "specifiers")) {
      const whole = specifier.type === "ImportNamespaceSpecifier";
      const local = nameOf(child(specifier, "local"))!;
      const name = whole ? "*" : (nameOf(child(specifier, "imported")) ?? "default");
      own.add(local);
      if (from === "effect" && whole)
        found.push(["import", specifier.start, "all of effect under one name"]);
      if (room.worldly === true) continue;
      const guard = guardedModules[whole ? from : `${from}/${name}`];
      if (guard !== undefined) guards.set(local, guard);
      const member = whole ? undefined : guardedModules[from];
      if (member?.refused.test(name) === true)
        found.push([member.rule, specifier.start, `${name} of ${from}`]);
    }
  }
  const refused = new Map(ruleOf(everywhere));
  if (room.worldly !== true) {
    for (const [name, rule] of ruleOf(globals)) refused.set(name, rule);
    for (const [name, guard] of Object.entries(guardedGlobals))
      if (!own.has(name)) guards.set(name, guard);
  }
  for (const name of own) refused.delete(name);

  walk(root, (node, parent, key, types, above) => {
    if (types) return;
    if (node.type === "MetaProperty" && nameOf(child(node, "meta")) === "import") {
      if (room.worldly !== true) found.push(["world", node.start, "import.meta"]);
    }
    if (node.type !== "Identifier" || isLabel(parent, key)) return;
    if (/^Import.*Specifier$/.test(parent.type)) return;
    // Handed on from another module: nothing of this one.
    if (parent.type === "ExportSpecifier" && child(above, "source") !== undefined) return;
    const name = nameOf(node)!;
    const rule = refused.get(name);
    if (rule !== undefined) found.push([rule, node.start, name]);
    const guard = guards.get(name);
    if (guard === undefined || isFair(guard, parent, key)) return;
    found.push([guard.rule, node.start, `${name} as it is used here`]);
  });
  return found;
};

const headings = (document: string): ReadonlyArray<string> =>
  fs
    .readFileSync(document, "utf8")
    .split("\n")
    .flatMap((line) => /^#+ (.*)$/.exec(line)?.[1] ?? []);

/** What is wrong with the places that a text of one paragraph leads to. */
const ofCitations = (text: string): ReadonlyArray<string> => {
  const wrong = dangling.flatMap((pattern) => {
    const match = pattern.exec(text)?.[0];
    return match === undefined ? [] : [`"${match}" is nothing in this repository`];
  });
  for (const match of text.matchAll(/(?<![\w./-])(?:docs\/)?[\w-]+\.md\b/g)) {
    const [document] = match;
    if (!fs.existsSync(document)) {
      wrong.push(`there is no ${document}`);
      continue;
    }
    const behind = text.slice(match.index + document.length);
    const quoted = /"([^"]+)" (?:in|of) $/.exec(text.slice(0, match.index))?.[1];
    const known = headings(document);
    if (quoted !== undefined && !known.includes(quoted))
      wrong.push(`${document} has no heading ${quoted}`);
    if (!document.startsWith("docs/") || !behind.startsWith(", ")) continue;
    const rest = behind.slice(2);
    if (!known.some((one) => rest.startsWith(one) && !/^\w/.test(rest.slice(one.length))))
      wrong.push(`${document} has no heading for ${rest.slice(0, 40)}`);
  }
  return wrong;
};

const oneLine = (comment: string): string =>
  comment
    .replace(/^[^\S\n]*(?:\*|#+|\/\/)?/gm, "")
    .replace(/\s+/g, " ")
    .trim();

/** Where a file breaks the house rules. Of other files than TypeScript only what they cite is looked at. */
export const faults = (file: string, text: string): ReadonlyArray<Fault> => {
  const lineOf = (at: number) => text.slice(0, at).split("\n").length;
  if (!file.endsWith(".ts"))
    return ofCitations(oneLine(text)).map((what) => ({ rule: "citation", line: 1, what }) as const);
  const { comments, root } = parse(file, text);
  const paragraphs: Array<{ at: number; end: number; text: string }> = [];
  for (const { end, start, value } of comments) {
    const last = paragraphs.at(-1);
    if (last !== undefined && /^\s*$/.test(text.slice(last.end, start))) {
      last.text += `\n${value}`;
      last.end = end;
    } else paragraphs.push({ at: start, end, text: value });
  }
  return [
    ...ofCode(file, root).map(([rule, at, what]) => ({ rule, line: lineOf(at), what })),
    ...paragraphs.flatMap((one) =>
      ofCitations(oneLine(one.text)).map((what) => ({
        rule: "citation" as const,
        line: lineOf(one.at),
        what,
      })),
    ),
  ];
};

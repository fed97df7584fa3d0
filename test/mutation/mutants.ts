/**
 * One-line faults, planted by the syntax tree: what a tired person could have written instead. Texts
 * for people are left alone, so are types, imports, and loops that would only run for ever.
 */
import { parseAst } from "rolldown/parseAst";

export interface Mutant {
  readonly file: string;
  /** Where in the text, in UTF-16 units; what stands there and what comes instead. */
  readonly start: number;
  readonly end: number;
  readonly to: string;
  readonly lineNumber: number;
  /** The line's text, without the blanks around it: it survives that lines are moved. */
  readonly line: string;
  /** `1 -> 2`, with ` #2` behind it where the same line has the same fault a second time. */
  readonly fault: string;
}

/** A node of ESTree, of which only what is asked for is known. */
interface Node {
  readonly type: string;
  readonly start: number;
  readonly end: number;
  readonly [key: string]: unknown;
}
const isNode = (value: unknown): value is Node =>
  typeof value === "object" && value !== null && "type" in value && "start" in value;

const operators: Readonly<Record<string, ReadonlyArray<string>>> = {
  "<": ["<=", ">="],
  "<=": ["<", ">"],
  ">": [">=", "<="],
  ">=": [">", "<"],
  "===": ["!=="],
  "!==": ["==="],
  "+": ["-"],
  "-": ["+"],
  "*": ["/"],
  "/": ["*"],
  "%": ["*"],
  "**": ["*"],
  ">>>": ["<<"],
  "<<": [">>"],
  "&": ["|"],
  "|": ["&"],
  "^": ["&"],
  "&&": ["||"],
  "||": ["&&"],
  "+=": ["-="],
  "-=": ["+="],
  ">>>=": ["<<="],
  "??=": ["="],
  "++": ["--"],
};
const methods: ReadonlyMap<string, string> = new Map([
  ["min", "max"],
  ["max", "min"],
  ["ceil", "floor"],
  ["floor", "ceil"],
  ["some", "every"],
  ["every", "some"],
  ["startsWith", "endsWith"],
  ["endsWith", "startsWith"],
]);
/** Types bear no faults that run, and a wrong import does not even load. */
const skipped = /^(?:TS(?!AsExpression|NonNullExpression|SatisfiesExpression)|Import|ExportAll)/;
/** Words with a blank between them: for people, who forgive. */
const prose = /[a-z,:] [a-z$]/i;

/** What can be wrong with a pattern: bounds, anchors, members of a class, alternatives. */
export const patternFaults = function* (
  pattern: string,
): Generator<{ readonly start: number; readonly end: number; readonly to: string }> {
  const opened: Array<number> = [0];
  for (let i = 0; i < pattern.length; i++) {
    const rest = pattern.slice(i);
    const sign = pattern[i]!;
    if (sign === "\\") i += 1;
    // A place in a template where something is put in.
    else if (rest.startsWith("${")) i += rest.indexOf("}");
    else if (sign === "[") {
      const members = /^\[\^?((?:\\.[^\]]*|[^\]\\])*)\]/.exec(rest)!;
      if (rest[1] === "^") yield { start: i + 1, end: i + 2, to: "" };
      const from = i + members[0].length - 1 - members[1]!.length;
      const parts = /\\(?:x..|u....|.)(?:-\\(?:x..|u....|.))?|[^\\]-[^\\]|[^\\]/g;
      for (const part of members[1]!.matchAll(parts)) {
        const start = from + part.index;
        if (part[0] !== members[1]) yield { start, end: start + part[0].length, to: "" };
      }
      i += members[0].length - 1;
    } else if (sign === "{") {
      const bounds = /^\{(\d+)(?:,(\d*))?\}/.exec(rest);
      if (bounds === null) continue;
      const [all, low = "", high] = bounds;
      const others = [[Number(low) + 1, high] as const];
      if (Number(low) > 0) others.push([Number(low) - 1, high]);
      if (high !== undefined && high !== "") {
        others.push(
          [Number(low), String(Number(high) + 1)],
          [Number(low), String(Number(high) - 1)],
        );
      }
      for (const [a, b] of others) {
        const to = b === undefined ? `{${a}}` : `{${a},${b}}`;
        yield { start: i, end: i + all.length, to };
      }
      i += all.length - 1;
    } else if (sign === "(") {
      opened.push(i + (/^\(\?(?:<?[:=!])/.exec(rest)?.[0].length ?? 1));
      i = opened.at(-1)! - 1;
    } else if (sign === ")" || sign === "|") {
      const start = opened.pop()!;
      const alternative = pattern[start - 1] === "|" || sign === "|";
      if (sign === "|") {
        yield { start, end: i + 1, to: "" };
        opened.push(i + 1);
      } else if (alternative) yield { start: start - 1, end: i, to: "" };
    } else if (/[\^$*+?]/.test(sign)) {
      yield { start: i, end: i + 1, to: sign === "*" ? "+" : "" };
    }
  }
};

/** All faults that this can plant into one file. */
export const mutantsOf = (file: string, text: string): ReadonlyArray<Mutant> => {
  const found: Array<Mutant> = [];
  const seen = new Map<string, number>();

  /** `called` tells the fault in fewer words than the whole text before and after it. */
  const plant = (start: number, end: number, to: string, called?: string): void => {
    const from = text.slice(start, end);
    if (from === to) return;
    const lineStart = text.lastIndexOf("\n", start - 1) + 1;
    const lineEnd = text.indexOf("\n", start);
    const line = text.slice(lineStart, lineEnd < 0 ? undefined : lineEnd).trim();
    const short = (words: string) => words.replace(/\s+/g, " ").trim();
    const name = called ?? `${short(from)} -> ${short(to) || "(nothing)"}`;
    const times = (seen.get(`${line}\n${name}`) ?? 0) + 1;
    seen.set(`${line}\n${name}`, times);
    found.push({
      file,
      start,
      end,
      to,
      lineNumber: text.slice(0, start).split("\n").length,
      line,
      fault: times === 1 ? name : `${name} #${times}`,
    });
  };
  const plantPattern = (start: number, end: number, valid: (whole: string) => boolean): void => {
    const pattern = text.slice(start, end);
    for (const fault of patternFaults(pattern)) {
      const whole = pattern.slice(0, fault.start) + fault.to + pattern.slice(fault.end);
      const from = pattern.slice(fault.start, fault.end);
      const called = `pattern: ${from} -> ${fault.to || "(nothing)"}`;
      if (valid(whole)) plant(start, end, whole, called);
    }
  };
  const swap = (node: Node, left: Node, right: Node): void => {
    const operator = String(node["operator"]);
    const at = text.indexOf(operator, left.end);
    if (at >= right.start) return;
    for (const other of operators[operator] ?? []) {
      plant(
        node.start,
        node.end,
        text.slice(node.start, at) + other + text.slice(at + operator.length, node.end),
      );
    }
  };
  const condition = (test: Node, loop: boolean): void => {
    plant(test.start, test.end, "false");
    if (!loop) plant(test.start, test.end, "true");
    // A lone comparison is turned round by its operator.
    if (test.type !== "BinaryExpression")
      plant(test.start, test.end, `!(${text.slice(test.start, test.end)})`);
  };

  const visit = (node: Node, parent: Node | undefined): void => {
    if (skipped.test(node.type)) return;
    const part = (key: string): Node | undefined => (isNode(node[key]) ? node[key] : undefined);
    const [left, right, test] = [part("left"), part("right"), part("test")];
    const words = text.slice(node.start, node.end);
    switch (node.type) {
      case "BinaryExpression":
      case "AssignmentExpression":
        if (/^["'`]/.test(text.slice(left!.start)) || /^["'`]/.test(text.slice(right!.start))) {
          if (node["operator"] === "+") break;
        }
        swap(node, left!, right!);
        break;
      case "LogicalExpression":
        swap(node, left!, right!);
        plant(node.start, node.end, text.slice(left!.start, left!.end));
        plant(node.start, node.end, text.slice(right!.start, right!.end));
        break;
      case "IfStatement":
      case "ConditionalExpression":
        condition(test!, false);
        break;
      case "ForStatement":
      case "WhileStatement":
        if (test !== undefined) condition(test, true);
        break;
      case "UnaryExpression": {
        const operand = part("argument")!;
        if (/^[!-]$/.test(String(node["operator"])))
          plant(node.start, node.end, text.slice(operand.start, operand.end));
        break;
      }
      case "UpdateExpression":
        if (node["operator"] === "++") plant(node.start, node.end, words.replace("++", "--"));
        break;
      case "ExpressionStatement":
        if (/^(?:Call|Assignment|Yield|Await|Update)/.test(part("expression")!.type))
          plant(node.start, node.end, ";");
        break;
      case "ReturnStatement":
      case "ThrowStatement":
        // Behind an `if`, its condition says as much.
        if (parent?.type !== "IfStatement") plant(node.start, node.end, ";");
        break;
      case "CallExpression": {
        const given = (node["arguments"] as ReadonlyArray<Node>) ?? [];
        if (!text.slice(node.start, part("callee")!.end).endsWith(".check")) break;
        for (const argument of given) {
          const others = given.filter((other) => other !== argument);
          const kept = others.map((other) => text.slice(other.start, other.end)).join(", ");
          const callee = part("callee")!;
          // A check fewer; without any it is no call.
          const whole = text.slice(node.start, callee.end);
          const shorter =
            others.length === 0 ? whole.slice(0, -".check".length) : `${whole}(${kept})`;
          const dropped = text.slice(argument.start, argument.end).replace(/\s+/g, " ");
          plant(node.start, node.end, shorter, `check dropped: ${dropped}`);
        }
        break;
      }
      case "MemberExpression": {
        const name = part("property");
        const other =
          name === undefined ? undefined : methods.get(text.slice(name.start, name.end));
        if (other !== undefined && node["computed"] !== true) plant(name!.start, name!.end, other);
        break;
      }
      case "Literal": {
        const { value } = node;
        if ("regex" in node) {
          const flags = words.slice(words.lastIndexOf("/") + 1);
          plantPattern(node.start + 1, node.end - flags.length - 1, (whole) =>
            isPattern(whole, flags),
          );
        } else if (typeof value === "boolean") plant(node.start, node.end, String(!value));
        else if (typeof value === "number") {
          plant(node.start, node.end, String(value + 1));
          if (value > 0) plant(node.start, node.end, String(value - 1));
        } else if (typeof value === "string" && !prose.test(value)) {
          plant(node.start, node.end, value === "" ? '"?"' : '""');
          if (/\[.*\]/.test(value))
            plantPattern(node.start + 1, node.end - 1, (whole) => isPattern(whole, ""));
        }
        break;
      }
      case "TemplateLiteral":
        if (parent?.type === "NewExpression") {
          plantPattern(node.start + 1, node.end - 1, () => true);
        } else if (!prose.test(words)) {
          for (const quasi of node["quasis"] as ReadonlyArray<Node>) {
            const inner = text.slice(quasi.start, quasi.end).replace(/^[`}]|(?:`|\$\{)$/g, "");
            const start = text.indexOf(inner, quasi.start);
            if (inner !== "") plant(start, start + inner.length, "");
          }
        }
        break;
    }
    for (const [key, value] of Object.entries(node)) {
      // The key of a property is a name, not a value; so is a member's.
      if (
        /^(?:Property|MemberExpression)$/.test(node.type) &&
        /^(?:key|property)$/.test(key) &&
        node["computed"] !== true
      )
        continue;
      for (const child of Array.isArray(value) ? value : [value])
        if (isNode(child)) visit(child, node);
    }
  };
  visit(parseAst(text, { lang: "ts" }) as unknown as Node, undefined);
  return found;
};

const isPattern = (pattern: string, flags: string): boolean => {
  try {
    return new RegExp(pattern, flags).source !== "";
  } catch {
    return false;
  }
};

export const withMutant = (text: string, { end, start, to }: Mutant): string =>
  text.slice(0, start) + to + text.slice(end);

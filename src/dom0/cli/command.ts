/**
 * What a command is: one value in the verb's own file. The parser, `-h`, the list of verbs, the shell's
 * completion and the manual page are made from it, so that none of them can know less than another.
 */
import { Effect, Option } from "effect";
import { Argument, Command as Cli, Flag as CliFlag } from "effect/cli";
import type { exitCodes } from "#src/say/exit";
import type { RunFailed } from "#src/dom0/failure";

interface Common {
  /** The letter; those of `run` are the letters of the tool that this one continues. */
  readonly short?: string;
  /** For a person: a phrase without a full stop. */
  readonly help: string;
  /** The setting that stands for it where it is not given. */
  readonly setting?: string;
}
export interface Switch extends Common {
  readonly type: "switch";
}
export interface Text extends Common {
  readonly type: "text";
  /** What stands for the value in the help. */
  readonly value: string;
}
/** May be given again and again, or with commas. */
export interface List extends Common {
  readonly type: "list";
  readonly value: string;
}
export interface Count extends Common {
  readonly type: "count";
  readonly value: string;
  readonly least: number;
  readonly most: number;
  readonly unit: string;
  readonly default?: number;
}
export type Flag = Switch | Text | List | Count;
/** By the names that the code has for them: `onServer` is `--on-server`. */
export type Flags = Readonly<Record<string, Flag>>;

/** Words that are no flags. `most` is 1 or Infinity; `hint`, a sentence, is for whoever gave none. */
export interface Arg {
  readonly label: string;
  readonly least: 0 | 1;
  readonly most: number;
  readonly hint?: string;
}
export type Args = Readonly<Record<string, Arg>>;

/** What a command does first of all: a word before its arguments, which stand in `words`. */
export interface Action {
  /** As the usage shows them: empty for none. */
  readonly words: string;
  readonly help: string;
}

export type Actions = Readonly<Record<string, Action>>;

/** What was asked for, and no more: a flag that was not given is undefined, its default comes later. */
type Wish<F extends Flag> = F extends Switch
  ? boolean
  : F extends Text
    ? string | undefined
    : F extends List
      ? ReadonlyArray<string>
      : F extends { readonly default: number; readonly setting?: never }
        ? number
        : number | undefined;
type Word<A extends Arg> = A extends { readonly most: 1; readonly least: 1 }
  ? string
  : A extends { readonly most: 1 }
    ? string | undefined
    : ReadonlyArray<string>;
export type Values<F extends Flags, A extends Args, D extends Actions> = {
  readonly [K in keyof F]: Wish<F[K]>;
} & { readonly [K in keyof A]: Word<A[K]> } & { readonly action: keyof D };

interface Description {
  readonly name: string;
  /** A line of the list of commands. */
  readonly summary: string;
  /** Paragraphs and tables, in lines of at most 80 columns, without a blank line at either end. */
  readonly about: string;
  /** Of each of these, only one flag. */
  readonly either?: ReadonlyArray<ReadonlyArray<string>>;
  /** The exit codes that it has beside 0, 1 and 2, and what they mean here. */
  readonly exits: Readonly<Partial<Record<keyof typeof exitCodes, string>>>;
}
export interface Command<R = unknown> extends Description {
  /** What is done besides when its command line is refused, and it does not begin. */
  readonly refused?: Effect.Effect<void, never, R>;
  readonly flags: Flags;
  readonly args: Args;
  /** Its first argument is one of these, where there are any. */
  readonly actions: Actions;
  readonly run: (values: Readonly<Record<string, unknown>>) => Effect.Effect<void, RunFailed, R>;
}

export const command = <
  const F extends Flags,
  const A extends Args,
  R,
  const D extends Actions = Record<never, Action>,
>(
  spec: Description & {
    readonly flags: F;
    readonly args: A;
    readonly actions?: D;
    readonly refused?: Effect.Effect<void, never, NoInfer<R>>;
    readonly run: (values: Values<F, A, D>) => Effect.Effect<void, RunFailed, R>;
  },
): Command<R> => ({
  actions: {},
  ...spec,
  run: (wishes) =>
    Effect.suspend(() => {
      const values: Record<string, unknown> = { ...wishes };
      for (const [key, flag] of Object.entries(spec.flags)) {
        // Where there is a setting, that comes first, and the command looks for it.
        if (flag.type === "count" && flag.setting === undefined) values[key] ??= flag.default;
      }
      // Its fields are what `toCli` makes of these flags and arguments.
      return spec.run(values as Values<F, A, D>);
    }),
});

/** `onServer` is `--on-server`. */
export const flagName = (key: string): string =>
  key.replaceAll(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);

/** A command's flag by the name that it has on the command line. */
export const flagOf = ({ flags }: Command, name: string): Flag | undefined =>
  Object.entries(flags).find(([key]) => flagName(key) === name)?.[1];

/** A number within the flag's limits, as it is given to it or to its setting. */
export const countOf = ({ least, most }: Count, text: string): number | undefined => {
  const n = /^[0-9]{1,9}$/.test(text) ? Number(text) : Number.NaN;
  return n >= least && n <= most ? n : undefined;
};

const cliFlag = (name: string, flag: Flag): CliFlag.Flag<unknown> => {
  switch (flag.type) {
    case "switch":
      return CliFlag.Boolean(name).pipe(CliFlag.withDefault(false));
    case "text":
      return CliFlag.String(name).pipe(CliFlag.optional, CliFlag.map(Option.getOrUndefined));
    case "list":
      return CliFlag.String(name).pipe(
        CliFlag.optional,
        CliFlag.map(Option.match({ onNone: () => [], onSome: (text) => text.split(",") })),
      );
    case "count":
      // In digits: effect/cli's own numbers may be written 1e2 or 0x40.
      return CliFlag.String(name).pipe(
        CliFlag.filterMap(
          (text) => Option.fromUndefinedOr(countOf(flag, text)),
          () => "", // `reworded` says it
        ),
        CliFlag.optional,
        CliFlag.map(Option.getOrUndefined),
      );
  }
};

const cliArgument = (key: string, { least, most }: Arg): Argument.Argument<unknown> => {
  const word = Argument.String(key);
  if (most > 1) return word.pipe(Argument.variadic({ min: least }));
  return least === 1 ? word : word.pipe(Argument.optional, Argument.map(Option.getOrUndefined));
};

/** The command as effect/cli reads it. */
export const toCli = <R>({ actions, args, flags, name, run }: Command<R>) => {
  const config: Record<string, CliFlag.Flag<unknown> | Argument.Argument<unknown>> = {};
  for (const [key, flag] of Object.entries(flags)) config[key] = cliFlag(flagName(key), flag);
  if (Object.keys(actions).length > 0) config["action"] = Argument.String("action");
  for (const [key, arg] of Object.entries(args)) config[key] = cliArgument(key, arg);
  return Cli.make(name, config, (values) => run(values));
};
